"""Pocket TTS, Kyutai's small model for CPUs, behind the batcher's seam: bounded workers; it knows no socket.

The package ``pocket-tts`` makes a sentence's sound with threads of its own, and one of its models speaks one text at a
time. So each slot has a model of its own, which shares its weights with the others', and a step asks all of them for
their next sound at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..errors import EngineFailedError, InvalidMessageError, SessionError
from ..events import Audio, Eos, Finished, NextSpeaker, SpeechSettings, SpokenWord, Text, Voice
from ..speech.text import Pause, SpokenText, TextQueue
from ..speech.voices import Voices

MAX_WORDS: Final = 40
"""After so many words without a sentence's end, what there is counts as one."""
_ENDS: Final = (".", "!", "?", "…", ";")
_CLOSING: Final = "\"'”’»)]"

Pcm = NDArray[np.float32]


class PocketModel(Protocol):
    """What is used of ``pocket_tts.TTSModel``."""

    temp: float

    def generate_audio_stream(
        self, model_state: Any, text_to_generate: str, *, copy_state: bool = True, stop: threading.Event | None = None
    ) -> Iterator[Any]:
        """A text's sound in chunks (samples,) at 24 kHz."""
        ...


class Sentence(NamedTuple):
    """What a slot is to begin: a sentence, in a voice, with a temperature (None for the model's own)."""

    text: str
    voice: str | None
    temperature: float | None


class Rest(NamedTuple):
    """Silence of so many frames."""

    frames: int


class GoOn(NamedTuple):
    """More of the sentence that was begun."""


class Chunk(NamedTuple):
    """What came of it: sound (samples,), and whether the sentence is over. Or why it cannot be spoken."""

    pcm: Pcm
    over: bool
    error: SessionError | None = None


class PocketRunner:
    """Steps models, one a slot, on as many threads.

    Args:
        models: one for each slot, on weights that they may share.
        state_of: a voice's state, by its name or None for the default; called on any of the threads.
    """

    def __init__(self, models: Sequence[PocketModel], state_of: Callable[[str | None], Any]) -> None:
        self._models = models
        self._state_of = state_of
        self._speaking: list[Iterator[Any] | None] = [None] * len(models)
        self._stops = [threading.Event() for _ in models]
        self._usual = [model.temp for model in models]
        self._pool = ThreadPoolExecutor(len(models), "pocket")

    @property
    def slots(self) -> int:
        """How many speak at once."""
        return len(self._models)

    def reset(self, slots: Sequence[int]) -> None:
        """Stop what these slots are speaking."""
        for slot in slots:
            self._stops[slot].set()
            self._speaking[slot] = None

    def step(self, slots: Sequence[int], inputs: Sequence[Sentence | Rest | GoOn]) -> list[Chunk]:
        """The next sound of these slots."""
        return list(self._pool.map(self._one, slots, inputs))

    def warmup(self) -> None:
        """Speak a word in each slot, up to its first sound."""
        for chunk in self.step(range(self.slots), [Sentence("Hello.", None, None)] * self.slots):
            if chunk.error is not None:
                raise chunk.error
        self.reset(range(self.slots))

    def _one(self, slot: int, wanted: Sentence | Rest | GoOn) -> Chunk:
        if isinstance(wanted, Rest):
            return Chunk(np.zeros(wanted.frames * FRAME_SIZE, np.float32), True)
        try:
            if isinstance(wanted, Sentence):
                self._begin(slot, wanted)
            speaking = self._speaking[slot]
            assert speaking is not None
            part = next(speaking, None)
        except SessionError as error:
            return Chunk(np.zeros(0, np.float32), True, error)
        except Exception as error:
            failure = EngineFailedError(f"Pocket TTS has failed: {error}", hint="connect again")
            return Chunk(np.zeros(0, np.float32), True, failure)
        if part is None:
            return Chunk(np.zeros(0, np.float32), True)
        return Chunk(np.asarray(part, dtype=np.float32).reshape(-1), False)

    def _begin(self, slot: int, sentence: Sentence) -> None:
        model = self._models[slot]
        model.temp = self._usual[slot] if sentence.temperature is None else sentence.temperature
        stop = self._stops[slot] = threading.Event()
        state = self._state_of(sentence.voice)
        self._speaking[slot] = model.generate_audio_stream(state, sentence.text, copy_state=True, stop=stop)


