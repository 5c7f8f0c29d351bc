"""One tick: collect what arrived, step every stream that has a frame, deliver; it knows no model and no protocol."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import EngineFailedError, SessionError, SessionLimitError
from .hooks import EngineHooks
from .runner import Runner
from .session import Session

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3
"""Steps that may fail one after another before the model counts as broken."""
SWEEP_SECONDS = 0.25
"""How often every stream is looked at; between, only those that have news, so that idle ones cost nothing."""

GATHER_SECONDS = 0.006
GATHER_STREAMS = 8
"""With so many streams a tick begins no sooner than that after the last one began, unless that one stepped half of
them: otherwise a model that is done in no time is woken for each frame of each stream, which is most of the cost."""

Delivery = tuple[Session, list[Any], SessionError | None]


class Batcher:
    """Steps the streams of one runner together. Everything but `add`, `discard` and `wake` runs on the model thread.

    There is no fixed beat: a tick begins as soon as anything arrived, and what arrives during a step is taken by the
    next one, so that batches form by themselves under load and a lone stream never waits for others.

    A runner that can `launch` a step leaves this thread free while its device works. The streams of the step before
    are then told what came of it, and those that take no part in this one are collected for the next.
    """

    def __init__(self, runner: Runner, hooks: EngineHooks, *, session_seconds: float | None = None) -> None:
        self._runner = runner
        self._hooks = hooks
        self._session_seconds = session_seconds
        self._sessions: dict[Session, float] = {}
        self._news: deque[Session] = deque()
        self._pending: dict[Session, None] = {}
        self._next_sweep = 0.0
        self._stepped = 0
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._failures = 0
        self._made: tuple[list[Session], Sequence[Any]] | None = None  # a step's outputs that nobody was told yet
        self._ahead: list[tuple[Session, Any]] = []  # frames that were taken while a step ran
        self.turn: AbstractContextManager[None] | None = None
        """Entered for each step, where modules share a device."""
        self.step_in_flight: int | None = None
        """The number of the step that runs, for whoever watches that it comes back."""
        self._steps = 0

    def add(self, session: Session) -> None:
        """Take a session into the next tick."""
        with self._lock:
            self._sessions[session] = time.monotonic()
        self.wake(session)

    def discard(self, session: Session) -> None:
        """Leave a session out from the next tick on."""
        with self._lock:
            self._sessions.pop(session, None)

    def sessions(self) -> list[Session]:
        """Those that take part now."""
        with self._lock:
            return list(self._sessions)

    def wake(self, session: Session | None = None) -> None:
        """Something arrived, for this session if one is named."""
        if session is not None:
            self._news.append(session)  # before the flag is looked at: the tick clears it before it looks here
        if not self._awake.is_set():
            self._awake.set()

    def run(self, running: Callable[[], bool]) -> None:
        """Tick until ``running`` says no.

        Raises:
            EngineFailedError: the model failed several times in a row.
        """
        begun = 0.0
        while running():
            if len(self._sessions) >= max(GATHER_STREAMS, 2 * self._stepped + 1):
                time.sleep(max(0.0, begun + GATHER_SECONDS - time.monotonic()))
            self._awake.clear()
            begun = time.monotonic()
            if not self.tick():
                self._awake.wait(self._patience())

    def tick(self) -> bool:
        """Collect, step, deliver; returns whether any stream was stepped."""
        now = time.monotonic()
        deliveries: list[Delivery] = []
        batch: list[Session] = []
        inputs: list[Any] = []
        resets: list[int] = []
        ready = self._gather(now, deliveries)
        if not ready and self._made is not None:
            self._settle(deliveries)
            ready = self._gather(now, deliveries)
        for session, frame in ready:
            if session.stream.needs_reset:
                resets.append(session.slot)
                session.stream.needs_reset = False
            batch.append(session)
            inputs.append(frame)
        if batch:
            self._step(batch, inputs, resets, deliveries)
        if not self._ahead:  # else the next step comes first
            self._settle(deliveries)
        self._deliver(deliveries)
        self._stepped = len(batch)
        return bool(batch)

    def _gather(self, now: float, deliveries: list[Delivery]) -> list[tuple[Session, Any]]:
        """The streams of the next step, those that were collected ahead first."""
        ahead, self._ahead = self._ahead, []
        ready = [(session, frame) for session, frame in ahead if session in self._sessions and not session.closed]
        busy = {session for session, _ in ready}.union(self._made[0] if self._made is not None else ())
        return ready + self._collect(now, deliveries, busy)

    def _meanwhile(self, batch: list[Session], deliveries: list[Delivery]) -> None:
        """What is done while the device works on a step of ``batch``."""
        self._settle(deliveries)
        self._ahead = self._collect(time.monotonic(), deliveries, set(batch))
        self._deliver(deliveries)
        deliveries.clear()

    def _collect(
        self, now: float, deliveries: list[Delivery], busy: Collection[Session] = ()
    ) -> list[tuple[Session, Any]]:
        """What arrived, and a frame of each stream that has one; those that are ``busy`` are left for later."""
        ready: list[tuple[Session, Any]] = []
        for session in self._due(now):
            opened = self._sessions.get(session)
            if opened is None or session.closed:
                continue
            if session in busy:
                self._pending[session] = None
                continue
            try:
                self._check_age(now - opened)
                events = session.collect(now)
                if events or session.blocked:
                    deliveries.append((session, events, None))
                frame = None if session.unread else session.stream.take(now)
                if frame is not None or session.stream.deadline() is not None:
                    self._pending[session] = None  # what it has may be more than one frame
            except SessionError as error:
                deliveries.append((session, [], error))
            except Exception:
                logger.exception("a stream failed; this is a bug of ours", extra={"fields": {"session": session.id}})
                deliveries.append((session, [], EngineFailedError("internal error in this stream")))
            else:
                if frame is not None:
                    ready.append((session, frame))
        return ready

    def _due(self, now: float) -> Iterable[Session]:
        """Whom to look at now: those with news and those that waited for this tick, or everybody."""
        found, self._pending = self._pending, {}
        while self._news:
            found[self._news.popleft()] = None
        if now < self._next_sweep:
            return found
        self._next_sweep = now + SWEEP_SECONDS
        return self.sessions()

    def _check_age(self, age: float) -> None:
        if self._session_seconds is not None and age > self._session_seconds:
            raise SessionLimitError(
                f"this stream has reached the limit of {self._session_seconds:g} s",
                hint="open a new one, or raise max_session_seconds in the module's configuration",
            )

    def _step(self, batch: list[Session], inputs: list[Any], resets: list[int], deliveries: list[Delivery]) -> None:
        try:
            if self.turn is None:
                outputs, seconds = self._run(batch, inputs, resets, deliveries)
            else:
                with self.turn:
                    outputs, seconds = self._run(batch, inputs, resets, deliveries)
        except Exception as error:
            self._failures += 1
            fields = {"streams": len(batch), "in_a_row": self._failures}
            logger.exception("a model step failed", extra={"fields": fields})
            for session in batch:
                logger.warning("the stream ends: its step failed", extra={"fields": {"session": session.id}})
            if self._failures >= MAX_CONSECUTIVE_FAILURES:
                raise EngineFailedError(f"the model failed {self._failures} times in a row: {error}") from error
            unknown = EngineFailedError("the model failed on this frame", hint="connect again")
            reason = error if isinstance(error, EngineFailedError) else unknown
            for session in batch:
                self.discard(session)  # now, not once the event loop has ended it: it would be stepped again
                deliveries.append((session, [], reason))
            return
        self._failures = 0
        self._hooks.on_step(seconds, len(batch))
        self._made = batch, outputs

    def _settle(self, deliveries: list[Delivery]) -> None:
        """Tell the streams of the last step what came of it."""
        made, self._made = self._made, None
        for session, output in zip(*made, strict=True) if made is not None else ():
            try:
                deliveries.append((session, session.accept(output), None))
            except SessionError as error:
                self.discard(session)
                deliveries.append((session, [], error))
            except Exception:
                logger.exception("a stream failed; this is a bug of ours", extra={"fields": {"session": session.id}})
                self.discard(session)
                deliveries.append((session, [], EngineFailedError("internal error in this stream")))

    def _run(
        self, batch: list[Session], inputs: list[Any], resets: list[int], deliveries: list[Delivery]
    ) -> tuple[Sequence[Any], float]:
        start = time.perf_counter()
        slots = [session.slot for session in batch]
        launch = getattr(self._runner, "launch", None)
        self._steps += 1
        self.step_in_flight = self._steps
        try:
            if resets:
                self._runner.reset(resets)
            if launch is None:
                outputs = self._runner.step(slots, inputs)
            else:
                finish = launch(slots, inputs)
                self._meanwhile(batch, deliveries)
                outputs = finish()
        finally:
            self.step_in_flight = None
        return outputs, time.perf_counter() - start

    def _deliver(self, deliveries: list[Delivery]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for delivery in deliveries:
            loops.setdefault(delivery[0].loop, []).append(delivery)
        for loop, share in loops.items():
            try:
                loop.call_soon_threadsafe(_hand_over, share)
            except RuntimeError:  # the loop is closed, and its sessions with it
                for session, _, _ in share:
                    self.discard(session)

    def _patience(self) -> float:
        now = time.monotonic()
        deadlines = [session.stream.deadline() for session in self._pending]
        latest = self._next_sweep if self._sessions else now + 1.0
        soonest = min((deadline for deadline in deadlines if deadline is not None), default=latest)
        return max(0.001, min(soonest, latest) - now)


def _hand_over(deliveries: list[Delivery]) -> None:
    for session, events, error in deliveries:
        session.deliver(events, error)
