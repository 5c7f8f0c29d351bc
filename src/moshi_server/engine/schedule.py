"""Who steps next where several modules share a device; it knows no model.

The policy is start-time fair queueing: at most ``lanes`` steps run at once, and of those who wait, the module goes
first that has had least of the device's time. So a module with long steps cannot crowd out one with short steps, as it
would if they alternated. Who was idle has no claim on the time that it did not use. Steps are not interrupted: who
comes while another's step runs waits for its end.

A module that is behind and has just ended a step is given `RETURN_SECONDS` to begin its next before one that is ahead
goes: it is only handing out what it made, and a long step that slipped in between would cost it its share.

A step that does not end (a script that hangs) holds the others up once for `PATIENCE`; then they do not count it.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Final

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.5
"""Seconds that a step may hold others up."""
RETURN_SECONDS: Final = 0.003
"""How long the device is kept for a module that is behind, between two steps of it."""


class Schedule:
    """One device.

    Args:
        name: for the log.
        lanes: steps that may run at once.
        patience: see `PATIENCE`.
        return_seconds: see `RETURN_SECONDS`.
    """

    def __init__(
        self, name: str, lanes: int = 1, *, patience: float = PATIENCE, return_seconds: float = RETURN_SECONDS
    ) -> None:
        self.name = name
        self._lanes = lanes
        self._patience = patience
        self._return = return_seconds
        self._lock = threading.Lock()
        self._running: list[Seat] = []
        self._waiting: list[Seat] = []
        self._virtual = 0.0  # the tag of the step that began last
        self._kept_until = 0.0
        self._kept_tag = 0.0

    def seat(self, module: str) -> Seat:
        """A module's place on the device."""
        return Seat(self, module)

    def enter(self, seat: Seat) -> None:
        """Return when it is this seat's turn."""
        came = time.monotonic()
        with self._lock:
            seat.tag = max(seat.tag, self._virtual)
            self._waiting.append(seat)
        while True:
            with self._lock:
                seat.called.clear()
                now = time.monotonic()
                if now - came >= self._patience:
                    self._pass_over(now)
                    came = now
                if self._may_begin(seat, now):
                    self._begin(seat, now)
                    return
                kept = self._kept_until - now if self._kept_until > now and self._room else self._patience
            seat.called.wait(min(kept, max(0.0, came + self._patience - now)))

    def leave(self, seat: Seat) -> None:
        """The step has ended: whose turn is it?"""
        with self._lock:
            now = time.monotonic()
            seat.tag += now - seat.began
            if seat in self._running:
                self._running.remove(seat)
            if self._waiting:
                self._kept_tag, self._kept_until = seat.tag, now + self._return
                self._call_next()

    @property
    def _room(self) -> bool:
        return len(self._running) < self._lanes

    def _may_begin(self, seat: Seat, now: float) -> bool:
        if not self._room or seat is not min(self._waiting, key=_tag):
            return False
        return seat.tag <= self._kept_tag or now >= self._kept_until

    def _begin(self, seat: Seat, now: float) -> None:
        self._waiting.remove(seat)
        self._running.append(seat)
        self._virtual = seat.tag
        self._kept_until = 0.0
        seat.began = now
        seat.turns += 1
        self._call_next()

    def _call_next(self) -> None:
        if self._waiting and self._room:
            min(self._waiting, key=_tag).called.set()

    def _pass_over(self, now: float) -> None:
        """Count those no longer whose step has taken too long."""
        for seat in [each for each in self._running if now - each.began >= self._patience]:
            self._running.remove(seat)
            seat.passed_over += 1
            if seat.passed_over == 1:
                logger.warning(
                    "a step of module %s takes more than %g s: other modules on %s do not wait for it",
                    seat.module,
                    self._patience,
                    self.name,
                )
        self._call_next()


class Seat:
    """One module's place on a device: a context in which its steps run. Entered by one thread only.

    Attributes:
        tag: the device's time (s) that it has had, or has no more claim on.
        turns: how many steps it has begun.
        passed_over: how often others did not wait for the end of its step.
    """

    def __init__(self, schedule: Schedule, module: str) -> None:
        self.module = module
        self.called = threading.Event()
        self.tag = 0.0
        self.began = 0.0
        self.turns = 0
        self.passed_over = 0
        self._schedule = schedule

    def __enter__(self) -> None:
        self._schedule.enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._schedule.leave(self)


def _tag(seat: Seat) -> float:
    return seat.tag


def seats(modules: dict[str, str]) -> dict[str, Seat]:
    """A seat for each module that has to share its device; none for one that has it alone.

    Args:
        modules: the device of each module.
    """
    shared: dict[str, Seat] = {}
    for device in sorted(set(modules.values())):
        names = [name for name, where in modules.items() if where == device]
        if len(names) > 1:
            schedule = Schedule(device)
            logger.info("%s take turns on %s", ", ".join(names), device)
            shared |= {name: schedule.seat(name) for name in names}
    return shared
