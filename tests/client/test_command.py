"""``moshi-server transcribe`` as a user runs it: a process of its own, a real server or a real (if untrained) model."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from moshi_server.audio import SAMPLE_RATE, read_audio, wav_bytes, write_wav
from moshi_server.cli.demo import running_worker

from ..app.server import KEY, Server, free_port, serve
from ..fakes import FakeRunner, say
from .cutting import wire

SAID = say(3, 3, 11, 12, 999, 3, 13, 999, 3, 3)
SPEECH = Path(__file__).parents[1] / "data" / "speech.flac"


@dataclasses.dataclass
class Done:
    code: int
    out: str
    err: str


async def transcribe(*arguments: str | Path, stdin: bytes = b"", cwd: Path, **environment: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moshi_server.cli", "transcribe", *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=cwd, env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 100)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def at(server: Server) -> list[str]:
    return ["--url", f"ws://127.0.0.1:{server.port}", "--api-key", KEY]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(wav_bytes(SAID))
    return tmp_path / "a.wav"


async def test_text_json_srt_and_vtt(recording):
    async with serve() as server:
        text, record, srt, vtt = [
            await transcribe(recording.name, *at(server), "--format", name, cwd=recording.parent)
            for name in ("text", "json", "srt", "vtt")
        ]
    assert text == Done(0, "<11><12> <13>\n", "")
    fields = json.loads(record.out)
    assert fields["file"] == "a.wav"
    assert fields["text"] == "<11><12> <13>"
    assert fields["duration"] == 0.8
    assert [list(word) for word in fields["words"]] == [["text", "start", "stop"]] * 2
    assert srt.out.startswith("1\n00:00:00,000 --> ")
    assert vtt.out.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert "&lt;11&gt;" in vtt.out


async def test_several_files_the_standard_input_and_one_that_fails(recording):
    folder = recording.parent
    (folder / "notes.txt").write_text("no sound")
    async with serve() as server:
        done = await transcribe(
            "a.wav", "notes.txt", "none.wav", "-", *at(server), stdin=recording.read_bytes(), cwd=folder
        )
    assert done.code == 1
    assert done.out == "a.wav: <11><12> <13>\n-: <11><12> <13>\n"
    first, second, summary = done.err.splitlines()
    assert summary.endswith("; 2 failed")
    assert first.startswith("error: notes.txt cannot be decoded")
    assert "ffmpeg" in first
    assert second.startswith("error: none.wav: No such file")


async def test_subtitles_of_several_files_go_into_a_folder(recording):
    folder = recording.parent
    (folder / "b").mkdir()
    for name in ("b/a.wav", "c.wav"):
        (folder / name).write_bytes(recording.read_bytes())
    files = ["a.wav", "b/a.wav", "c.wav"]
    async with serve() as server:
        refused = await transcribe(*files, *at(server), "-f", "srt", cwd=folder)
        done = await transcribe(*files, *at(server), "-f", "srt", "-o", "out/new", cwd=folder)
    assert refused.code == 2
    assert "--output" in refused.err
    assert (done.code, done.out) == (0, "")
    assert sorted(path.name for path in (folder / "out/new").iterdir()) == ["a.wav-1.srt", "a.wav-2.srt", "c.srt"]
    assert done.err.splitlines()[-2] == "out/new/c.srt"


async def test_a_folder_is_its_recordings_and_a_summary(recording):
    folder = recording.parent
    (folder / "talks" / "old").mkdir(parents=True)
    for name in ("talks/b.WAV", "talks/old/c.wav"):
        (folder / name).write_bytes(recording.read_bytes())
    (folder / "talks" / "notes.txt").write_text("no sound")
    async with serve() as server:
        done = await transcribe("a.wav", "talks", *at(server), cwd=folder)
        (folder / "talks" / "notes.txt").rename(folder / "talks" / "d.wav")
        spoilt = await transcribe("talks", *at(server), cwd=folder)
    assert (done.code, done.out.count("<11><12> <13>")) == (0, 3)
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["a.wav", "talks/b.WAV", "talks/old/c.wav"]
    assert done.err.startswith("3 recordings, 0:02 of audio in 0:0")
    assert done.err.endswith("times as fast as spoken\n")
    assert (spoilt.code, spoilt.out.count("<13>")) == (1, 2)
    assert spoilt.err.splitlines()[-1].startswith("2 recordings")
    assert spoilt.err.endswith("; 1 failed\n")


async def test_a_folder_without_recordings_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done = await transcribe("empty", cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: empty holds no recordings")


async def test_realtime_shows_words_as_they_come(recording):
    async with serve() as server:
        start = asyncio.get_running_loop().time()
        done = await transcribe("a.wav", *at(server), "--realtime", cwd=recording.parent)
    assert done == Done(0, "<11><12> <13> \n", "")
    assert asyncio.get_running_loop().time() - start > 0.8


async def test_the_key_comes_from_the_environment_or_dotenv(recording):
    async with serve() as server:
        url = ["--url", f"ws://127.0.0.1:{server.port}"]
        refused = await transcribe("a.wav", *url, cwd=recording.parent)
        given = await transcribe("a.wav", *url, cwd=recording.parent, MOSHI_API_KEY=f"{KEY},other")
        (recording.parent / ".env").write_text(f"MOSHI_API_KEY={KEY}\n")
        found = await transcribe("a.wav", *url, cwd=recording.parent)
    assert refused.code == 1
    assert len(refused.err.splitlines()) == 1
    assert (given.code, found.code) == (0, 0)


async def test_no_server_is_one_line_that_says_how_to_start_one(recording):
    done = await transcribe("a.wav", "--url", f"ws://127.0.0.1:{free_port()}", cwd=recording.parent)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: no server answers at ws://127.0.0.1")
    assert "Connection refused" in done.err
    assert "moshi-server worker" in done.err
    assert len(done.err.splitlines()) == 1


async def test_a_full_server_is_named_with_the_file(recording):
    async with serve(FakeRunner(1)) as server, server.connect() as taken:
        await taken.recv()
        done = await transcribe("a.wav", *at(server), cwd=recording.parent)
    assert done.code == 1
    assert done.err.startswith("error: a.wav: no free channels")


async def test_a_connection_that_is_lost_costs_nothing_but_a_warning(tmp_path):
    said = say(*(token for index in range(40) for token in (3, 999, 11 + index, 3, 3)))
    (tmp_path / "long.wav").write_bytes(wav_bytes(said))
    async with serve() as server, wire(server.port) as way:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "moshi_server.cli", "transcribe", "long.wav", "--realtime",
            "--url", f"ws://127.0.0.1:{way.port}", "--api-key", KEY, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(100):
            first = await process.stdout.readuntil(b"<13>")
            way.cut()
            rest, errors = await process.communicate()
    assert process.returncode == 0
    assert (first + rest).decode().split() == [f"<{11 + index}>" for index in range(40)]
    lost, resumed = errors.decode().split("\n")[1:3]
    assert lost.startswith(f"warning: ws://127.0.0.1:{way.port}")
    assert "goes on after" in resumed


@pytest.mark.parametrize(
    "arguments", [["a.wav", "--url", "ws://h", "--config", "demo"], ["-", "-"], ["a.wav", "--format", "doc"], []]
)
async def test_wrong_use_is_status_2(arguments, tmp_path):
    assert (await transcribe(*arguments, cwd=tmp_path)).code == 2


async def test_a_missing_config_is_one_line(recording):
    done = await transcribe("a.wav", "--config", "none.toml", cwd=recording.parent)
    assert done.code == 1
    assert done.err.startswith("error: none.toml: no such file")


async def test_with_a_url_no_torch_is_imported(recording):
    look = (
        "import sys; from moshi_server.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'fastapi'}))"
    )
    async with serve() as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", look, "transcribe", str(recording), *at(server), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert out.decode().splitlines() == ["<11><12> <13>", "[]"]


CONFIG = """
static_dir = "static"
log_dir = "logs"
instance_name = "tiny"
authorized_ids = ["key"]
[modules.asr]
type = "BatchedAsr"
path = "/api/asr-streaming"
lm_model_file = "lm.safetensors"
text_tokenizer_file = "text.model"
audio_tokenizer_file = "mimi.safetensors"
asr_delay_in_tokens = 6
batch_size = 2
temperature = 0.0
[modules.asr.model]
audio_vocab_size = 65
text_in_vocab_size = 49
text_out_vocab_size = 48
audio_codebooks = 4
[modules.asr.model.transformer]
d_model = 64
num_heads = 4
num_layers = 3
dim_feedforward = 256
context = 50
max_period = 100000
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
[modules.asr.model.extra_heads]
num_heads = 4
dim = 6
"""


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a whole, tiny model that knows nothing: what it says is nonsense, but always the same."""
    import sentencepiece
    import torch

    from moshi_server.model.synthetic import write_lm
    from moshi_server.model.synthetic_mimi import write_mimi

    from ..golden import lm_spec, mimi_spec

    folder = tmp_path_factory.mktemp("tiny")
    write_lm(folder / "lm.safetensors", lm_spec.SMALL, seed=3, dtype=torch.float32)
    write_mimi(folder / "mimi.safetensors", mimi_spec.SMALL, seed=1)
    model = io.BytesIO()
    characters = "abcdefghijklmnopqrstuvwxyz0123456789,.?!'-:;"  # with the space and three marks: 48
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*characters, f"{characters} {characters}"]),
        model_writer=model,
        model_type="char",
        character_coverage=1.0,
        vocab_size=48,
        minloglevel=2,
    )
    (folder / "text.model").write_bytes(model.getvalue())
    (folder / "c.toml").write_text(CONFIG)
    return folder


