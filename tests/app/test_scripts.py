"""Users' scripts from configuration to socket: the examples, the built-in voice embedding, and scripts that fail."""

from __future__ import annotations

import asyncio
import contextlib
import io
import textwrap
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest
import websockets

from moshi_server.app.factory import hooks_for
from moshi_server.app.serve import served
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.errors import EngineFailedError
from moshi_server.metrics import Metrics

from .server import KEY, Server, audio, close_of, events, message, running

EXAMPLES = Path(__file__).parents[2] / "examples" / "scripts"
HEAD = 'static_dir = "static"\nlog_dir = "logs"\ninstance_name = "test"\n'
LOUD = """
[modules.loud]
type = "PyBatchedAsr"
path = "/api/loud"
script = "{script}"
batch_size = 2
text_tokenizer_file = "demo://tokenizer.model"
asr_delay_in_tokens = 1
script_timeout_seconds = {seconds}
{more}
"""
POST = """
[modules.voice]
type = "PyPost"
path = "/api/voice"
{more}
"""
HANG = """
    import time
    class Service:
        def step(self, *arguments):
            time.sleep({seconds})
    def init(batch_size, config):
        return Service()
"""


def loud(script: Path = EXAMPLES / "asr_loudness.py", *, seconds: float = 30.0, more: str = "") -> str:
    return LOUD.format(script=script, seconds=seconds, more=more)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, *modules: str, wait: bool = True) -> AsyncIterator[Server]:
    path = tmp_path / "config.toml"
    path.write_text(HEAD + "".join(modules))
    metrics = Metrics()
    built = build_engines(
        load_config(path), device="cpu", hooks_for=lambda _, kind: hooks_for(metrics.module(kind)), env={}
    )
    async with running([served(each, metrics) for each in built], metrics=metrics, wait=wait) as server:
        yield server


def wav(seconds: float, rate: int = 24_000) -> bytes:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def mine(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text).lstrip())
    return path


async def test_the_example_of_speech_to_text_over_a_socket(tmp_path: Path) -> None:
    options = "[modules.loud.py]\nthreshold = 0.1\ntoken = 7"
    frames = np.repeat(np.array([0.5, 0.5, 0, 0, 0.05, 0, 0.5, 0.5, 0, 0], np.float32), 1920)
    async with serving(tmp_path, loud(more=options)) as server, server.connect("/api/loud") as client:
        await client.send(audio(frames))
        await client.send(message("Marker", id=4))
        got = await events(client, "Marker")
        words = [
            (event["type"], event.get("start_time", event.get("stop_time"))) for event in got if "time" in str(event)
        ]
        assert words == [
            ("Word", 0.0),
            ("EndWord", pytest.approx(0.16)),
            ("Word", pytest.approx(0.16)),
            ("EndWord", pytest.approx(0.64)),
        ]
        assert [event["prs"][0] for event in got if event["type"] == "Step"] == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
        assert await server.metric('asr_open_channels{handler="all"}') == 1
        file = await server.post(wav(1.0), "/api/loud")
        assert [event["type"] for event in file.json()] == ["Word", "EndWord"]


@pytest.mark.parametrize(("seconds", "rate"), [(2.0, 24_000), (12.0, 16_000)])
async def test_the_example_of_a_recording_in_and_an_array_out(tmp_path: Path, seconds: float, rate: int) -> None:
    more = f'script = "{EXAMPLES / "post_spectrum.py"}"\n[modules.voice.py]\nbands = 12'
    async with serving(tmp_path, POST.format(more=more)) as server:
        answer = await server.post(wav(seconds, rate), "/api/voice")
        assert answer.status_code == 200
        voice = msgpack.unpackb(answer.content)
        assert list(voice) == ["type", "embeddings", "shape"]
        assert (voice["type"], voice["shape"]) == ("Voice", [1, 12, 40])
        bands = np.array(voice["embeddings"], np.float32).reshape(12, 40)
        heard = min(40, round(seconds * 4))
        assert bands[0, : heard - 1].min() > 3  # 440 Hz lies in the lowest band
        assert (bands[:, heard:] < -5).all()  # the rest of the ten seconds is silence
        assert await server.metric('py_post_connect{handler="all"}') == 1
        assert await server.metric("py_post_model_duration_count") == 1


async def test_the_built_in_voice_embedding_is_mimis_latents(tmp_path: Path) -> None:
    more = '[modules.voice.py]\nmimi_weight = "demo://mimi.safetensors"'
    async with serving(tmp_path, POST.format(more=more)) as server:
        first = msgpack.unpackb((await server.post(wav(3), "/api/voice")).content)
        again = msgpack.unpackb((await server.post(wav(3), "/api/voice")).content)
        assert first["shape"] == [1, 192, 125]
        assert len(first["embeddings"]) == 192 * 125
        assert first == again
        refused = await server.post(b"no audio at all", "/api/voice")
        assert refused.status_code == 400
        assert (await server.post(wav(1), "/api/voice", headers={})).status_code == 401
        assert (await server.get("/api/voice")).status_code in (404, 405)


