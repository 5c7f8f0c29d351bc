"""Samples in memory: the constants of the codec, cutting into frames, mixing down and resampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE: Final = 24_000
"""Samples a second, everywhere in this package."""
FRAME_SIZE: Final = 1920
"""Samples of one frame, the step of every model here: 80 ms."""
FRAME_RATE: Final = SAMPLE_RATE / FRAME_SIZE
"""Frames a second: 12.5."""


def frames(pcm: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Whole frames of shape (1920,); a shorter rest at the end is filled up with silence."""
    for chunk in chunks(pcm, FRAME_SIZE):
        yield chunk if len(chunk) == FRAME_SIZE else np.pad(chunk, (0, FRAME_SIZE - len(chunk)))


def chunks(pcm: NDArray[np.float32], samples: int) -> Iterator[NDArray[np.float32]]:
    """Views of at most ``samples`` samples, in order; the last may be shorter."""
    for start in range(0, len(pcm), samples):
        yield pcm[start : start + samples]


def mono(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Channels (channels, samples) to their mean (samples,)."""
    if len(pcm) == 1:
        first: NDArray[np.float32] = pcm[0]
        return first
    mean: NDArray[np.float32] = pcm.mean(axis=0, dtype=np.float32)
    return mean


def resample(pcm: NDArray[np.float32], rate: int, to: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Change the sample rate of (samples,): ``samples * to / rate`` come out, rounded, aligned in time."""
    if rate == to:
        return pcm
    import soxr

    length = (len(pcm) * to + rate // 2) // rate
    out: NDArray[Any] = soxr.resample(pcm, rate, to)
    if len(out) != length:  # the last sample falls on either side of the rounding
        out = np.pad(out[:length], (0, max(0, length - len(out))))
    return out.astype(np.float32, copy=False)
