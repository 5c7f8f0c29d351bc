"""Virtual users who come, stay and go, so that a number of streams is held; it knows neither socket nor protocol.

Every user keeps its own time by absolute deadlines. What the generator itself is late by is written down: where that is
much, the figures are not the server's.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..errors import MoshiServerError

AGAIN_SECONDS: Final = 1.0
"""When a user that was refused is followed by the next, where users come and go."""
TICK_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """How the users behave.

    Attributes:
        streams: how many are there at a time.
        seconds: how long all of them are, after the last has come.
        join_seconds: the time over which they come.
        stay_seconds: how long one stays on average before another takes its place; None for all the time.
        jitter_seconds: a message is sent up to so much after its time, as over a bad network.
        stop_on_error: end the run with the first user that fails.
        seed: of everything random.
    """

    streams: int
    seconds: float
    join_seconds: float = 1.0
    stay_seconds: float | None = None
    jitter_seconds: float = 0.0
    stop_on_error: bool = False
    seed: int = 0


@dataclass(slots=True)
class Register:
    """What is counted of every crowd. Times are seconds; the clock is `time.monotonic`.

    Attributes:
        begun: when the part that counts began: everybody has come.
        here: users that are served now.
        ready: for each user, how long it took from its connecting until the server was ready for it.
        lateness: by how much each message of ours was sent after its time.
        errors: what users failed of, and how many.
    """

    begun: float = 0.0
    here: int = 0
    ready: array[float] = field(default_factory=lambda: array("d"))
    lateness: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """How many users failed."""
        return sum(self.errors.values())


class User(Protocol):
    """One virtual user, who may `run` once."""

    async def run(self, leave_at: float) -> None:
        """Connect, speak until ``leave_at`` and close.

        Raises:
            MoshiServerError: what the server said or did instead.
        """
        ...


async def hold(
    plan: Plan,
    register: Register,
    make_user: Callable[[random.Random], User],
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Let the users come, hold them for the time planned, and let them go. ``on_tick`` is called 4 times a second."""
    start = time.monotonic()
    register.begun = start + plan.join_seconds
    end = register.begun + plan.seconds
    seats = [asyncio.create_task(_seat(index, plan, register, make_user, start, end)) for index in range(plan.streams)]
    everybody = asyncio.gather(*seats)
    try:
        while not everybody.done():
            await asyncio.wait({everybody}, timeout=TICK_SECONDS)
            on_tick()
            if plan.stop_on_error and register.errors:
                return
        await everybody
    finally:
        everybody.cancel()
        await asyncio.gather(everybody, *seats, return_exceptions=True)


async def _seat(
    index: int,
    plan: Plan,
    register: Register,
    make_user: Callable[[random.Random], User],
    start: float,
    end: float,
) -> None:
    rng = random.Random(f"{plan.seed}/{index}")  # noqa: S311
    await asyncio.sleep(start + rng.random() * plan.join_seconds - time.monotonic())
    while time.monotonic() < end:
        leave_at = end
        if plan.stay_seconds is not None:
            leave_at = min(end, time.monotonic() + rng.expovariate(1 / plan.stay_seconds))
        try:
            await make_user(rng).run(leave_at)
        except MoshiServerError as error:
            register.errors[error.message] += 1
            if plan.stay_seconds is None:
                return  # one stream fewer than planned, and the report says so
            await asyncio.sleep(AGAIN_SECONDS)
