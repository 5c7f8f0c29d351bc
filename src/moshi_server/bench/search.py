"""The most streams that hold, by doubling and then bisection; it knows not what a stream is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from .report import Trial

RESOLUTION: Final = 0.05
"""The answer is looked for no closer than this share of it."""
CHANCES: Final = 2
"""A number has failed when it failed so often: one hiccup of the machine is not the server's limit."""


async def search(attempt: Callable[[int], Awaitable[Trial]], first: int, most: int) -> list[Trial]:
    """Try numbers of streams, from ``first`` on and up to ``most``; returns every trial in its order."""
    trials: list[Trial] = []

    async def holds(streams: int) -> bool:
        for _ in range(CHANCES):
            trials.append(await attempt(streams))
            if trials[-1].held:
                return True
            if trials[-1].errors:
                break  # the server says itself that it is full, or broken
        return False

    low, high = 0, max(1, min(first, most))  # low holds, high is to be tried
    while await holds(high):
        low = high
        if low == most:
            return trials
        high = min(2 * high, most)
    while high - low > max(1, int(RESOLUTION * low)):
        middle = (low + high) // 2
        if await holds(middle):
            low = middle
        else:
            high = middle
    return trials
