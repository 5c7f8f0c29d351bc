"""Many measured times down to a few: percentiles, and how they went over a run; it knows not what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of ``count`` times, in milliseconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


def percentiles(seconds: ArrayLike) -> Percentiles | None:
    """Of times in seconds, of shape (count,); None if there are none."""
    values = np.asarray(seconds, dtype=np.float64) * 1000
    if not values.size:
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Percentiles(int(values.size), float(p50), float(p90), float(p99), float(values.max()))


@dataclass(frozen=True, slots=True)
class Moment:
    """What was measured in one second of a run, in milliseconds."""

    second: int
    p50: float
    p99: float


def course(moments: ArrayLike, seconds: ArrayLike) -> list[Moment]:
    """Percentiles for each second of a run; ``moments`` (s since its beginning) says when each time was taken."""
    when = np.floor(np.asarray(moments, dtype=np.float64)).astype(int)
    values = np.asarray(seconds, dtype=np.float64)
    found = []
    for second in np.unique(when):
        some = percentiles(values[when == second])
        assert some is not None
        found.append(Moment(int(second), some.p50, some.p99))
    return found


def growth(moments: ArrayLike, seconds: ArrayLike) -> float:
    """By how much (s) the median of the last third of the run exceeds that of the first; 0 if either is empty."""
    when = np.asarray(moments, dtype=np.float64)
    values = np.asarray(seconds, dtype=np.float64)
    if not when.size:
        return 0.0
    third = (when.max() - when.min()) / 3
    first, last = values[when < when.min() + third], values[when > when.max() - third]
    return float(np.median(last) - np.median(first)) if first.size and last.size else 0.0
