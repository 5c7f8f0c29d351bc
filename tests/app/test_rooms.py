"""Rooms over real sockets: one producer, many listeners, late ones, slow ones, and every way to be refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from moshi_server.app import rooms
from moshi_server.app.factory import hooks_for
from moshi_server.app.module import ClientLimits, RoomsSpec, ServedModule
from moshi_server.audio import OpusDecoder
from moshi_server.engine.rooms import RoomStream
from moshi_server.engine.worker import Engine
from moshi_server.metrics import Metrics

from .server import KEY, Server, running, until

SEND, RECV = "/api/room-send", "/api/room-recv"
HANDSHAKE = bytes(9)
TONE = np.sin(2 * np.pi * 440 * np.arange(1920) / 24_000).astype(np.float32)


class ToneRunner:
    """Codes in, a tone out whose loudness is the first code in hundredths: 440 Hz has 35.2 periods a frame."""

    slots = 3

    def reset(self, slots: Sequence[int]) -> None:
        return None

    def step(self, slots: Sequence[int], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [TONE * np.float32(codes[0] / 100) for codes in inputs]

    def warmup(self) -> None:
        return None


@contextlib.asynccontextmanager
async def serving(
    *, default: str | None = "main", auth: bool = False, send_buffer: int = 0, limits: ClientLimits | None = None
) -> AsyncIterator[Server]:
    metrics = Metrics()
    counted = metrics.module("Mimi")
    engine = Engine("rooms", "Mimi", ToneRunner(), lambda: RoomStream(1, 8, 100), hooks=hooks_for(counted))
    spec = RoomsSpec(("main", "other"), default, RECV, auth)
    module = ServedModule("rooms", "Mimi", SEND, engine, counted, rooms=spec, limits=limits or ClientLimits())
    async with running([module], metrics=metrics, send_buffer=send_buffer) as server:
        yield server


def produce(server: Server, room: str = "main") -> websockets.connect:
    return server.connect(SEND, f"?room_id={room}&auth_id={KEY}")


def listen(server: Server, query: str = "") -> websockets.connect:
    return server.connect(RECV, query)


def codes(*values: int) -> bytes:
    return b"\x09" + struct.pack(f"<{len(values)}I", *values)


async def seated(client: Any) -> OpusDecoder:
    """Take the two frames that every listener gets first."""
    assert await client.recv() == HANDSHAKE
    header = await client.recv()
    assert header[0] == 1
    decoder = OpusDecoder()
    assert len(decoder.feed(header[1:])) == 0
    return decoder


async def hear(client: Any, decoder: OpusDecoder, frames: int) -> np.ndarray:
    heard: list[np.ndarray] = []
    async with asyncio.timeout(10):
        while len(heard) < frames:
            frame = await client.recv()
            if frame[0] == 1:
                heard.append(decoder.feed(frame[1:]))
    return np.concatenate(heard)


async def goodbye(client: Any) -> tuple[bytes, int, str]:
    """The last message before the close, the code and the reason."""
    last = b""
    async with asyncio.timeout(15):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                last = await client.recv()
    return last, client.close_code, client.close_reason


def loudness(pcm: np.ndarray) -> float:
    return float(np.sqrt(2 * np.mean(pcm.astype(np.float64) ** 2)))


async def test_everyone_in_the_room_hears_the_producer_and_nobody_else_does() -> None:
    async with (
        serving() as server,
        listen(server) as one,
        listen(server, "?room_id=main") as two,
        listen(server, "?room_id=other") as elsewhere,
        produce(server) as producer,
    ):
        decoders = [await seated(client) for client in (one, two)]
        await seated(elsewhere)
        for _ in range(12):
            await producer.send(codes(50, 1, 2))
        await producer.send(b"\x02hello")
        for client, decoder in zip((one, two), decoders, strict=True):
            assert loudness((await hear(client, decoder, 12))[-1920 * 6 :]) == pytest.approx(0.5, rel=0.1)
            assert await client.recv() == b"\x02hello"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(elsewhere.recv(), 0.2)


async def test_a_late_listener_gets_the_header_and_hears_from_then_on() -> None:
    async with serving() as server, listen(server) as early, produce(server) as producer:
        decoder = await seated(early)
        for _ in range(10):
            await producer.send(codes(20))
        await hear(early, decoder, 10)
        async with listen(server) as late:
            late_decoder = await seated(late)
            for _ in range(12):
                await producer.send(codes(70))
            assert loudness((await hear(late, late_decoder, 12))[-1920 * 6 :]) == pytest.approx(0.7, rel=0.1)


async def test_a_room_outlives_its_producer_and_has_one_at_a_time() -> None:
    async with serving() as server, listen(server) as listener:
        decoder = await seated(listener)
        async with produce(server) as first:
            await first.send(codes(30))
            await hear(listener, decoder, 1)
            async with produce(server) as second:
                last, code, reason = await goodbye(second)
                assert last == b"\x05room main already has a producer"
                assert (code, reason) == (4000, "room main already has a producer")
            async with produce(server, "other") as elsewhere:
                await elsewhere.send(codes(30))
        async with produce(server) as third:
            await third.send(codes(30))
            await hear(listener, decoder, 1)
        await until(lambda: server.engines[0].slots_used == 0)


async def test_the_room_may_be_named_in_a_header() -> None:
    headers = {"kyutai-api-key": KEY, "room_id": "other"}
    async with serving() as server, listen(server, "?room_id=other") as listener:
        decoder = await seated(listener)
        async with server.connect(SEND, "", additional_headers=headers) as producer:
            await producer.send(codes(40))
            await hear(listener, decoder, 1)


@pytest.mark.parametrize("query", ["?room_id=cellar", ""])
async def test_a_room_that_does_not_exist_is_refused_with_a_reason(query: str) -> None:
    async with serving(default=None) as server:
        for path in (SEND, RECV):
            async with server.connect(path, f"{query or '?'}&auth_id={KEY}") as client:
                last, code, reason = await goodbye(client)
                assert code == 4005
                assert reason == ("there is no room 'cellar'" if query else "no room was named")
                assert last == b"\x05" + reason.encode()


async def test_producers_need_a_key_and_listeners_if_asked() -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus, match="401"):
            await server.connect(SEND, "?room_id=main")
    async with serving(auth=True) as server:
        with pytest.raises(InvalidStatus, match="401"):
            await listen(server)
        async with listen(server, f"?auth_id={KEY}") as listener:
            await seated(listener)


async def test_wrong_codes_end_the_producer_and_odd_frames_do_not() -> None:
    async with serving() as server, produce(server) as producer, listen(server) as listener:
        decoder = await seated(listener)
        for odd in (b"", b"\x63what", b"\x06", b"\x04{}", b"\x01OggS"):
            await producer.send(odd)
        await producer.send(codes(25))
        await hear(listener, decoder, 1)
        await producer.send(codes(100))
        last, code, reason = await goodbye(producer)
        assert (code, reason) == (4003, "a code is 100; this server's Mimi has 0 to 99")
        assert last == b"\x05" + reason.encode()
        async with produce(server) as again:
            await again.send(codes(25))
            await hear(listener, decoder, 1)


@pytest.mark.parametrize("frame", [b"\x09\x01\x00\x00", b"\x02\xff\xfe"])
async def test_broken_frames_end_the_producer(frame: bytes) -> None:
    async with serving() as server, produce(server) as producer:
        await producer.send(frame)
        assert (await goodbye(producer))[1] == 4003


async def test_a_listener_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PING_SECONDS", 0.1)
    async with serving() as server, listen(server) as listener:
        await seated(listener)
        assert [await listener.recv() for _ in range(3)] == [b"\x06"] * 3


async def test_a_slow_listener_is_closed_and_the_room_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LEAD_SECONDS", 1e6)
    async with serving(send_buffer=4096) as server, listen(server) as listener, produce(server) as producer:
        decoder = await seated(listener)
        raw = socket.create_connection(("127.0.0.1", server.port))  # joins, and never reads
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(
            f"GET {RECV} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        noise = np.random.default_rng(0)
        try:
            closed = 'ws_close_total{code="4006",reason="client_timeout"}'
            async with asyncio.timeout(30):
                while not await server.metric(closed):
                    for _ in range(100):
                        await producer.send(codes(int(noise.integers(100))))
                        await producer.send(b"\x02" + b"x" * 2000)
                    await hear(listener, decoder, 100)
        finally:
            raw.close()
        assert await server.metric('connection_error_total{error_type="timeout",module="rooms"}') == 1
        await producer.send(codes(60))
        await hear(listener, decoder, 1)


async def test_a_producer_that_is_too_fast_is_held_to_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LEAD_SECONDS", 0.4)
    async with serving() as server, listen(server) as listener, produce(server) as producer:
        decoder = await seated(listener)
        start = asyncio.get_running_loop().time()
        for _ in range(20):  # 1.6 s of sound
            await producer.send(codes(60))
        await hear(listener, decoder, 20)
        assert asyncio.get_running_loop().time() - start >= 1.1


async def test_listeners_are_told_when_the_server_ends_or_the_model_fails() -> None:
    async with serving() as server, listen(server) as listener:
        await seated(listener)
        server.worker.end()
        _, code, reason = await goodbye(listener)
        assert (code, reason) == (1001, "the server is shutting down")
    async with serving() as server:
        server.engines[0].status = "failed"
        async with listen(server) as listener:
            assert (await goodbye(listener))[1] == 1011


async def test_both_paths_say_that_they_want_a_socket() -> None:
    async with serving() as server:
        for path in (SEND, RECV):
            assert (await server.get(path)).status_code == 426
        (info,) = (await server.get("/api/modules_info")).json()
        assert (info["type"], info["path"], info["total_slots"]) == ("mimi", SEND, "3")
