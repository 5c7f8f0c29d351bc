"""What every client's stream has in common: events that wait to be read, and why a stream ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConcurrencyError, ConnectionClosed

from .closing import error_of_close

E = TypeVar("E")


class ClientStream(Generic[E]):
    """One WebSocket whose messages are read as events; what they mean is a subclass's business (`_take`)."""

    def __init__(self, websocket: ClientConnection, url: str) -> None:
        self.url = url
        self._websocket = websocket
        self._unread: deque[E] = deque()
        self._said = ""
        """What the server gave as the reason of its end."""

    def _take(self, data: bytes | str) -> None:
        """Put the events of one message into `_unread`, or a complaint into `_said`."""
        raise NotImplementedError

    async def receive(self) -> list[E]:
        """The next events, at least one; an empty list once the stream was closed without a complaint.

        Raises:
            SessionError: why the server has ended the stream.
            AuthError: if that was for the credentials.
        """
        try:
            while not self._unread:
                await self._one()
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code in (1000, 1005) and not self._said:
                return []
            raise await self._reason(closed) from None
        events = list(self._unread)
        self._unread.clear()
        return events

    async def __aiter__(self) -> AsyncIterator[E]:
        while events := await self.receive():
            for event in events:
                yield event

    async def close(self) -> None:
        """End the stream, whatever is still to come."""
        await self._websocket.close()

    def abort(self) -> None:
        """Drop the connection at once, without a word to the server, which may no longer be there."""
        self._websocket.transport.abort()

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Read messages until this is so.

        Raises:
            SessionError: why the server has ended the stream.
        """
        try:
            while not ready():
                await self._one()
        except ConnectionClosed as closed:
            raise await self._reason(closed) from None

    async def _one(self) -> None:
        self._take(await self._websocket.recv())
        if self._said:
            raise await self._ended()

    async def _put(self, data: bytes) -> None:
        """Send one message; waits while the server takes no more.

        Raises:
            SessionError: the server has ended the stream, and this is why.
        """
        try:
            await self._websocket.send(data)
        except ConnectionClosed as closed:
            raise await self._reason(closed) from None

    async def _reason(self, closed: ConnectionClosed) -> Exception:
        """Why the stream ended: from the close frame, and from what the server said before it, read or not."""
        # Whoever waits in `receive` at the same time reads it there.
        with contextlib.suppress(ConnectionClosed, ConcurrencyError):
            while True:
                self._take(await self._websocket.recv())
        frame = closed.rcvd
        return error_of_close(frame.code if frame else None, frame.reason if frame else "", self._said)

    async def _ended(self) -> Exception:
        """The error for a complaint: the close code that follows says of which kind it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._websocket.wait_closed()
        return error_of_close(self._websocket.close_code, self._websocket.close_reason or "", self._said)