@dataclass(frozen=True)
class _OnePiece:
    """A tokenizer for which each word is one piece: this model has its own."""

    def encode(self, text: str) -> Sequence[int]:
        return (1,)


class PocketStream:
    """One client's text in, a sentence at a time, and sound out in frames.

    The model tells no times of words, so that a sentence counts as one word.

    Args:
        voices: what may be asked for.
    """

    def __init__(self, voices: Voices) -> None:
        self.needs_reset = True
        self._voices = voices
        self._settings = SpeechSettings()
        self._queue = TextQueue(SpokenText(_OnePiece(), 1))
        self._words: list[str] = []
        self._pauses: deque[int] = deque()
        self._sentence = ""
        self._begun_at = 0
        self._samples = 0
        self._rest: Pcm = np.zeros(0, np.float32)
        self._speaking = self._ended = self._finished = False

    @property
    def consumed(self) -> int:
        """Characters of which words were made."""
        return self._queue.characters_out

    def size(self, event: Any) -> int:
        """How many characters an event brings."""
        return len(event.text) if isinstance(event, Text) else 0

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event.

        Raises:
            InvalidMessageError: it is none of text to speech, or a voice's embedding.
            ResourceNotFoundError: there is no such voice.
        """
        match event:
            case SpeechSettings(voice=voice, voices=several):
                for name in (*several, *((voice,) if voice is not None else ())):
                    self._voices.check(name)
                self._settings = event
            case Voice():
                raise InvalidMessageError("this module takes voices by name only", hint="GET /api/voices lists them")
            case Text(text):
                self._queue.put(text)
            case NextSpeaker():
                self._queue.put(".")
            case Eos() if not self._ended:
                self._ended = True
                self._queue.end()
                if not self._samples and not self._speaking and self._next() is None:
                    self._finished = True
                    return [Finished()]
            case Eos():
                pass
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of text to speech")
        return []

    def take(self, now: float) -> Sentence | Rest | GoOn | None:
        """The next sentence or pause, or that the one begun goes on; None while there is none."""
        if self._finished:
            return None
        if self._speaking:
            return GoOn()
        wanted = self._next()
        if wanted is None:
            return Rest(0) if self._ended else None
        self._speaking = isinstance(wanted, Sentence)
        self._begun_at = self._samples
        if isinstance(wanted, Sentence):
            self._words.clear()
            self._sentence = wanted.text
        else:
            self._pauses.popleft()
        return wanted

    def accept(self, output: Chunk) -> list[Any]:
        """Whole frames of what was made, and the sentence once it is over."""
        if output.error is not None:
            raise output.error
        self._samples += len(output.pcm)
        self._rest = np.concatenate([self._rest, output.pcm])
        events: list[Any] = []
        if output.over and self._speaking:
            self._speaking = False
            begun, ended = self._begun_at / SAMPLE_RATE, self._samples / SAMPLE_RATE
            events.append(SpokenWord(self._sentence, begun, ended))
        limit = self._settings.max_steps
        over = limit is not None and self._samples >= limit * FRAME_SIZE
        last = over or (output.over and self._ended and self._next() is None)
        if last and len(self._rest) % FRAME_SIZE:
            self._rest = np.pad(self._rest, (0, -len(self._rest) % FRAME_SIZE))
        frames = [
            Audio(self._rest[at : at + FRAME_SIZE]) for at in range(0, len(self._rest) - FRAME_SIZE + 1, FRAME_SIZE)
        ]
        self._rest = self._rest[len(frames) * FRAME_SIZE :]
        if last:
            self._finished = True
            events.append(Finished())
        return [*frames, *events]

    def deadline(self) -> float | None:
        """Nothing here waits for time."""
        return None

    def _next(self) -> Sentence | Rest | None:
        """What is to be spoken next, if it is whole; it stays until it is taken."""
        while not self._whole() and not self._pauses:
            parts = self._queue.pull(1)
            if not parts:
                break
            part = parts[0]
            if isinstance(part, Pause):
                self._pauses.append(part.frames)
            else:
                self._words.append(part.text)
        if self._words and (self._whole() or self._pauses or (self._ended and self._queue.empty)):
            return Sentence(" ".join(self._words), self._settings.voice, self._settings.temperature)
        return Rest(self._pauses[0]) if self._pauses else None

    def _whole(self) -> bool:
        return bool(self._words) and (self._words[-1].rstrip(_CLOSING).endswith(_ENDS) or len(self._words) >= MAX_WORDS)
