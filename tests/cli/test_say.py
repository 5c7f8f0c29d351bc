"""``moshi-server say`` as a user runs it: a process of its own against a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from moshi_server.audio import read_audio

from ..app.server import KEY, Server, free_port
from ..app.test_speech import speaking, tone

SPEAKERS = """
import os, threading
import numpy as np

class CallbackStop(Exception):
    pass

class OutputStream:
    def __init__(self, *, samplerate, channels, dtype, callback, finished_callback):
        assert (samplerate, channels, dtype) == (24000, 1, "float32")
        self.callback, self.finished = callback, finished_callback

    def play(self):
        parts = []
        try:
            while True:
                out = np.full((1000, 1), 9, np.float32)
                parts.append(out)
                self.callback(out, 1000, None, None)
        except CallbackStop:
            pass
        np.save(os.environ["PLAYED"], np.concatenate(parts)[:, 0])
        self.finished()

    def __enter__(self):
        threading.Thread(target=self.play).start()

    def __exit__(self, *_):
        pass
"""
"""A sound card that plays into a file."""


@dataclasses.dataclass
class Done:
    code: int
    out: bytes
    err: str


async def start(*arguments: str | Path, cwd: Path, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moshi_server.cli", "say", *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=cwd, env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
    )  # fmt: skip


async def say(*arguments: str | Path, stdin: bytes = b"", cwd: Path, **environment: str) -> Done:
    process = await start(*arguments, cwd=cwd, **environment)
    out, err = await asyncio.wait_for(process.communicate(stdin), 100)
    assert process.returncode is not None
    return Done(process.returncode, out, err.decode())


def at(server: Server) -> list[str]:
    return ["--url", f"ws://127.0.0.1:{server.port}", "--api-key", KEY]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with speaking() as running:
        yield running


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32767


async def test_words_into_a_wav_whose_length_is_right(server: Server, tmp_path: Path) -> None:
    done = await say("good", "morning to you", "-o", "out.wav", *at(server), cwd=tmp_path)
    assert done == Done(0, b"", "")
    assert np.abs(samples(tmp_path / "out.wav") - tone("good morning to you")).max() < 1e-3


async def test_a_file_into_opus(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line\nand another\n", encoding="utf-8")
    done = await say("--file", "text.txt", "-o", "out.ogg", *at(server), cwd=tmp_path)
    assert done == Done(0, b"", "")
    assert len(read_audio(tmp_path / "out.ogg")) == len(tone("a line and another"))


async def test_standard_input_to_standard_output(server: Server, tmp_path: Path) -> None:
    environment = {"MOSHI_API_KEY": f"{KEY},another"}
    url = f"127.0.0.1:{server.port}"
    done = await say("-o", "-", "--url", url, stdin="čau, good day".encode(), cwd=tmp_path, **environment)
    assert (done.code, done.err) == (0, "")
    assert done.out[:4] == b"RIFF"
    assert done.out[40:44] == b"\xff" * 4  # nobody knew the length when this was written
    assert len(done.out) == 44 + 2 * len(tone("čau, good day"))


async def test_what_is_typed_is_said_before_the_rest_is_there(server: Server, tmp_path: Path) -> None:
    process = await start("-o", "-", *at(server), cwd=tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first sec")
    process.stdin.write(b"ond thi")
    await process.stdin.drain()
    head = await asyncio.wait_for(process.stdout.readexactly(44 + 2 * 1920 * len("first")), 30)
    assert head[:4] == b"RIFF"
    process.stdin.write(b"rd\n")
    process.stdin.close()
    rest = await asyncio.wait_for(process.stdout.read(), 30)
    assert len(head + rest) == 44 + 2 * len(tone("first second third"))
    assert await process.wait() == 0


async def test_to_the_speakers(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text(SPEAKERS)
    played = tmp_path / "played.npy"
    done = await say("hear this", *at(server), cwd=tmp_path, PYTHONPATH=str(tmp_path), PLAYED=str(played))
    assert done == Done(0, b"", "")
    heard = np.load(played)
    assert heard.max() <= 0.5  # every sample was filled
    sounding = np.flatnonzero(heard)
    sung = tone("hear this")
    # Between frames that had not come yet there may be silence; what sounds is all of it, in order.
    assert np.array_equal(heard[sounding], sung[np.flatnonzero(sung)])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ImportError", "error: to play sound, the package sounddevice is needed (install it with: pip install"),
        (
            "raise OSError('PortAudio library not found')",
            "error: to play sound, PortAudio is needed: PortAudio library not",
        ),
        (
            "def OutputStream(**_):\n    raise RuntimeError('no device')",
            "error: there are no speakers here: no device (write a file instead: -o FILE.wav)",
        ),
    ],
)
async def test_without_speakers_it_says_so(server: Server, tmp_path: Path, module: str, reason: str) -> None:
    (tmp_path / "sounddevice.py").write_text(module)
    done = await say("x", *at(server), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.code == 1
    assert done.err.startswith(reason)
    assert len(done.err.splitlines()) == 1


async def test_what_is_wrong_is_one_line(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "kept.wav"
    kept.write_bytes(b"precious")
    unknown = await say("x", "-o", "kept.wav", "--voice", "alva.wav", *at(server), cwd=tmp_path)
    assert unknown.code == 1
    assert unknown.err.startswith("error: there is no voice 'alva.wav'; did you mean 'alba.wav'?")
    nobody = await say("x", "-o", "kept.wav", "--url", f"127.0.0.1:{free_port()}", cwd=tmp_path)
    assert (nobody.code, nobody.err.count("\n")) == (1, 1)
    assert "no server answers at" in nobody.err
    missing = await say("-f", "missing.txt", "-o", "kept.wav", cwd=tmp_path)
    assert (missing.code, missing.err) == (1, "error: missing.txt: No such file or directory\n")
    toml = tmp_path / "none.toml"
    toml.write_text('static_dir = "."\nlog_dir = "."\ninstance_name = "x"\n')
    local = await say("x", "-o", "kept.wav", "--config", "none.toml", cwd=tmp_path)
    assert local.code == 1
    assert "it has no text-to-speech module" in local.err
    folder = await say("x", "-o", "no/such/folder.wav", *at(server), cwd=tmp_path)
    assert (folder.code, folder.err) == (1, "error: no/such/folder.wav cannot be written: No such file or directory\n")
    assert kept.read_bytes() == b"precious"
    nothing = await say("", "-o", "empty.wav", *at(server), cwd=tmp_path)
    assert (nothing.code, (tmp_path / "empty.wav").stat().st_size) == (0, 44)
    for wrong in (["x", "-o", "out.mp3"], ["x", "-f", "y"], ["x", "--cpu", "--url", "a"]):
        assert (await say(*wrong, cwd=tmp_path)).code == 2
