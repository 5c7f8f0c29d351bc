"""From pause probabilities to turns that start and end, with hysteresis; it knows no model, no audio and no client.

A turn ends when the probability that a pause is under way reaches one threshold, and the next one starts when it has
fallen to another, lower one, so that a value which wavers between the two changes nothing. Before the first pause there
is nothing to fall from: there a turn starts with the first word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..events import Turn


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """When a turn starts and ends.

    Attributes:
        head: which of the pause probabilities counts: 0, 1, 2, 3 for a pause of 0.5, 1, 2, 3 s; the last of a model
            that has fewer.
        start: a turn starts once the probability is at most this.
        end: a turn ends once the probability is at least this; not below ``start``.
    """

    head: int = 2
    start: float = 0.4
    end: float = 0.6


class TurnDetector:
    """One stream's turns: they start and end by turns, and the first one starts.

    Times are seconds of the client's audio, at the end of the frame that decided; they must be given in their order.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self._settings = settings
        self._speaking = False
        self._paused = False

    def frame(self, prs: Sequence[float], time: float) -> Turn | None:
        """Take the pause probabilities of one frame, none without extra heads; returns what has changed."""
        if not prs:
            return None
        pause = prs[min(self._settings.head, len(prs) - 1)]
        if pause >= self._settings.end:
            self._paused = True
            if self._speaking:
                self._speaking = False
                return Turn("end", time)
        elif pause <= self._settings.start and self._paused:
            return self._start(time)
        return None

    def word(self, time: float) -> Turn | None:
        """Take a word. It starts the first turn only: later ones come when the pause before them is long noticed."""
        return None if self._paused else self._start(time)

    def _start(self, time: float) -> Turn | None:
        if self._speaking:
            return None
        self._speaking = True
        return Turn("start", time)
