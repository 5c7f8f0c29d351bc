"""Clients' faults on the wire: they trickle, reset, go on after the close; the next client finds its slot free."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct

import pytest
from websockets.frames import Close, Frame, Opcode

from moshi_server.app import worker
from moshi_server.app.module import ClientLimits
from moshi_server.client import AsrClient

from ..app.server import KEY, PATH, Server, audio, serve, until
from ..fakes import FakeRunner, say
from .conftest import Outage
from .table import fault

HANDSHAKE = (
    f"GET {PATH}?auth_id={KEY} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SECOND = audio(say(*[3] * 12))


def frame(data: bytes, opcode: Opcode = Opcode.BINARY) -> bytes:
    return Frame(opcode, data).serialize(mask=True)


async def rude(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that speaks the bytes itself and holds the only slot."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE.encode())
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    await until(lambda: server.engines[0].slots_used == 1)
    return reader, writer


async def next_is_served(server: Server, outage: Outage) -> None:
    await until(lambda: server.engines[0].slots_used == 0, 15)
    async with AsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key=KEY) as client:
        assert (await client.transcribe(say(11, 999, 3))).text == "<11>"
    outage.ends()


async def trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(OSError):
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)


@fault(
    "A client's message trickles, a byte now and then",
    lost="that client's stream",
    noticed="the worker, after `message_timeout_seconds` (here 0.5): close code 4006",
    within=20,
)
async def test_a_message_that_trickles(outage: Outage) -> None:
    async with serve(FakeRunner(1), limits=ClientLimits(message_seconds=0.5)) as server:
        _, writer = await rude(server)
        outage.begins()
        trickling = asyncio.create_task(trickle(writer, frame(SECOND)))
        await next_is_served(server, outage)
        assert await server.metric('ws_close_total{code="4006",reason="client_timeout"}') == 1
        trickling.cancel()
        writer.transport.abort()


@fault(
    "A client resets its connection in the middle of a message",
    lost="that client's stream",
    noticed="the worker: counted as 1006",
    within=20,
)
async def test_a_reset(outage: Outage) -> None:
    async with serve(FakeRunner(1)) as server:
        _, writer = await rude(server)
        writer.write(frame(SECOND)[:1000])
        await writer.drain()
        plug = writer.transport.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        outage.begins()
        writer.transport.abort()
        await next_is_served(server, outage)
        assert await server.metric('ws_close_total{code="1006",reason="connection_lost"}') == 1


@fault(
    "A client goes on sending after its close",
    lost="what it sends then",
    noticed="nobody",
    within=20,
)
async def test_sending_after_the_close(outage: Outage) -> None:
    async with serve(FakeRunner(1)) as server:
        reader, writer = await rude(server)
        outage.begins()
        writer.write(frame(Close(1000, "").serialize(), Opcode.CLOSE))
        with contextlib.suppress(OSError):
            for _ in range(50):
                writer.write(frame(SECOND))
                await writer.drain()
        await next_is_served(server, outage)
        async with asyncio.timeout(10):  # and the server does not keep the connection for it
            with contextlib.suppress(OSError):
                while await reader.read(65536):
                    pass
        assert server.engines[0].error is None
        writer.transport.abort()


@fault(
    "A client's handshake trickles and never ends",
    lost="nothing: it holds a connection, no slot",
    noticed="the worker, after 20 s (here 0.5): it hangs up",
    within=20,
)
async def test_a_handshake_that_never_ends(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = worker._http
    monkeypatch.setattr(worker, "_http", lambda seconds: patient(0.5))
    async with serve(FakeRunner(1)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        outage.begins()
        trickling = asyncio.create_task(trickle(writer, HANDSHAKE[:-2].encode() * 10))
        async with asyncio.timeout(15):
            with contextlib.suppress(OSError):
                while await reader.read(65536):
                    pass
        trickling.cancel()
        await next_is_served(server, outage)
        writer.transport.abort()
