"""Speech over a real socket, by a runner that sings: formats, words, bad input, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket as sockets
import time
from collections.abc import AsyncIterator
from typing import Any

import av
import msgpack
import numpy as np
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from moshi_server.app.factory import hooks_for
from moshi_server.app.module import ClientLimits, ServedModule
from moshi_server.engine.worker import Engine, EngineLimits
from moshi_server.metrics import Metrics
from moshi_server.speech.voices import Voices

from ..speech_fakes import FRAME, ToneRunner, ToneStream, frames_of
from .server import KEY, Server, close_of, message, running, until

PATH = "/api/tts_streaming"
LONG = "word" * 50
VOICES = Voices(["alba.wav", "expresso/happy.wav"], default="alba.wav")


@contextlib.asynccontextmanager
async def speaking(
    runner: ToneRunner | None = None,
    *,
    kind: str = "Py",
    limits: ClientLimits | None = None,
    engine_limits: EngineLimits | None = None,
    voices: Voices | None = VOICES,
    streams: list[ToneStream] | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    def make() -> ToneStream:
        stream = ToneStream()
        if streams is not None:
            streams.append(stream)
        return stream

    metrics = Metrics()
    counted = metrics.module(kind)
    engine = Engine("tts", kind, runner or ToneRunner(4), make, limits=engine_limits, hooks=hooks_for(counted))
    path = PATH if kind == "Py" else "/api/tts"
    module = ServedModule("tts", kind, path, engine, counted, limits=limits or ClientLimits(), voices=voices)
    async with running([module], metrics=metrics, **options) as server:
        yield server


def connect(server: Server, query: str = "format=PcmMessagePack", path: str = PATH, **options: Any) -> Any:
    return server.connect(path, f"?auth_id={KEY}&{query}", **options)


async def received(socket: websockets.ClientConnection, seconds: float = 20) -> tuple[list[Any], int]:
    """Every raw message until the server closes, and the close code."""
    got: list[Any] = []
    async with asyncio.timeout(seconds):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                got.append(await socket.recv())
    assert socket.close_code is not None
    return got, socket.close_code


def tone(text: str) -> np.ndarray:
    """What the fake sings for words without pauses."""
    sung = (frames_of(text) - 2) * FRAME
    pcm = 0.5 * np.sin(2 * np.pi * 440 * np.arange(sung) / 24_000)
    return np.concatenate([pcm, np.zeros(2 * FRAME)]).astype(np.float32)


async def test_ready_then_sound_and_words_then_a_normal_close() -> None:
    async with speaking() as server, connect(server) as client:
        await client.send(message("Text", text="hello to you"))
        await client.send(message("Eos"))
        got, code, reason = await close_of(client)
        assert (code, reason) == (1000, "")
        assert got[0] == {"type": "Ready"}
        pcm = np.concatenate([event["pcm"] for event in got if event["type"] == "Audio"])
        assert np.abs(pcm - tone("hello to you")).max() < 1e-6
        assert [event for event in got if event["type"] == "Text"] == [
            {"type": "Text", "text": "hello", "start_s": 0.0, "stop_s": pytest.approx(0.4)},
            {"type": "Text", "text": "to", "start_s": pytest.approx(0.4), "stop_s": pytest.approx(0.56)},
            {"type": "Text", "text": "you", "start_s": pytest.approx(0.56), "stop_s": pytest.approx(0.8)},
        ]
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('ws_close_total{code="1000",reason="normal"}') == 1


async def test_words_are_spoken_as_they_come_and_a_stream_without_them_waits() -> None:
    async with speaking() as server, connect(server) as client:
        await client.recv()
        await client.send(message("Text", text="one"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.recv()
        await client.send(message("Text", text="two"))
        first = [msgpack.unpackb(await client.recv()) for _ in range(4)]
        assert [event["type"] for event in first] == ["Audio"] * 3 + ["Text"]
        await client.send(message("Eos"))
        got, code, _ = await close_of(client)
        assert code == 1000
        assert [event["text"] for event in got if event["type"] == "Text"] == ["two"]


async def test_samples_without_messages() -> None:
    async with speaking() as server, connect(server, "format=Pcm") as client:
        await client.send("some words")
        await client.send(b"\0")
        got, code = await received(client)
        assert code == 1000
        assert [len(data) for data in got] == [4 * FRAME] * frames_of("some words")
        assert np.abs(np.frombuffer(b"".join(got), "<f4") - tone("some words")).max() < 1e-6


def decoded(data: bytes) -> np.ndarray:
    """An Opus stream to samples at 24 kHz, by FFmpeg's decoder, which shares nothing with ours."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(frames or [np.zeros(0, np.float32)])[::2]


