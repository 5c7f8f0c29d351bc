"""A text-to-speech engine without a model: each word is a tone, as long as it has letters, in the slot's own pitch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, Eos, Finished, NextSpeaker, SpeechSettings, SpokenWord, Text, Voice
from moshi_server.speech.text import Pause, SpokenText, TextQueue, Word

FRAME = 1920
TAIL = 2
"""Frames of silence after the last word."""


class Letters:
    """A tokenizer whose pieces are characters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if letter.isascii()]


@dataclass(frozen=True)
class Tone:
    """One frame to make: its loudness, 0 for silence."""

    level: float


class ToneRunner:
    """Sings frames; a slot's phase goes on from frame to frame, so that a gap or a foreign frame is heard."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.phase = [0] * slots
        self.batches: list[list[int]] = []
        self.before_step: Callable[[], None] = lambda: None

    @property
    def slots(self) -> int:
        return self._slots

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.phase[slot] = 0

    def step(self, slots: Sequence[int], inputs: Sequence[Tone]) -> list[np.ndarray]:
        self.before_step()
        self.batches.append(list(slots))
        outputs = []
        for slot, tone in zip(slots, inputs, strict=True):
            at = np.arange(self.phase[slot], self.phase[slot] + FRAME)
            outputs.append((tone.level * np.sin(2 * np.pi * 440 * at / 24_000)).astype(np.float32))
            self.phase[slot] += FRAME
        return outputs

    def warmup(self) -> None:
        return None


class ToneStream:
    """Speaks a word once the next one is there, or the text is complete, as a model with a lookahead does."""

    def __init__(self) -> None:
        self.needs_reset = True
        self.settings = SpeechSettings()
        self.embedding: np.ndarray | None = None
        self._queue = TextQueue(SpokenText(Letters(), 1))
        self._words: list[Word | Pause] = []
        self._ended = False
        self._finished = False
        self._left = 0
        self._tail = TAIL
        self._step = 0
        self._begun = 0
        self.threads = {threading.get_ident()}

    def put(self, event: Any, now: float) -> list[Any]:
        match event:
            case SpeechSettings():
                self.settings = event
            case Voice(embedding):
                if embedding.ndim != 2 or embedding.shape[1] != 4:
                    raise InvalidMessageError(f"the voice has the shape {embedding.shape}, not (frames, 4)")
                self.embedding = embedding
            case Text(text):
                self._queue.put(text)
            case NextSpeaker():
                self._queue.next_turn()
            case Eos():
                self._ended = True
                self._finished = self._step == 0 and self._queue.empty and not self._words
                self._queue.end()
                if self._finished:
                    return [Finished()]
        return []

    def size(self, event: Any) -> int:
        return len(event.text) if isinstance(event, Text) else 0

    def take(self, now: float) -> Tone | None:
        if self._finished:
            return None
        self._words += self._queue.pull(2 - len(self._words))
        if self._left == 0:
            if self._words and (len(self._words) > 1 or self._ended):
                word = self._words[0]
                self._left = word.frames if isinstance(word, Pause) else len(word.text)
                self._begun = self._step
            elif not self._ended:
                return None
        silent = not self._words or isinstance(self._words[0], Pause)
        return Tone(0.0 if silent else 0.5)

    def accept(self, output: np.ndarray) -> list[Any]:
        self._step += 1
        events: list[Any] = [Audio(output)]
        if self._left:
            self._left -= 1
            if self._left == 0:
                word = self._words.pop(0)
                events.append(SpokenWord(word.text, self._begun * 0.08, self._step * 0.08))
        else:
            self._tail -= 1
            if self._tail == 0:
                self._finished = True
                events.append(Finished())
        return events

    def deadline(self) -> float | None:
        return None

    @property
    def consumed(self) -> int:
        return self._queue.characters_out


def frames_of(text: str) -> int:
    """How many frames the fake needs for words without pauses."""
    return sum(len(word) for word in text.split()) + TAIL