async def test_here_and_on_a_server_the_same_model_says_the_same(untrained, monkeypatch):
    """One and the same configuration, read by the worker and by the command: the same words at the same times."""
    monkeypatch.chdir(untrained)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the model is too small for two cores to help each other
    write_wav("speech.wav", read_audio(SPEECH)[: 4 * SAMPLE_RATE])
    options = ["speech.wav", "--format", "json"]
    here = await transcribe(*options, "--config", "c.toml", "--cpu", cwd=untrained)
    assert here.code == 0, here.err
    with running_worker("c.toml") as url:
        there = await transcribe(*options, "--url", url, "--api-key", "key", cwd=untrained)
    assert there.code == 0, there.err
    transcript = json.loads(here.out)
    assert transcript["words"]
    assert transcript["duration"] == 4
    assert transcript == json.loads(there.out)


async def test_a_longer_recording_than_the_session_limit_is_transcribed_here(untrained, tmp_path):
    limited = CONFIG.replace("batch_size = 2", "batch_size = 2\nmax_session_seconds = 1.0")
    (untrained / "limited.toml").write_text(limited)
    (tmp_path / "long.wav").write_bytes(wav_bytes(np.resize(SAID, 24_000 * 5)))
    done = await transcribe(tmp_path / "long.wav", "--config", "limited.toml", "--cpu", cwd=untrained)
    assert (done.code, done.err) == (0, "")