async def test_opus_is_the_default_and_has_no_gap_and_the_right_length() -> None:
    async with speaking() as server, connect(server, "x=1") as client:
        header = await client.recv()
        assert header.startswith(b"OggS")
        assert b"OpusHead" in header
        assert b"OpusTags" in header
        await client.send(message("Text", text="quite a long sentence"))
        await client.send(message("Eos"))
        got, code = await received(client)
        assert code == 1000
        pcm, sung = decoded(header + b"".join(got)), tone("quite a long sentence")
        assert len(pcm) == len(sung)
        assert worst(pcm, sung) < 0.45
        assert worst(np.delete(pcm, slice(5000, 5010)), sung) > 0.8  # ten samples lost at a page's border are seen


def worst(pcm: np.ndarray, sung: np.ndarray) -> float:
    """The largest error of any 20 ms of a decoded tone, relative to it; the codec's own comes to a third at times."""
    inside = min(len(pcm), len(sung) - 3 * FRAME) // 480 * 480  # the tone's end is no matter
    error = (pcm[:inside] - sung[:inside]).reshape(-1, 480)
    return float(np.sqrt((error**2).mean(axis=1)).max() / np.sqrt((sung[:FRAME] ** 2).mean()))


async def test_opus_in_messages() -> None:
    async with speaking() as server, connect(server, "format=OggOpusMessagePack") as client:
        await client.send(message("Text", text="and so on"))
        await client.send(message("Eos"))
        got, code, _ = await close_of(client)
        assert code == 1000
        assert [event["type"] for event in got[:2]] == ["Ready", "OggOpus"]
        assert [event["text"] for event in got if event["type"] == "Text"] == ["and", "so", "on"]
        data = b"".join(bytes(event["data"]) for event in got if event["type"] == "OggOpus")
        assert len(decoded(data)) == frames_of("and so on") * FRAME


async def test_text_frames_and_pieces() -> None:
    async with speaking() as server, connect(server, "format=PcmMessagePack&pieces=1") as client:
        for piece in ("hel", "lo wo", "rld <bre", 'ak time="0.16s"/>', " en", "d"):
            await client.send(piece)
        await client.send(b"\0")
        got, code, _ = await close_of(client)
        words = [event["text"] for event in got if event["type"] == "Text"]
        assert words == ["hello", "world", '<break time="0.16s">', "end"]
        assert code == 1000


@pytest.mark.parametrize(
    ("messages", "code", "reason"),
    [
        ([b"\xc1"], 4003, "not valid MessagePack"),
        ([message("Shout")], 4003, "unknown message type 'Shout'"),
        ([message("Text", text=3)], 4003, "'text' must be a string"),
        ([message("Voice", embeddings=[1.0, 2.0], shape=[3])], 4003, "its 'shape' is (3,)"),
        ([message("Voice", embeddings=[1.0, 2.0], shape=[1, 2])], 4003, "the voice has the shape (1, 2)"),
        ([message("Text", text="a"), message("Voice", embeddings=[1.0], shape=[1])], 4003, "before the text"),
        ([message("Text", text=LONG), message("Eos"), message("Text", text="c")], 4003, "said to be complete"),
        ([LONG, message("Eos"), message("Eos"), "b"], 4003, "said to be complete"),
    ],
)
async def test_bad_input_ends_this_stream_with_a_reason_and_no_other(
    messages: list[bytes | str], code: int, reason: str
) -> None:
    runner = ToneRunner(2)
    runner.before_step = lambda: time.sleep(0.02)
    async with speaking(runner) as server, connect(server) as other, connect(server) as client:
        await other.send(message("Text", text="not disturbed"))
        await other.send(message("Eos"))
        for data in messages:
            await client.send(data)
        got, closed, said = await close_of(client)
        assert closed == code
        assert got[-1]["type"] == "Error"
        assert reason in got[-1]["message"]
        assert reason in said
        got, closed, _ = await close_of(other)
        assert closed == 1000
        assert sum(event["type"] == "Audio" for event in got) == frames_of("not disturbed")
        await until(lambda: server.engines[0].slots_used == 0)


