"""A speech-to-text stream that outlives its connection: another one takes over, and the transcript goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from ..audio import OpusDecoder
from ..errors import GoingAwayError, MoshiServerError, ServerUnreachableError, SessionError
from ..events import AsrClientEvent, AsrServerEvent, Audio, Flush, GoingAway, Marker
from ..speech.transcript import Transcript
from .asr import AsrClient, full_url
from .backoff import Reconnect, in_turn, passes
from .connecting import DEFAULT_URL, Connecting, Opening
from .exchange import Recording, load, samples, transcribe_over
from .replay import Replay


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The server at ``url`` is gone, for this reason; nothing that was sent is lost with it."""

    url: str
    reason: MoshiServerError


@dataclass(frozen=True, slots=True)
class ConnectionResumed:
    """The server at ``url`` has taken over.

    Attributes:
        seconds: from the loss until now.
        again: seconds of audio that are sent once more.
    """

    url: str
    seconds: float
    again: float


ReconnectingEvent = AsrServerEvent | ConnectionLost | ConnectionResumed


@dataclass(frozen=True, slots=True)
class _Servers:
    """Where a stream may be opened, and how one asks there."""

    urls: Sequence[str]
    api_key: str | None
    timeout: float

    async def first(self, urls: Sequence[str]) -> AsrClient:
        """A stream of the first of these servers that has one to give.

        Raises:
            MoshiServerError: why the last of them has none, or the first reason that holds for all.
        """
        reason: MoshiServerError = ServerUnreachableError("no server's address was given", hint=f"like {DEFAULT_URL}")
        for url in urls:
            try:
                return await Connecting(AsrClient, url, self.api_key, self.timeout)
            except MoshiServerError as error:
                if not passes(error):
                    raise
                reason = error
        raise reason


