"""Where a second hearing of the same audio goes on after the first: words and their times, no audio and no socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

SKIP: Final = 0.5
"""What it costs to hold that a word was heard in one of the two hearings only."""
OTHER_TEXT: Final = 0.6
"""What it costs to hold that one word was written down in two ways."""
PER_SECOND: Final = 3.0
"""What it costs to hold that a word moved by a second."""
SURELY_LATER: Final = 0.06
"""Seconds from the last known word's beginning to that of the next one, at least: words are longer."""


class Heard(NamedTuple):
    """A word, and when it began (s)."""

    text: str
    start: float


def repeated(known: Sequence[Heard], again: Sequence[Heard]) -> int:
    """How many of the words that were heard ``again`` repeat ``known``; those after them are new.

    The cheapest alignment of all of ``known`` with a beginning of ``again`` says it: the same word at another time, or
    another word at the same time, costs less than a word that only one of them has.
    """
    if not known:
        return 0
    costs = [SKIP * j for j in range(len(again) + 1)]
    for old in known:
        above, costs = costs, [costs[0] + SKIP]
        for j, new in enumerate(again):
            costs.append(min(above[j] + _same(old, new), above[j + 1] + SKIP, costs[j] + SKIP))
    earliest = known[-1].start + SURELY_LATER
    too_early = 0.0
    totals = []
    for j in range(len(again), -1, -1):
        totals.append((costs[j] + too_early, j))
        if j and again[j - 1].start < earliest:
            too_early += SKIP + PER_SECOND * (earliest - again[j - 1].start)
    return min(totals)[1]


def _same(old: Heard, new: Heard) -> float:
    return PER_SECOND * abs(old.start - new.start) + (0.0 if old.text == new.text else OTHER_TEXT)