async def test_the_end_of_the_text_first_is_an_empty_speech() -> None:
    async with speaking() as server:
        for end in (message("Eos"), b"\0"):
            async with connect(server) as client:
                await client.send(end)
                assert await close_of(client) == ([{"type": "Ready"}], 1000, "")
        async with connect(server, "format=OggOpus") as client:
            await client.send(b"\0")
            got, code = await received(client)
            assert code == 1000
            assert len(decoded(b"".join(got))) == 0


async def test_an_unknown_voice_is_named_with_near_ones() -> None:
    async with speaking() as server:
        async with connect(server, "format=PcmMessagePack&voice=expresso/hapy.wav") as client:
            got, code, reason = await close_of(client)
            assert code == 4005
            assert [event["type"] for event in got] == ["Error"]
            assert got[0]["message"] == "there is no voice 'expresso/hapy.wav'; did you mean 'expresso/happy.wav'?"
            assert reason == got[0]["message"]
        async with connect(server, "format=Pcm&voice=nobody") as client:
            assert await received(client) == ([], 4005)
        assert server.engines[0].slots_used == 0
        errors = await server.metric('connection_error_total{error_type="not_found",module="tts"}')
        assert errors == 2


async def test_what_the_query_says_reaches_the_engine() -> None:
    streams: list[ToneStream] = []
    query = (
        "format=Pcm&voice=expresso/happy.wav&seed=7&temperature=0.5&top_k=20&cfg_alpha=1.5&max_seq_len=300&unknown=1"
    )
    async with speaking(streams=streams) as server, connect(server, query) as client:
        await client.send(b"\0")
        await received(client)
    settings = streams[0].settings
    assert (settings.voice, settings.seed, settings.temperature) == ("expresso/happy.wav", 7, 0.5)
    assert (settings.top_k, settings.max_steps) == (20, 300)
    assert settings.cfg_alpha is None  # a batched module's own, as upstream


@pytest.mark.parametrize(
    "query", ["format=mp3", "seed=-1", "seed=x", "temperature=nan", "temperature=-1", "top_k=1.5", "max_seq_len=0"]
)
async def test_a_query_that_cannot_be_meant_is_refused_before_the_upgrade(query: str) -> None:
    async with speaking() as server:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(server, query):
                pass
        assert caught.value.response.status_code == 400
        assert json.loads(caught.value.response.body)["error"].startswith(query.partition("=")[0])


async def test_a_voice_by_its_embedding() -> None:
    streams: list[ToneStream] = []
    async with speaking(streams=streams) as server, connect(server) as client:
        await client.send(message("Voice", embeddings=[0.5] * 12, shape=[3, 4]))
        await client.send(message("Text", text="hi"))
        await client.send(message("Eos"))
        _, code, _ = await close_of(client)
        assert code == 1000
    assert streams[0].embedding is not None
    assert streams[0].embedding.shape == (3, 4)


async def test_a_megabyte_emoji_and_control_characters_disturb_nobody() -> None:
    async with speaking(ToneRunner(2)) as server:
        async with connect(server) as big, connect(server) as client:
            await big.send(message("Text", text="word " * 200_000))
            await client.send(message("Text", text="hi \x00\x07🙂 \u202e there"))
            await client.send(message("Eos"))
            got, code, _ = await close_of(client)
            assert code == 1000
            assert [event["text"] for event in got if event["type"] == "Text"] == ["hi", "there"]
            assert server.engines[0].slots_used == 1
            assert msgpack.unpackb(await big.recv()) == {"type": "Ready"}
        await until(lambda: server.engines[0].slots_used == 0)


async def test_all_slots_taken() -> None:
    async with speaking(ToneRunner(1)) as server, connect(server) as first:
        await first.recv()
        async with connect(server) as client:
            assert await close_of(client) == (
                [{"type": "Error", "message": "no free channels"}],
                4000,
                "no free channels",
            )
        async with connect(server, "format=OggOpus") as client:
            assert await received(client) == ([], 4000)


async def test_credentials_are_asked_for() -> None:
    async with speaking() as server:
        with pytest.raises(InvalidStatus) as caught:
            async with server.connect(PATH, "?format=Pcm"):
                pass
        assert caught.value.response.status_code == 401
        assert (await server.post(b"{}", PATH, headers={})).status_code == 401
        assert (await server.get(PATH)).status_code == 426


