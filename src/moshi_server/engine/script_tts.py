"""Text to speech by a user's script, in upstream's contract: `Py` with ``script``; it knows no socket.

The script's ``step(updates, pcm_out, flags_out, codes_out)`` decides for all slots at once which of them speak in a
step. What it made of a slot that was not asked for is kept until that slot's turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..errors import InvalidMessageError
from ..events import Audio, Eos, Finished, NextSpeaker, SpeechSettings, SpokenWord, Text, Voice
from ..speech.text import Pause, SpokenText, TextQueue
from ..speech.tokenizer import PADDING
from .script import Script

CODES: Final = 33
"""Columns of ``codes_out``: a text token and up to 32 of Mimi's codes, in which the server has no interest."""

# Among the tokens of an update.
START: Final = -1
END: Final = -2

# What the script says of a slot in `flags_out`.
HAS_PCM: Final = 1
IS_EOS: Final = 2
WORD_BEGINS: Final = 4
AR_STEP: Final = 8
MISSING_WORDS: Final = 16

MAX_AHEAD: Final = 16
"""Words that a script is given before they are spoken, unless it asks for more."""
IDLE_SECONDS: Final = 0.002
"""How long a stream rests after a step in which the script did nothing for it."""
MISSING_SECONDS: Final = 0.1
"""As above, where the script waits for words and none have come."""

Pcm = NDArray[np.float32]
NamedVoice = str | Pcm


class TtsUpdate(NamedTuple):
    """What a script is told of a slot: tokens to speak (None for nothing new), and a voice with the first of them."""

    tokens: list[int] | None
    voice: NamedVoice | None = None


class TtsOutput(NamedTuple):
    """What a script said of a slot in one step, and its frame of 1920 samples if it made one."""

    flags: int
    pcm: Pcm | None


class ScriptTtsStream:
    """One client's text in, sound and words out.

    Args:
        text: words and their tokens.
    """

    def __init__(self, text: SpokenText) -> None:
        self.needs_reset = False  # the first update says so to the script
        self._queue = TextQueue(text)
        self._voice: NamedVoice | None = None
        self._unspoken: deque[str] = deque()
        self._ended = self._told_end = self._started = self._finished = False
        self._flags = AR_STEP
        self._steps = 0
        self._word_began = 0
        self._again = 0.0

    @property
    def consumed(self) -> int:
        """Characters of which words were made."""
        return self._queue.characters_out

    def size(self, event: Any) -> int:
        """How many characters an event brings."""
        return len(event.text) if isinstance(event, Text) else 0

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event; of the settings only the voice is known to scripts."""
        match event:
            case SpeechSettings(voice=voice):
                self._voice = voice
            case Voice(embedding):
                self._voice = embedding
            case Text(text):
                self._queue.put(text)
            case NextSpeaker():
                self._queue.next_turn()
            case Eos():
                self._queue.end()
                self._ended = True
                if not self._started and self._queue.empty:
                    return self._finish()
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of text to speech")
        self._again = 0.0
        return []

    def take(self, now: float) -> TtsUpdate | None:
        """The next word for the script, or that it may go on."""
        if self._finished:
            return None
        if len(self._unspoken) < MAX_AHEAD or self._flags & MISSING_WORDS:
            for word in self._queue.pull(1):
                tokens = [PADDING] * word.frames if isinstance(word, Pause) else list(word.tokens)
                self._unspoken.append(word.text)
                return self._update(tokens)
        if self._ended and self._queue.empty and not self._told_end:
            self._told_end = True
            return self._update([END]) if self._started else TtsUpdate(None)
        return TtsUpdate(None) if self._started and now >= self._again else None

    def accept(self, output: Sequence[TtsOutput]) -> list[Any]:
        """What the script made since this stream's last step."""
        events: list[Any] = []
        if self._told_end and not self._started:  # the text was nothing but what is not spoken
            return self._finish()
        self._flags = 0
        for flags, pcm in output:
            self._flags = flags
            if flags & AR_STEP:
                self._steps += 1
            if flags & WORD_BEGINS:
                if self._word_began > 0:
                    events += self._word()
                self._word_began = self._steps
            if pcm is not None:
                events.append(Audio(pcm))
            if flags & IS_EOS:
                return events + self._word() + self._finish()
        if not self._flags & AR_STEP:
            self._again = time.monotonic() + (MISSING_SECONDS if self._flags & MISSING_WORDS else IDLE_SECONDS)
        return events

    def deadline(self) -> float | None:
        """When the script is asked again although nothing came."""
        return self._again if self._started and not self._finished else None

    def _update(self, tokens: list[int]) -> TtsUpdate:
        if self._started:
            return TtsUpdate(tokens)
        self._started = True
        voice, self._voice = self._voice, None
        return TtsUpdate([START, *tokens], voice)

    def _word(self) -> list[Any]:
        if not self._unspoken:
            return []
        frame = FRAME_SIZE / SAMPLE_RATE
        return [SpokenWord(self._unspoken.popleft(), self._word_began * frame, self._steps * frame)]

    def _finish(self) -> list[Any]:
        self._finished = True
        return [Finished()]