async def test_a_script_that_hangs_takes_no_other_module_down(tmp_path: Path) -> None:
    hanging = loud(mine(tmp_path, HANG.format(seconds=5)), seconds=0.5).replace("loud", "stuck")
    for warm in (True, False):
        modules = (hanging, loud(), "" if warm else "[warmup]\nenabled = false\n")
        async with serving(tmp_path, *modules) as server:
            async with server.connect("/api/loud") as well, server.connect("/api/stuck") as stuck:
                with contextlib.suppress(websockets.ConnectionClosed):
                    await stuck.send(audio(np.zeros(1920, np.float32)))
                last, code, reason = await close_of(stuck)
                assert code == 1011
                assert reason.startswith(
                    "module stuck has failed: script mine.py, line" if warm else "script mine.py, line 4"
                )
                assert "has not come back for 0.5 s" in last[-1]["message"]
                await well.send(audio(np.zeros(1920, np.float32)))
                await well.send(message("Flush"))
                await events(well, "Flush")
            health = await server.get("/api/health")
            assert (health.status_code, health.json()) == (200, {"status": "degraded"})
            assert [module["status"] for module in (await server.get("/api/status")).json()["modules"]] == [
                "failed",
                "ready",
            ]


async def test_a_script_that_cannot_be_imported_takes_no_other_module_down(tmp_path: Path) -> None:
    broken = loud(mine(tmp_path, "import nothing_of_this_name")).replace("loud", "broken")
    async with serving(tmp_path, broken, loud()) as server:
        async with server.connect("/api/loud") as client:
            await client.send(message("Flush"))
            await events(client, "Flush")
        async with server.connect("/api/broken") as client:
            _, code, reason = await close_of(client)
            assert code == 1011
            assert reason.startswith(
                "module broken has failed: script mine.py, line 1: it cannot be started: ModuleNot"
            )
        assert (await server.get("/api/health")).json() == {"status": "degraded"}


async def test_a_server_with_nothing_but_a_broken_script_does_not_start(tmp_path: Path) -> None:
    broken = loud(mine(tmp_path, "x = 1"))
    with pytest.raises(AssertionError, match="does not answer"):
        async with serving(tmp_path, broken, wait=False) as server:
            with pytest.raises(EngineFailedError, match=r"script mine\.py: it has no function init"):
                await asyncio.wait_for(server.task, 10)
            raise AssertionError("the server does not answer")


def test_without_a_script_or_a_file_it_is_said_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text, reason in (
        (POST.format(more=""), "no mimi_weight"),
        (POST.format(more="[modules.voice.py]\nmimi = 3"), "unknown key 'mimi'"),
    ):
        path.write_text(HEAD + text)
        with pytest.raises(Exception, match=reason):
            build_engines(load_config(path), device="cpu", hooks_for=lambda *_: hooks_for(Metrics().module("")), env={})


TONES = """
[modules.tones]
type = "Py"
path = "/api/tones"
script = "{script}"
batch_size = 2
text_tokenizer_file = "demo://tokenizer.model"
text_bos_token = 1
"""


async def test_the_example_of_text_to_speech_over_a_socket_and_by_post(tmp_path: Path) -> None:
    tones = TONES.format(script=EXAMPLES / "tts_tones.py")
    async with serving(tmp_path, tones) as server:
        query = f"?auth_id={KEY}&format=PcmMessagePack&voice=quiet"
        async with server.connect("/api/tones", query) as client:
            await client.send(message("Text", text="one two"))
            await client.send(message("Eos"))
            got, code, _ = await close_of(client)
        assert code == 1000
        assert got[0] == {"type": "Ready"}
        words = [event["text"] for event in got if event["type"] == "Text"]
        assert words == ["one", "two"]
        pcm = np.concatenate([event["pcm"] for event in got if event["type"] == "Audio"])
        assert len(pcm) % 1920 == 0
        assert np.abs(pcm).max() == pytest.approx(0.1, rel=1e-3)
        assert await server.metric('py_could_have_run_steps{handler="all"}') >= len(pcm) / 1920
        async with httpx.AsyncClient(base_url=server.http, headers={"kyutai-api-key": KEY}) as http:
            answer = await http.post("/api/tones", json={"text": "one two", "voice": "loud"})
        assert answer.status_code == 200
        assert answer.content[:4] == b"RIFF"
        assert len(answer.content) >= len(pcm) * 2