async def test_a_silent_client_loses_its_slot_but_not_while_it_is_spoken_to() -> None:
    limits = ClientLimits(message_seconds=0.4)
    runner = ToneRunner(1)
    runner.before_step = lambda: time.sleep(0.05)
    async with speaking(runner, limits=limits) as server:
        async with connect(server) as client:
            await client.send(message("Text", text="twentyfour-letters-long!"))
            await client.send(message("Eos"))
            got, code, _ = await close_of(client)  # 1.3 s of steps without a word from the client
            assert code == 1000
        async with connect(server) as client:
            await client.send(message("Text", text="more to come"))
            got, code, reason = await close_of(client)
            assert code == 4006
            assert "sent no message for 0.4 s" in reason
            assert got[-1]["type"] == "Error"
        await until(lambda: server.engines[0].slots_used == 0)


async def test_a_client_that_stops_reading_is_closed_and_disturbs_nobody() -> None:
    limits = ClientLimits(send_seconds=0.5)
    async with speaking(ToneRunner(2), limits=limits, send_buffer=4096) as server:
        stuck = sockets.create_connection(("127.0.0.1", server.port))
        stuck.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        head = (
            f"GET {PATH}?auth_id={KEY}&format=Pcm HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        stuck.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        await until(lambda: server.engines[0].slots_used == 1)
        text = ("word " * 20_000).encode()
        stuck.sendall(b"\x81\xff" + len(text).to_bytes(8, "big") + bytes(4) + text)
        async with connect(server) as client:
            await client.send(message("Text", text="still here"))
            await client.send(message("Eos"))
            assert (await close_of(client))[1] == 1000
        await until(lambda: server.engines[0].slots_used == 0, 10)
        assert await server.metric('ws_close_total{code="4006",reason="client_timeout"}') == 1
        stuck.close()


async def test_a_slow_reader_gets_all_of_it() -> None:
    async with speaking(send_buffer=4096) as server, connect(server, max_queue=1) as client:
        text = "sentence " * 20
        await client.send(message("Text", text=text))
        await client.send(message("Eos"))
        await until(lambda: server.engines[0].slots_used == 1)
        sung = 0
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                sung += msgpack.unpackb(await client.recv())["type"] == "Audio"
                if sung % 10 == 0:
                    await asyncio.sleep(0.01)
        assert sung == frames_of(text)
        assert client.close_code == 1000


async def test_more_text_than_may_wait_is_read_as_it_is_spoken() -> None:
    limits = EngineLimits(queue_seconds=0.01)  # 240 characters
    async with speaking(engine_limits=limits) as server, connect(server) as client:
        for _ in range(200):
            await client.send(message("Text", text="a bc def"))
        await client.send(message("Eos"))
        got, code, _ = await close_of(client)
        assert code == 1000
        assert sum(event["type"] == "Text" for event in got) == 600


async def test_many_at_once_hear_each_their_own() -> None:
    async with speaking(ToneRunner(4)) as server:

        async def one(text: str) -> None:
            async with connect(server) as client:
                for word in text.split():
                    await client.send(message("Text", text=word))
                await client.send(message("Eos"))
                got, code, _ = await close_of(client)
                assert code == 1000
                pcm = np.concatenate([event["pcm"] for event in got if event["type"] == "Audio"])
                assert np.abs(pcm - tone(text)).max() < 1e-6

        await asyncio.gather(*(one("hello again " * n) for n in range(1, 5)))


async def test_what_is_served_and_which_voices_there_are() -> None:
    async with speaking() as server:
        (voices,) = (await server.get("/api/voices")).json()
        assert voices == {
            "module": "tts",
            "path": PATH,
            "default": "alba.wav",
            "voices": ["alba.wav", "expresso/happy.wav"],
        }
        assert (await server.get("/api/modules_info")).json()[0]["type"] == "py"
        with pytest.raises(InvalidStatus) as caught:
            async with server.connect("/api/nowhere"):
                pass
        assert json.loads(caught.value.response.body)["paths"] == [PATH]
    async with speaking(kind="Tts") as server:
        with pytest.raises(InvalidStatus) as caught:
            async with server.connect("/api/tts"):
                pass
        assert json.loads(caught.value.response.body)["paths"] == ["/api/tts_streaming"]


async def test_metrics_of_speech() -> None:
    async with speaking() as server, connect(server) as client:
        await client.send(message("Text", text="a bc"))
        await client.send(message("Eos"))
        await close_of(client)
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('py_connect{handler="all"}') == 1
        assert await server.metric('py_active_steps{handler="all"}') == 5
        assert await server.metric('py_total_steps{handler="all"}') == 5
        assert await server.metric('py_open_channels{handler="all"}') == 0
        assert await server.metric("py_model_connection_num_steps_sum") == 5
        assert await server.metric("py_model_step_duration_count") == 5
