"""What a stream's client must remember to go on with another server: audio, questions, words; it knows no socket.

Audio is kept until words or steps prove that it was transcribed, and a little longer: the next server hears the last
words once more, from a quiet place on, and the words that both have heard tell where the new ones begin.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from ..errors import InvalidMessageError
from ..events import AsrClientEvent, AsrServerEvent, Audio, EndWord, Flush, Marker, Step, Turn, Word
from .joining import Heard, repeated

LAG: Final = 4.0
"""Seconds that words come after their audio, at most: the slowest published model's delay, and one to spell."""
CONTEXT: Final = 4.0
"""Seconds before the last word that are heard once more, at most."""
LEAST_CONTEXT: Final = 1.0
PAUSE: Final = 2.0
"""So long after a word began, with nothing heard since, it is over."""
MARGIN: Final = 1.0
"""Seconds by which a word that is heard again may have moved, at most."""
KEPT: Final = CONTEXT + 1.5
"""Seconds of audio that are kept though they are proven."""
OWN_MARKERS: Final = -(2**62)
"""The ids of markers that are not the caller's, counted down from here."""


@dataclass(slots=True)
class _Asked:
    """A marker or flush that waits for its answer, and after how many samples it was asked."""

    position: int
    event: Marker | Flush

    @property
    def own(self) -> bool:
        return isinstance(self.event, Marker) and self.event.id <= OWN_MARKERS


