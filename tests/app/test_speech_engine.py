"""The real engine over a real socket: a small checkpoint that babbles, as published files configure it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import websockets

from moshi_server.app.factory import hooks_for
from moshi_server.app.serve import served
from moshi_server.audio import read_audio
from moshi_server.client import TtsClient
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.metrics import Metrics

from ..golden import tts_spec
from ..speaking import DELAY, HEAD, VOICES, py_module, write_candle, write_package
from .server import KEY, Server, close_of, message, running, until
from .test_speech import connect, decoded
from .test_synthesis import post, samples

TEXT = "abc de fgh i jkl"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.asynccontextmanager
async def serving(folder: Path, text: str) -> AsyncIterator[Server]:
    path = folder / "config.toml"
    path.write_text(HEAD + text)
    metrics = Metrics()
    (built,) = build_engines(
        load_config(path), device=None, hooks_for=lambda name, kind: hooks_for(metrics.module(kind))
    )
    async with running([served(built, metrics)], metrics=metrics) as server:
        yield server


@pytest.fixture
async def batched(tmp_path: Path) -> AsyncIterator[Server]:
    write_package(tmp_path)
    async with serving(tmp_path, py_module(tmp_path, batch_size=3)) as server:
        yield server


async def speech(
    server: Server, *data: bytes | str, query: str = "format=PcmMessagePack"
) -> tuple[list[Any], int, str]:
    async with connect(server, query) as client:
        with contextlib.suppress(websockets.ConnectionClosed):  # the server may have had enough already
            for each in data:
                await client.send(each)
        return await close_of(client, 60)


def sound(events: list[Any]) -> np.ndarray:
    return np.concatenate([event["pcm"] for event in events if event["type"] == "Audio"]).astype(np.float32)


async def test_a_stream_from_text_to_the_close(batched: Server) -> None:
    got, code, _ = await speech(batched, message("Text", text=TEXT), message("Eos"))
    assert code == 1000
    assert got[0] == {"type": "Ready"}
    words = [event for event in got if event["type"] == "Text"]
    assert [word["text"] for word in words] == TEXT.split()
    pcm = sound(got)
    assert len(pcm) == 1920 * (round(words[-1]["stop_s"] * 12.5) - DELAY - 2)
    assert np.abs(pcm).max() > 0.01
    # The same by POST, by Opus, a word a message, and among others.
    answer = await post(batched, text=TEXT)
    assert np.abs(samples(answer.content[44:]) - pcm).max() < 1e-4
    others = [speech(batched, message("Text", text="zy xw v"), message("Eos")) for _ in range(2)]
    slowly = [message("Text", text=word) for word in TEXT.split()] + [b"\0"]
    (again, _, _), *_ = await asyncio.gather(speech(batched, *slowly), *others)
    assert np.abs(sound(again) - pcm).max() < 1e-3
    async with connect(batched, "format=OggOpus") as client:
        await client.send(TEXT)
        await client.send(b"\0")
        pages = [page async for page in client]
    assert len(decoded(b"".join(pages))) == len(pcm)


async def test_voices_by_name_and_embedding(batched: Server) -> None:
    (listed,) = (await batched.get("/api/voices")).json()
    assert listed["voices"] == list(VOICES)
    assert listed["default"] == "alice.wav"
    text, end = message("Text", text=TEXT), message("Eos")
    default, _, _ = await speech(batched, text, end)
    named, _, _ = await speech(batched, text, end, query="format=PcmMessagePack&voice=bob.wav")
    embedding = np.asarray(tts_spec.voice(1), np.float32)
    voice = message("Voice", embeddings=embedding.reshape(-1).tolist(), shape=list(embedding.shape))
    (sent, code, _), (again, _, _) = [await speech(batched, voice, text, end) for _ in range(2)]
    assert code == 1000
    assert np.abs(sound(sent) - sound(again)).max() < 1e-3
    # A named voice is given twice, as upstream does, and an embedding once.
    assert len({sound(events)[:1920].tobytes() for events in (default, named, sent)}) == 3


async def test_bad_input_gets_a_reason_and_nobody_else_is_disturbed(batched: Server) -> None:
    text, end = message("Text", text=TEXT), message("Eos")
    whole, _, _ = await speech(batched, text, end)
    wrong = message("Voice", embeddings=[0.5] * 6, shape=[1, 2, 3])
    bad: list[tuple[list[bytes | str], str, int, str]] = [
        ([text, end], "format=PcmMessagePack&voice=alise.wav", 4005, "did you mean 'alice.wav'"),
        ([wrong], "format=PcmMessagePack", 4003, "a voice of shape"),
        ([message("Voice", embeddings=[0.5], shape=[1])], "format=PcmMessagePack", 4003, "a voice of shape"),
    ]
    for data, query, code, reason in bad:
        (fine, _, _), (got, closed, said) = await asyncio.gather(
            speech(batched, text, end), speech(batched, *data, query=query)
        )
        assert closed == code
        assert got[-1]["type"] == "Error"
        assert reason in said
        assert np.abs(sound(fine) - sound(whole)).max() < 1e-3
    assert await speech(batched, end) == ([{"type": "Ready"}], 1000, "")
    assert await speech(batched, message("Text", text="\x00 \x07"), end) == ([{"type": "Ready"}], 1000, "")
    got, code, _ = await speech(batched, message("Text", text="ab \U0001f642\u200d \x00cd"), end)
    assert code == 1000
    assert next(event["text"] for event in got if event["type"] == "Text") == "ab"
    await until(lambda: batched.engines[0].slots_used == 0)


async def test_a_megabyte_in_one_message_holds_up_nobody(batched: Server) -> None:
    text, end = message("Text", text=TEXT), message("Eos")
    async with connect(batched) as big:
        await big.send(message("Text", text="word " * 200_000))
        assert msgpack.unpackb(await big.recv()) == {"type": "Ready"}
        got, code, _ = await speech(batched, text, end)
        assert code == 1000
        assert [event["text"] for event in got if event["type"] == "Text"] == TEXT.split()
    await until(lambda: batched.engines[0].slots_used == 0)


async def test_metrics_of_a_stream(batched: Server) -> None:
    async with TtsClient.connect(batched.ws("", ""), api_key=KEY) as client:
        spoken = await client.speak(TEXT)
    assert [word.text for word in spoken.words] == TEXT.split()
    await until(lambda: batched.engines[0].slots_used == 0)
    assert await batched.metric('py_connect{handler="all"}') == 1
    assert await batched.metric('py_active_steps{handler="all"}') > 0
    assert await batched.metric('py_could_have_run_steps{handler="all"}') > 0
    assert await batched.metric("py_model_connection_num_steps_count") == 1


async def test_the_single_stream_module(tmp_path: Path) -> None:
    async with serving(tmp_path, write_candle(tmp_path)) as server:
        fields: dict[str, Any] = {"text": ["abc de", "fgh"], "temperature": 0.0, "seed": 1, "top_k": 1}
        answer = await post(server, "/api/tts", **fields, voice="one.wav", return_timestamps=True)
        assert answer.status_code == 200
        transcript = answer.json()["transcript"]
        assert [word["text"] for word in transcript] == ["abc", "de", "fgh"]
        pcm = read_audio(base64.b64decode(answer.json()["wav"]))
        assert len(pcm) >= 1920 * 5
        both = await post(server, "/api/tts", **fields, voices=["one.wav", "two.wav"], cfg_alpha=2.0)
        assert both.headers["content-type"] == "audio/wav"
        assert not np.array_equal(read_audio(both.content)[:9600], pcm[:9600])
        for voice in ("../lm.safetensors", str(tmp_path / "lm.safetensors"), "onne.wav"):
            refused = await post(server, "/api/tts", **fields, voice=voice)
            assert refused.status_code == 404
            assert "there is no voice" in refused.json()["error"]
        query = "format=PcmMessagePack&voice=one.wav&temperature=0&top_k=1"
        async with connect(server, query, "/api/tts_streaming") as client:
            for word in ("abc", "de", "fgh"):
                await client.send(word)
            await client.send(b"\0")
            got, code, _ = await close_of(client, 60)
        assert code == 1000
        assert [event["text"] for event in got if event["type"] == "Text"] == ["abc", "de", "fgh"]
        assert json.loads((await server.get("/api/modules_info")).content)[0]["type"] == "tts"