class ReconnectingAsrClient:
    """As `AsrClient`, over any number of connections to any of several servers. Open it with `connect`.

    Its events are one stream's: each word once and in order, times from the first sample on, whichever server heard
    it. `ConnectionLost` and `ConnectionResumed` come among them. What is sent meanwhile waits, and is heard later.

        async with ReconnectingAsrClient.connect(["ws://one:8080", "ws://two:8080"]) as client:
            await client.send_audio(pcm)
    """

    def __init__(self, link: AsrClient, servers: _Servers, how: Reconnect) -> None:
        self._servers = servers
        self._how = how
        self._replay = Replay()
        self._link = link
        self._opus: OpusDecoder | None = None
        self._unread: deque[ReconnectingEvent] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._to_send = asyncio.Event()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._silent = 0.0
        self._fruitless = 0
        self._told_to_leave = asyncio.Event()
        self._next: AsrClient | None = None
        self._task = asyncio.create_task(self._run())

    @classmethod
    def connect(
        cls,
        urls: str | Sequence[str] = DEFAULT_URL,
        *,
        api_key: str | None = None,
        turns: bool = False,
        timeout: float = 10.0,
        reconnect: Reconnect | None = None,
    ) -> Opening[ReconnectingAsrClient]:
        """Connect to the first of these servers that has a slot; to be awaited, or used in ``async with``.

        Each is asked once: only a stream that was held is waited for.

        Args:
            urls: one or several addresses, each as for `AsrClient.connect`. With one, its server is to come back.
            api_key: as for `AsrClient.connect`, the same for all.
            turns: ask for `Turn` events.
            timeout: seconds until a server must have answered.
            reconnect: for how long and how patiently.

        Raises:
            ServerUnreachableError, AuthError, NoFreeSlotError, ResourceNotFoundError: as `AsrClient.connect`, from the
                server that was asked last.
        """
        addresses = [urls] if isinstance(urls, str) else list(urls)
        servers = _Servers([full_url(url, turns=turns, notices=True) for url in addresses], api_key, timeout)
        return _Opening(servers, reconnect or Reconnect())

    @property
    def url(self) -> str:
        """The address that is, or was last, connected to."""
        return self._link.url

    async def send(self, event: AsrClientEvent) -> None:
        """Send one event, now or once there is a connection; audio waits while too much of it is not transcribed yet.

        Raises:
            SessionError: the stream has ended, and this is why.
            InvalidMessageError: an event that could not be said again to another server.
        """
        self._check()
        self._replay.add(event)
        self._to_send.set()
        while isinstance(event, Audio) and self._replay.unproven > self._how.buffer_seconds and not self._ended:
            self._replay.ask()
            self._to_send.set()
            self._writable.clear()
            await self._writable.wait()
        self._check()

    async def send_audio(self, pcm: ArrayLike) -> None:
        """As `AsrClient.send_audio`."""
        await self.send(Audio(samples(pcm)))

    async def send_opus(self, data: bytes) -> None:
        """As `AsrClient.send_opus`; it is decoded here and sent as samples: half a stream of Opus is none."""
        self._opus = self._opus or OpusDecoder()
        await self.send_audio(self._opus.feed(data))
        if self._opus.ended:
            self._opus = None
            await self.flush()

    async def marker(self, id: int) -> None:
        """As `AsrClient.marker`."""
        await self.send(Marker(id))

    async def flush(self) -> None:
        """As `AsrClient.flush`."""
        await self.send(Flush())

    async def transcribe(
        self,
        audio: Recording,
        *,
        realtime: bool = False,
        on_event: Callable[[ReconnectingEvent], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Transcript:
        """As `AsrClient.transcribe`, of one recording: another one wants another stream."""
        pcm = await asyncio.to_thread(load, audio)
        return await transcribe_over(self, pcm, realtime=realtime, on_event=on_event, on_progress=on_progress)

    async def receive(self) -> list[ReconnectingEvent]:
        """The next events, at least one; an empty list once the stream was closed.

        Raises:
            SessionError: why the stream has ended for good.
            AuthError: if that was for the credentials.
        """
        while not self._unread:
            if self._ended:
                self._complain()
                return []
            self._readable.clear()
            await self._readable.wait()
        events = list(self._unread)
        self._unread.clear()
        return events

    async def __aiter__(self) -> AsyncIterator[ReconnectingEvent]:
        while events := await self.receive():
            for event in events:
                yield event

    async def close(self) -> None:
        """End the stream, whatever is still to come."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end()
        if self._next is not None:
            self._next.abort()
        await self._link.close()

    def _check(self) -> None:
        if self._ended:
            self._complain()
            raise SessionError("the stream was closed")

    def _complain(self) -> None:
        if self._error is not None:
            raise self._error

    # One connection after another.

    async def _run(self) -> None:
        try:
            while (reason := await self._serve()) is not None:
                self._tell(ConnectionLost(self._link.url, reason))
                await self._connect_again(reason)
        except Exception as error:
            self._error = error  # whoever uses the stream is told, even of a bug of ours
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._readable.set()
        self._writable.set()

    def _tell(self, *events: ReconnectingEvent) -> None:
        self._unread.extend(events)
        self._readable.set()
        self._writable.set()

    async def _serve(self) -> MoshiServerError | None:
        """Use the connection until it is lost; returns why, or None if the server closed it with nothing left to do.

        Raises:
            MoshiServerError: it ended for a reason that another connection would not change.
        """
        proven = self._replay.proven
        self._told_to_leave.clear()
        tasks = [asyncio.create_task(run()) for run in (self._receive_all, self._send_all, self._watch, self._leave)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await next(task for task in tasks if task in done)  # if several have, the first of them knows why
        except MoshiServerError as error:
            owed = self._replay.owed
            self._fruitless = self._fruitless + 1 if owed and self._replay.proven <= proven else 0
            if not passes(error, owed=owed) or self._fruitless >= self._how.fruitless_losses:
                raise
            return error
        else:
            return SessionError("the server closed the stream before it was done") if self._replay.owed else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive_all(self) -> None:
        while events := await self._link.receive():
            self._silent = 0.0
            for event in events:
                if isinstance(event, GoingAway):
                    self._told_to_leave.set()
                else:
                    self._tell(*self._replay.take(event))

    async def _send_all(self) -> None:
        while True:
            self._to_send.clear()
            while (event := self._replay.following()) is not None:
                await self._link.send(event)
            await self._to_send.wait()

    async def _watch(self) -> None:
        """Find a server that says nothing any more, for which TCP may take a quarter of an hour."""
        tick = self._how.stall_seconds / 20
        self._silent = 0.0
        while True:
            await asyncio.sleep(tick)
            # Looks are counted, not seconds: a process that was stopped for a minute has not listened for a minute.
            self._silent = self._silent + tick if self._replay.owed else 0.0
            if self._silent > self._how.stall_seconds / 2:
                self._replay.ask()
                self._to_send.set()
            if self._silent > self._how.stall_seconds:
                raise SessionError(f"nothing has come from the server for {self._silent:.0f} s")

    async def _leave(self) -> None:
        """Once the server has said that it ends, find another one while it still serves."""
        await self._told_to_leave.wait()
        for wait in self._how.waits():
            await asyncio.sleep(wait)
            with contextlib.suppress(MoshiServerError):
                self._next = await self._servers.first(in_turn(self._servers.urls, self._link.url))
                break
        raise GoingAwayError("the server is shutting down")

    async def _connect_again(self, reason: MoshiServerError) -> None:
        """Find a server that takes over.

        Raises:
            MoshiServerError: none did in time, or one refused for a reason that will not pass.
        """
        clock = asyncio.get_running_loop().time
        lost = clock()
        old = self._link
        old.abort()
        if self._next is not None:
            self._link, self._next = self._next, None
            self._resume(clock() - lost)
            return
        for wait in self._how.waits(self._fruitless):
            if clock() + wait > lost + self._how.give_up_seconds:
                raise reason
            await asyncio.sleep(wait)
            try:
                self._link = await self._servers.first(in_turn(self._servers.urls, old.url))
            except MoshiServerError as error:
                if not passes(error):
                    raise
                reason = error
            else:
                self._resume(clock() - lost)
                return

    def _resume(self, seconds: float) -> None:
        again = self._replay.begin()
        self._tell(ConnectionResumed(self._link.url, seconds, again))


class _Opening(Opening[ReconnectingAsrClient]):
    def __init__(self, servers: _Servers, how: Reconnect) -> None:
        self._servers = servers
        self._how = how

    async def _connect(self) -> ReconnectingAsrClient:
        link = await self._servers.first(self._servers.urls)
        return ReconnectingAsrClient(link, self._servers, self._how)
