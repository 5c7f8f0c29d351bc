"""Notices a recogniser that is stuck: silent in mid-speech, or caught in a loop; it resets nothing itself."""

from __future__ import annotations

from collections import deque
from itertools import islice

from ..audio import FRAME_RATE

SPEECH_RMS = 0.01
"""Frames quieter than this (full scale 1) are never taken for speech."""
LOOP_WORDS = 32
LOOP_PERIODS = (1, 2, 3, 4)


class Watchdog:
    """One stream's watch.

    Args:
        seconds: how long speech may go on with no word before it counts as stuck; 0 turns the watch off.
    """

    def __init__(self, seconds: float) -> None:
        self._limit = round(seconds * FRAME_RATE)
        self._wordless = 0
        self._recent: deque[str] = deque(maxlen=LOOP_WORDS)

    @property
    def enabled(self) -> bool:
        """Whether frames need be looked at."""
        return self._limit > 0

    def frame(self, rms: float, pause: float) -> bool:
        """Take one frame: its level, and the probability of a pause; returns True when the stream is stuck."""
        if not self._limit:
            return False
        if rms >= SPEECH_RMS and pause < 0.5:
            self._wordless += 1
        if self._wordless < self._limit and not self._looping():
            return False
        self._wordless = 0
        self._recent.clear()
        return True

    def word(self, text: str) -> None:
        """A word has come."""
        self._wordless = 0
        self._recent.append(text)

    def _looping(self) -> bool:
        if len(self._recent) < LOOP_WORDS:
            return False
        return any(
            all(a == b for a, b in zip(self._recent, islice(self._recent, period, None), strict=False))
            for period in LOOP_PERIODS
        )
