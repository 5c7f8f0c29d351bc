"""A way to a server that can be cut, stopped and pointed elsewhere: TCP, between a real client and a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Wire:
    """Forwards each connection to a port; what runs over it can be cut, or held up without a word."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.opened = 0
        self.refusing = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Reset everything that runs."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.opened += 1
        with contextlib.suppress(OSError):
            if self.refusing:
                return writer.transport.abort()
            back, forth = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(forth)
            with contextlib.suppress(OSError):
                await asyncio.wait(
                    [asyncio.create_task(self._pass(reader, forth)), asyncio.create_task(self._pass(back, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            for one in (writer, forth):
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def wire(target: int, host: str = "127.0.0.1") -> AsyncIterator[Wire]:
    it = Wire(target)
    async with await asyncio.start_server(it.serve, host, 0) as listener:
        it.port = listener.sockets[0].getsockname()[1]
        yield it
        it.flowing.set()
        it.cut()