class ScriptTtsRunner:
    """Steps a script for the batcher.

    Args:
        script: what runs; started by `prepare`.
        slots: the ``batch_size`` that it is made with.
        options: the module's ``py`` table.
        on_words: told after each step for how many streams words were missing, and for how many not.
    """

    def __init__(
        self, script: Script, slots: int, options: dict[str, Any], on_words: Callable[[int, int], None]
    ) -> None:
        self._script = script
        self._slots = slots
        self._options = options
        self._on_words = on_words
        self._speaking: set[int] = set()
        self._kept: list[list[TtsOutput]] = [[] for _ in range(slots)]
        self._pcm = np.zeros((slots, FRAME_SIZE), np.float32)
        self._flags = np.zeros(slots, np.uint8)
        self._codes = np.zeros((slots, CODES), np.int32)

    @property
    def slots(self) -> int:
        """How many streams have state in the script."""
        return self._slots

    def prepare(self) -> None:
        """Start the script.

        Raises:
            ScriptError: it does not start.
        """
        self._script.init(self._slots, self._options)

    def reset(self, slots: Sequence[int]) -> None:
        """Nothing: a stream's first update says that it is new."""

    def step(self, slots: Sequence[int], inputs: Sequence[TtsUpdate]) -> list[list[TtsOutput]]:
        """One call of the script; for each slot what it made since that slot's last step.

        Raises:
            ScriptError: the script raised, or gave what is no sound.
        """
        updates: list[tuple[int, list[int], NamedVoice | None]] = []
        for slot, update in zip(slots, inputs, strict=True):
            if update.tokens is None:
                continue
            updates.append((slot, update.tokens, update.voice))
            if update.tokens[0] == START:
                self._speaking.add(slot)
                self._kept[slot].clear()
        if self._speaking:
            self._run(updates)
        return [self._taken(slot) for slot in slots]

    def warmup(self) -> None:
        """Nothing: a script speaks only text, and warms itself up in ``init``."""

    def _run(self, updates: list[tuple[int, list[int], NamedVoice | None]]) -> None:
        self._flags[:] = 0
        self._script.call("step", updates, self._pcm, self._flags, self._codes)
        flags = {slot: int(self._flags[slot]) for slot in self._speaking}
        for slot, said in flags.items():
            kept = self._kept[slot]
            if kept and kept[-1].flags in (0, MISSING_WORDS):
                kept.pop()  # nothing happened then: a stream that is long away must not pile that up
            kept.append(TtsOutput(said, self._sound(slot) if said & HAS_PCM else None))
            if said & IS_EOS:
                self._speaking.discard(slot)
        missing = sum(bool(said & MISSING_WORDS) for said in flags.values())
        self._on_words(missing, len(flags) - missing)

    def _sound(self, slot: int) -> Pcm:
        pcm: Pcm = self._pcm[slot].copy()
        if not np.isfinite(pcm).all():
            raise self._script.wrong(f"step wrote values that are not finite into pcm_out[{slot}]")
        return pcm

    def _taken(self, slot: int) -> list[TtsOutput]:
        outputs, self._kept[slot] = self._kept[slot], []
        return outputs
