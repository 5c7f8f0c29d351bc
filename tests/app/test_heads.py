"""Who connects and does not say what it wants is sent away; whoever says it in pieces, but soon, is served."""

from __future__ import annotations

import asyncio

from moshi_server.app.heads import MAX_HEAD_BYTES

from .server import KEY, Server, events, serve


async def opened(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port)


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 10)


async def test_a_connection_that_says_nothing_or_half_of_it_is_closed() -> None:
    async with serve(head_seconds=0.4) as server:
        for said in (b"", b"GET /api/health HT", b"GET /api/health HTTP/1.1\r\nHost: x\r\nX: "):
            reader, writer = await opened(server)
            writer.write(said)
            assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")
            writer.close()
        # A second request on a connection has the same time, and a stream that was opened has no such limit.
        reader, writer = await opened(server)
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        await reader.readuntil(b'{"status":"live"}')
        writer.write(b"GET /live HTTP/1.1\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        async with server.connect() as client:
            await events(client, "Ready")
            await asyncio.sleep(0.6)
            await (await client.ping())


async def test_headers_without_end_are_431() -> None:
    async with serve() as server:
        reader, writer = await opened(server)
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n")
        writer.write(b"X-Long: " + b"x" * (MAX_HEAD_BYTES + 100_000))
        assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_request_in_pieces_is_served_and_so_is_a_large_body() -> None:
    async with serve() as server:
        reader, writer = await opened(server)
        for piece in (b"GET /li", b"ve HTTP/1.1\r\nHo", b"st: x\r\nConnection: close\r\n", b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert (await server.post(bytes(3 * MAX_HEAD_BYTES), headers={"kyutai-api-key": KEY})).status_code == 400
