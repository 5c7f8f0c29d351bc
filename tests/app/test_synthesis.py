"""Whole texts by POST over a real server: a wav that streams, JSON with words, the queue, and clients that go away."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket as sockets
import struct
import time
import wave
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from moshi_server.app.module import ClientLimits
from moshi_server.speech.voices import Voices

from ..speech_fakes import FRAME, ToneRunner, ToneStream, frames_of
from .server import KEY, Server, message, until
from .test_speech import PATH, connect, speaking, tone


async def post(server: Server, path: str = PATH, **fields: Any) -> httpx.Response:
    return await server.post(json.dumps(fields), path)


def samples(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32767


async def test_a_wav_that_streams() -> None:
    async with speaking() as server:
        answer = await post(server, text="hello to you", voice="alba.wav")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "audio/wav"
        assert "content-length" not in answer.headers
        # As upstream writes it: the lengths are not known yet.
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 24_000, 48_000, 2, 16)
        assert answer.content[:44] == b"RIFF\xff\xff\xff\xffWAVE" + form + b"data\xff\xff\xff\xff"
        assert np.abs(samples(answer.content[44:]) - tone("hello to you")).max() < 1e-4
        assert await server.metric('py_connect{handler="all"}') == 1
        await until(lambda: server.engines[0].slots_used == 0)


async def test_sound_comes_before_all_of_it_is_made() -> None:
    runner = ToneRunner(1)
    runner.before_step = lambda: time.sleep(0.03)
    async with speaking(runner) as server, httpx.AsyncClient(base_url=server.http) as client:
        start = time.monotonic()
        headers = {"kyutai-api-key": KEY}
        async with client.stream("POST", PATH, json={"text": "words " * 10}, headers=headers) as answer:
            first = 0.0
            size = 0
            async for data in answer.aiter_bytes():
                size += len(data)
                first = first or time.monotonic() - start
        assert size == 44 + 2 * FRAME * frames_of("words " * 10)
        assert first < (time.monotonic() - start) / 2


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "must be a JSON object"),
        (b"{", 400, "must be a JSON object"),
        (b"[" * 100_000, 400, "must be a JSON object"),
        (b"\xff\xfe", 400, "must be a JSON object"),
        (b"[1]", 400, "the request: "),
        (b"{}", 400, "text: "),
        (b'{"text": 5}', 400, "text"),
        (b'{"text": "a", "voice": 5}', 400, "voice: "),
        (b'{"text": "a", "seed": -1}', 400, "seed: "),
        (b'{"text": "a", "temperature": 1e999}', 400, "temperature: "),
        (b'{"text": "a", "voice": "alva.wav"}', 404, "there is no voice 'alva.wav'; did you mean 'alba.wav'?"),
        (b'{"text": "a", "voice": "alba.wav", "voices": ["alba.wav"]}', 400, "exclude each other"),
        (b'{"text": "' + b"a" * 1_100_000 + b'"}', 413, "larger than 1 MiB"),
    ],
)
async def test_what_is_refused_and_why(body: bytes, status: int, reason: str) -> None:
    async with speaking(limits=ClientLimits(max_message_bytes=2**20)) as server:
        answer = await server.post(body, PATH)
        assert answer.status_code == status
        assert reason in answer.json()["error"]
        assert server.engines[0].slots_used == 0


async def test_nothing_to_say_is_an_empty_wav() -> None:
    async with speaking() as server:
        assert len((await post(server, text="")).content) == 44


async def test_a_full_module_makes_posts_wait_and_then_refuses() -> None:
    limits = ClientLimits(post_wait_seconds=2.0, max_waiting_posts=1)
    async with speaking(ToneRunner(1), limits=limits) as server:
        async with connect(server) as client:
            await client.recv()
            waiting = asyncio.create_task(post(server, text="a"))
            await until(lambda: server.engines[0].slots_waiting == 1)
            second = asyncio.create_task(post(server, text="a"))
            await until(lambda: server.engines[0].slots_waiting == 2)
            third = await post(server, text="a")  # 1 slot and 1 waiting place are taken
            assert third.status_code == 503
            assert "too many" in third.json()["error"]
            for answer in (await waiting, await second):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            waiting = asyncio.create_task(post(server, text="a b"))
            await until(lambda: server.engines[0].slots_waiting == 1)
            await client.send(message("Eos"))
        assert (await waiting).status_code == 200


async def test_a_client_that_goes_away_frees_its_slot() -> None:
    runner = ToneRunner(1)
    runner.before_step = lambda: time.sleep(0.01)
    async with speaking(runner) as server:
        async with httpx.AsyncClient(base_url=server.http) as client:
            body = {"text": "endless " * 10_000}
            async with client.stream("POST", PATH, json=body, headers={"kyutai-api-key": KEY}) as answer:
                assert answer.status_code == 200
                assert server.engines[0].slots_used == 1
        await until(lambda: server.engines[0].slots_used == 0)
        assert (await post(server, text="next")).status_code == 200


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    async with speaking(ToneRunner(1), limits=ClientLimits(send_seconds=0.5), send_buffer=4096) as server:
        stuck = sockets.socket()
        stuck.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.port))
        body = json.dumps({"text": "endless " * 5000}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nkyutai-api-key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        await asyncio.to_thread(stuck.sendall, head.encode() + body)
        await until(lambda: server.engines[0].slots_used == 1)
        await until(lambda: server.engines[0].slots_used == 0, 15)
        await until(lambda: server.worker.open_connections == 0, 5)
        stuck.close()


async def test_speech_that_fails_is_a_broken_download_and_not_a_short_wav() -> None:
    runner = ToneRunner(1)

    def fail() -> None:
        if len(runner.batches) > 20:
            raise RuntimeError("broken")

    runner.before_step = fail
    async with speaking(runner) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await post(server, text="endless " * 100)
        assert (await post(server, text="a b")).status_code == 500


async def test_all_of_it_with_its_words() -> None:
    streams: list[ToneStream] = []
    async with speaking(kind="Tts", streams=streams) as server:
        fields = {"text": ["hello to", "you"], "seed": 42, "temperature": 0.8, "top_k": 250, "voice": "alba.wav"}
        answer = await post(server, "/api/tts", **fields, cfg_alpha=2.0, max_seq_len=300)
        assert answer.headers["content-type"] == "audio/wav"
        with wave.open(io.BytesIO(answer.content)) as file:
            assert (file.getframerate(), file.getnframes()) == (24_000, FRAME * frames_of("hello to you"))
        settings = streams[0].settings
        assert (settings.seed, settings.temperature, settings.top_k) == (42, 0.8, 250)
        assert (settings.cfg_alpha, settings.max_steps, settings.voice) == (2.0, 300, "alba.wav")

        timed = (await post(server, "/api/tts", **fields, return_timestamps=True)).json()
        assert list(timed) == ["wav", "transcript"]
        assert base64.b64decode(timed["wav"]) == answer.content
        assert timed["transcript"] == [
            {"text": "hello", "start_s": 0.0, "stop_s": pytest.approx(0.4)},
            {"text": "to", "start_s": pytest.approx(0.4), "stop_s": pytest.approx(0.56)},
            {"text": "you", "start_s": pytest.approx(0.56), "stop_s": pytest.approx(0.8)},
        ]
        both = await post(server, "/api/tts", text="a", voices=["alba.wav", "expresso/happy.wav"])
        assert both.status_code == 200
        assert streams[-1].settings.voices == ("alba.wav", "expresso/happy.wav")
        nobody = await post(server, "/api/tts", text="a")
        assert (nobody.status_code, nobody.json()["error"]) == (400, "either voice or voices must be given")


async def test_a_voice_file_stays_in_its_folder(tmp_path: Any) -> None:
    (tmp_path / "voices").mkdir()
    for file in (tmp_path / "voices" / "mine.wav", tmp_path / "secret.wav"):
        file.write_bytes(b"x")
    async with speaking(kind="Tts", voices=Voices(folder=tmp_path / "voices")) as server:
        assert (await post(server, "/api/tts", text="a", voice="mine.wav+1.5")).status_code == 200
        for name in ("../secret.wav", str(tmp_path / "secret.wav")):
            answer = await post(server, "/api/tts", text="a", voice=name)
            assert answer.status_code == 404
            assert "there is no voice" in answer.json()["error"]


async def test_the_streaming_path_of_a_single_stream_module() -> None:
    async with speaking(kind="Tts") as server:
        query = "format=PcmMessagePack&voice=alba.wav&cfg_alpha=1.5"
        async with connect(server, query, "/api/tts_streaming") as client:
            await client.send("hello there")
            await client.send(b"\0")
            words = []
            async for data in client:
                event = msgpack.unpackb(data)
                words += [event["text"]] if event["type"] == "Text" else []
            assert words == ["hello", "there"]
            assert client.close_code == 1000