class Replay:
    """One recording over any number of connections: `begin` each, send it `following`, and `take` what it says.

    What `take` returns is one stream's: each word once and in order, times and steps counted from the recording's
    beginning. Positions are samples of the recording.
    """

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._end = 0
        self._asked: deque[_Asked] = deque()
        self._own_markers = 0
        self._known: deque[Heard] = deque()  # the last words told, back to CONTEXT, and the one before them
        self._before = Heard("", 0.0)
        self._unended = False
        self._proven = 0.0
        self._lag = 0.0
        self._steps = 0
        self._turn = Turn("end", -1.0)
        self._connect(0, [])

    def _connect(self, position: int, expected: list[Heard]) -> None:
        self._base = self._sent = position
        self._heard = position / SAMPLE_RATE
        self._has_steps = False
        self._questions_sent = 0
        self._expected = expected
        self._held: list[AsrServerEvent] = []

    @property
    def unproven(self) -> float:
        """Seconds of audio of which nothing proves that they were transcribed."""
        return self._end / SAMPLE_RATE - self._proven

    @property
    def proven(self) -> float:
        """Seconds of audio that words, steps or answers prove to be transcribed."""
        return self._proven

    @property
    def owed(self) -> bool:
        """Whether the server has yet to answer something that it was sent."""
        return self._questions_sent > 0 or self._sent / SAMPLE_RATE - max(self._heard, self._proven) > 1 / FRAME_RATE

    def add(self, event: AsrClientEvent) -> None:
        """Remember one event of the caller's.

        Raises:
            InvalidMessageError: it is not one that could be said again to another server.
        """
        match event:
            case Audio(pcm):
                if len(pcm):
                    self._chunks.append((self._end, pcm))
                    self._end += len(pcm)
            case Marker() | Flush():
                self._asked.append(_Asked(self._end, event))
            case _:
                raise InvalidMessageError(
                    f"a stream that reconnects takes samples, markers and flushes, no {type(event).__name__}",
                    hint="open another stream, or a plain AsrClient",
                )

    def begin(self) -> float:
        """A new connection is there; returns how many seconds of audio it is to hear again."""
        had = self._sent
        self._asked = deque(asked for asked in self._asked if not asked.own)
        cut, expected = self._cut()
        self._connect(cut, expected)
        return max(0, had - cut) / SAMPLE_RATE

    def following(self) -> AsrClientEvent | None:
        """What this connection is to be sent next; None while there is nothing."""
        if self._questions_sent < len(self._asked):
            question = self._asked[self._questions_sent]
            if question.position <= self._sent:
                self._questions_sent += 1
                return question.event
        if self._sent == self._end:
            return None
        position, chunk = next((at, chunk) for at, chunk in reversed(self._chunks) if at <= self._sent)
        pcm = chunk[self._sent - position :]
        self._sent += len(pcm)
        return Audio(pcm)

    def ask(self) -> None:
        """Ask with a marker of our own what was transcribed, of a model that tells no steps; once at a time."""
        if not self._has_steps and not any(asked.own for asked in self._asked):
            self._own_markers += 1
            self._asked.append(_Asked(self._end, Marker(OWN_MARKERS - self._own_markers)))

    def take(self, event: AsrServerEvent) -> list[AsrServerEvent]:
        """What the caller is told when this connection says so."""
        event = self._shifted(event)
        if not self._expected:
            return self._told(event)
        self._held.append(event)
        if not self._settles(event):
            return []
        held, self._held = self._held, []
        words = [Heard(word.text, word.start_time) for word in held if isinstance(word, Word)]
        return self._after(held, repeated(self._expected, words))

    # From the connection's clock to the recording's, and on to the caller.

    def _shifted(self, event: AsrServerEvent) -> AsrServerEvent:
        offset = self._base / SAMPLE_RATE
        match event:
            case Word(text, start):
                self._lag = max(self._lag, min(LAG, self._heard - start - offset))
                return Word(text, start + offset)
            case EndWord(stop):
                return EndWord(stop + offset)
            case Turn(kind, time):
                return Turn(kind, time + offset)
            case Step(step_idx=index):
                self._has_steps = True
                index += self._base // FRAME_SIZE
                self._heard = index / FRAME_RATE
                return replace(event, step_idx=index)
            case _:
                return event

    def _settles(self, event: AsrServerEvent) -> bool:
        """Whether all words that may repeat the expected ones are there."""
        last = self._expected[-1].start
        match event:
            case Word(start_time=start):
                return start > last + MARGIN
            case Step():
                return self._heard > last + (self._lag or LAG) + MARGIN
            case Marker() | Flush():
                return any(asked.event == event and asked.position >= last * SAMPLE_RATE for asked in self._asked)
            case _:
                return False

    def _after(self, held: list[AsrServerEvent], repeats: int) -> list[AsrServerEvent]:
        """What was held back, without the words that were told before."""
        self._expected = []
        told: list[AsrServerEvent] = []
        for event in held:
            if isinstance(event, Word) and repeats:
                repeats -= 1
            elif not isinstance(event, EndWord) or not repeats:
                told += self._told(event)
        return told

    def _told(self, event: AsrServerEvent) -> list[AsrServerEvent]:
        last = self._known[-1].start if self._known else 0.0
        match event:
            case Word(text, start):
                event = Word(text, max(start, last))
                self._known.append(Heard(text, event.start_time))
                while self._known[0].start < event.start_time - CONTEXT:
                    self._before = self._known.popleft()
                self._unended = True
                self._prove(event.start_time)
            case EndWord(stop):
                if not self._unended:
                    return []
                self._unended = False
                event = EndWord(max(stop, last))
            case Step(step_idx=index):
                if index <= self._steps:
                    return []
                self._steps = index
                self._prove(index / FRAME_RATE - LAG)
            case Turn(kind, time):
                if kind == self._turn.kind or time < self._turn.time:
                    return []
                self._turn = event
            case Marker() | Flush():
                return self._answered(event)
        return [event]

    def _answered(self, event: Marker | Flush) -> list[AsrServerEvent]:
        asked = next((asked for asked in self._asked if asked.event == event), None)
        if asked is None:
            return []
        self._asked.remove(asked)
        self._questions_sent = max(0, self._questions_sent - 1)
        self._prove(asked.position / SAMPLE_RATE)
        return [] if asked.own else [event]

    def _prove(self, seconds: float) -> None:
        """All before this is transcribed: let go of what no other server needs to hear."""
        self._proven = max(self._proven, min(seconds, self._end / SAMPLE_RATE))
        keep = (self._proven - KEPT) * SAMPLE_RATE
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= keep:
            self._chunks.popleft()

    # Where the next connection begins.

    def _cut(self) -> tuple[int, list[Heard]]:
        """The position from which all is to be heard again, and the words known already that follow it."""
        last = self._known[-1].start if self._known else 0.0
        if not self._known or self._proven - last > PAUSE:
            over = last + 0.75 * PAUSE if self._known else 0.0
            return self._quiet(max(over, self._proven - 1.0), self._proven), []
        words = [self._before, *self._known]
        pauses = [(after.start - before.start, at) for at, (before, after) in enumerate(pairwise(words))]
        early = [pause for pause in pauses if last - self._known[pause[1]].start >= LEAST_CONTEXT]
        _, at = max(early or pauses)
        expected = list(self._known)[at:]
        begin = expected[0].start
        return self._quiet(max(words[at].start + 0.2, begin - 1.0), begin), expected

    def _quiet(self, low: float, high: float) -> int:
        """The beginning of a frame between these times (s), where the least is to be heard; the latest of several."""
        kept = -(-self._chunks[0][0] // FRAME_SIZE) if self._chunks else 0
        first, last = max(kept, -int(-low * FRAME_RATE // 1)), max(kept, int(high * FRAME_RATE))
        around = [(self._power(frame * FRAME_SIZE), -frame) for frame in range(min(first, last), last + 1)]
        return min(self._end, -min(around)[1] * FRAME_SIZE)

    def _power(self, position: int) -> float:
        """The mean square of one frame of audio around a position."""
        low, high = position - FRAME_SIZE // 2, position + FRAME_SIZE // 2
        parts = [pcm[max(0, low - at) : max(0, high - at)] for at, pcm in self._chunks]
        return sum(float(np.dot(part, part)) for part in parts) / FRAME_SIZE
