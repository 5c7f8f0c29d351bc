"""One client's stream as the application sees it: bounded queues both ways between an event loop and the model thread.

Each counter has one writer, so neither side takes a lock: the loop counts what it put in and took out, the model
thread what it consumed and emitted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ..audio import FRAME_SIZE
from ..errors import SessionError
from ..events import Audio, Codes, Finished
from .runner import Stream

MAX_WAITING_EVENTS = 4096
"""Client events that may wait for the model thread, however small."""
MAX_UNREAD_EVENTS = 2048
"""Server events that may wait for the client; a stream with more is not stepped until they are read."""


class Session:
    """A held slot. Made by `Engine.open`; its coroutines belong to the event loop that opened it."""

    def __init__(
        self,
        session_id: int,
        slot: int,
        stream: Stream,
        *,
        queue_samples: int,
        on_close: Callable[[Session], None],
        wake: Callable[[Session], None],
    ) -> None:
        self.id = session_id
        self.slot = slot
        self.stream = stream
        self.steps = 0
        self.closed = False
        self.tell: Callable[[list[Any]], bool] | None = None
        """Is offered events as they come, on the event loop, and says whether it took them; else `receive` has them."""
        self.error: SessionError | None = None
        self._loop = asyncio.get_running_loop()
        self._queue_samples = queue_samples
        # A stream whose input is no audio says itself how much of its queue an event takes.
        self._size: Callable[[Any], int] = getattr(stream, "size", samples_of)
        self._on_close = on_close
        self._wake = wake
        self._inbox: deque[Any] = deque()
        self._outbox: deque[Any] = deque()
        self._samples_in = 0
        self._emitted = 0
        self._read = 0
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # The application's side: on the event loop.

    async def send(self, event: Any) -> None:
        """Hand one client event to the model; waits while more audio is queued than the module allows.

        Raises:
            SessionError: the reason the session ended, if it has.
        """
        while not self.closed and self._full():
            self._writable.clear()
            if self._full():  # looked at again: the model thread may have taken it all before the clear
                await self._writable.wait()
        self._check()
        self._accept(event)

    def offer(self, event: Any) -> bool:
        """`send` without waiting: whether the event was taken. Only while no `send` is under way."""
        if self.closed or self._full():
            return False
        self._accept(event)
        return True

    def _accept(self, event: Any) -> None:
        self._samples_in += self._size(event)
        self._inbox.append(event)
        self._wake(self)

    async def receive(self) -> list[Any]:
        """All server events that have come, at least one; an empty list once it was closed or its stream finished.

        Raises:
            SessionError: the reason the session ended, after every event before it was read.
        """
        while not self._outbox:
            if self.closed:
                if self.error is not None:
                    raise self.error
                return []
            self._readable.clear()
            await self._readable.wait()
        events = list(self._outbox)
        self._outbox.clear()
        unread = self.unread
        self._read += len(events)
        if unread:
            self._wake(self)
        return events

    def close(self) -> None:
        """Free the slot at once. Safe to call again."""
        self._end(None)

    def fail(self, error: SessionError) -> None:
        """End the session with a reason, which `send` and `receive` then raise."""
        self._end(error)

    @property
    def buffered_samples(self) -> int:
        """Samples that were sent and not yet stepped."""
        return self._samples_in - self.stream.consumed

    @property
    def owes(self) -> bool:
        """Whether the client waits for an answer of the stream's, and need not say anything meanwhile."""
        return bool(self._inbox) or bool(getattr(self.stream, "owes", False))

    def _check(self) -> None:
        if self.closed:
            raise self.error or SessionError("the session is closed")

    def _full(self) -> bool:
        return self.buffered_samples > self._queue_samples or len(self._inbox) >= MAX_WAITING_EVENTS

    def _end(self, error: SessionError | None) -> None:
        if self.closed:
            return
        self.error = error
        self.closed = True
        self._on_close(self)
        self._readable.set()
        self._writable.set()

    def deliver(self, events: list[Any], error: SessionError | None) -> None:
        """Take what a tick made, on the event loop; wakes whoever waits."""
        finished = bool(events) and isinstance(events[-1], Finished)
        if events and not self.closed:
            news = events[:-1] if finished else events
            if self.tell is not None and not self._outbox and self.tell(news):
                self._read += len(news)
            else:
                self._outbox.extend(news)
                self._readable.set()
        if finished or error is not None:
            self._end(error)
        if self.blocked and not self._full():
            self._writable.set()

    # The model thread's side.

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where this session's events are delivered."""
        return self._loop

    def collect(self, now: float) -> list[Any]:
        """Give the stream everything that arrived; returns events to send at once."""
        events: list[Any] = []
        while self._inbox:
            events += self.stream.put(self._inbox.popleft(), now)
        self._emitted += len(events)
        return events

    def accept(self, output: Any) -> list[Any]:
        """Give the stream its step's output; returns events to send."""
        self.steps += 1
        events = self.stream.accept(output)
        self._emitted += len(events)
        return events

    @property
    def blocked(self) -> bool:
        """Whether a `send` waits, so that it must be told when there is room again."""
        return not self._writable.is_set()

    @property
    def unread(self) -> bool:
        """Whether the client is so far behind in reading that its stream must wait."""
        return self._emitted - self._read > MAX_UNREAD_EVENTS


def samples_of(event: Any) -> int:
    """How many samples an event brings."""
    match event:
        case Audio(pcm):
            return len(pcm)
        case Codes():
            return FRAME_SIZE
    return 0
