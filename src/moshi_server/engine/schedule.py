"""Who steps next where several modules share a device: each takes turns of one step; it knows no model.

The policy: at most ``lanes`` steps run at once. Of those who wait, the module goes first whose last step began longest
ago, so that none waits for more than one step of each other module, however busy they are. A module that nobody
competes with is never held up. A step that does not end (a script that hangs) holds the others up for `PATIENCE` each
time and no longer: they then go beside it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from types import TracebackType
from typing import Final

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.5
"""Seconds after which a module steps although it is not its turn."""


class Schedule:
    """One device.

    Args:
        name: for the log.
        lanes: steps that may run at once.
        patience: see `PATIENCE`.
    """

    def __init__(self, name: str, lanes: int = 1, *, patience: float = PATIENCE) -> None:
        self.name = name
        self._lanes = lanes
        self._patience = patience
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: list[Seat] = []
        self._clock = itertools.count(1)

    def seat(self, module: str) -> Seat:
        """A module's place on the device."""
        return Seat(self, module)

    def enter(self, seat: Seat) -> None:
        """Return when it is this seat's turn."""
        with self._lock:
            if self._running < self._lanes and not self._waiting:
                self._begin(seat)
                return
            seat.called.clear()
            self._waiting.append(seat)
        if seat.called.wait(self._patience):
            return
        with self._lock:
            if seat not in self._waiting:  # called just now
                return
            self._waiting.remove(seat)
            self._begin(seat)
        seat.impatient += 1
        if seat.impatient == 1:
            logger.warning(
                "module %s does not wait for its turn on %s any longer: another module's step takes more than %g s",
                seat.module,
                self.name,
                self._patience,
            )

    def leave(self) -> None:
        """A step has ended: the one who waited longest for a step is next."""
        with self._lock:
            self._running -= 1
            while self._waiting and self._running < self._lanes:
                following = min(self._waiting, key=lambda seat: seat.served)
                self._waiting.remove(following)
                self._begin(following)
                following.called.set()

    def _begin(self, seat: Seat) -> None:
        self._running += 1
        seat.served = next(self._clock)


class Seat:
    """One module's place on a device: a context in which its steps run. Entered by one thread only.

    Attributes:
        served: a number that grows with each turn on the device; 0 before the first.
        impatient: how often it went although it was not its turn.
    """

    def __init__(self, schedule: Schedule, module: str) -> None:
        self.module = module
        self.called = threading.Event()
        self.served = 0
        self.impatient = 0
        self._schedule = schedule

    def __enter__(self) -> None:
        self._schedule.enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._schedule.leave()


def seats(modules: dict[str, str], lanes: dict[str, int]) -> dict[str, Seat]:
    """A seat for each module that has to share: none where there is room for all of a device's modules at once.

    Args:
        modules: the device of each module.
        lanes: how many steps each device takes at once; 1 unless it is here.
    """
    shared: dict[str, Seat] = {}
    for device in sorted(set(modules.values())):
        names = [name for name, where in modules.items() if where == device]
        room = lanes.get(device, 1)
        if len(names) > room:
            schedule = Schedule(device, room)
            logger.info("%s take turns on %s, %d at a time", ", ".join(names), device, room)
            shared |= {name: schedule.seat(name) for name in names}
    return shared
