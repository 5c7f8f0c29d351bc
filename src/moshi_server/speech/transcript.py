"""What was said and when: words with their times, put together from a stream's events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..audio import FRAME_RATE
from ..events import AsrServerEvent, EndWord, Step, Word


@dataclass(frozen=True, slots=True)
class TranscriptWord:
    """One word; ``start`` and ``stop`` in seconds from the beginning of the recording."""

    text: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole recording's words, in order.

    Attributes:
        duration: of the recording, seconds.
    """

    words: tuple[TranscriptWord, ...]
    duration: float

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return " ".join(word.text for word in self.words)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``text``, ``duration`` and ``words``, each with ``text``, ``start`` and ``stop``; times to 1 ms."""
        return {
            "text": self.text,
            "duration": round(self.duration, 3),
            "words": [
                {"text": word.text, "start": round(word.start, 3), "stop": round(word.stop, 3)} for word in self.words
            ],
        }


@dataclass(slots=True)
class TranscriptBuilder:
    """Collects a stream's events; `build` may be called at any time.

    Attributes:
        heard: seconds of audio that the model is known to have heard.
    """

    heard: float = 0.0
    _words: list[TranscriptWord] = field(default_factory=list)
    _open: Word | None = None

    def add(self, event: AsrServerEvent) -> None:
        """Take one event of the server; those that say nothing of words are passed over."""
        match event:
            case Word(text, start):
                self._close(start)
                self._open = Word(text.strip(), start) if text.strip() else None
                self.heard = max(self.heard, start)
            case EndWord(stop):
                self._close(stop)
            case Step(step_idx=index):
                self.heard = max(self.heard, index / FRAME_RATE)
            case _:
                pass

    def build(self, duration: float) -> Transcript:
        """The words so far; one that has no end yet ends with the recording."""
        words = list(self._words)
        if self._open is not None:
            words.append(_word(self._open, duration))
        return Transcript(tuple(words), duration)

    def _close(self, stop: float) -> None:
        if self._open is not None:
            self._words.append(_word(self._open, stop))
            self._open = None


def _word(word: Word, stop: float) -> TranscriptWord:
    return TranscriptWord(word.text, word.start_time, max(word.start_time, stop))
