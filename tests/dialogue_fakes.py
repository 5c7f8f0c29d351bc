"""A dialogue without a model: it says back what it hears, a fixed number of steps later, and spells as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moshi_server.engine.dialogue import Begin, DialogueStream, Spoken
from moshi_server.engine.frames import Frame
from moshi_server.speech.dialogue import DialogueSettings, TextPieces

PAD = 3
WORDS = ("▁well", "▁in", "deed", ",")


class EchoRunner:
    """Speaks the frame heard ``delay`` steps before; every fourth step says the next of `WORDS`."""

    def __init__(self, slots: int, delay: int = 2) -> None:
        self._slots = slots
        self.delay = delay
        self.heard: list[list[Frame]] = [[] for _ in range(slots)]
        self.settings: dict[int, DialogueSettings] = {}
        self.resets: list[int] = []
        self.before_step: Callable[[], None] = lambda: None

    @property
    def slots(self) -> int:
        return self._slots

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.heard[slot] = []
            self.settings.pop(slot, None)
            self.resets.append(slot)

    def step(self, slots: Sequence[int], inputs: Sequence[Begin | Frame]) -> list[Spoken]:
        self.before_step()
        return [self._one(slot, given) for slot, given in zip(slots, inputs, strict=True)]

    def _one(self, slot: int, given: Begin | Frame) -> Spoken:
        heard = self.heard[slot]
        if isinstance(given, Begin):
            assert slot not in self.settings, "begun twice without a reset"
            self.settings[slot] = given.settings
            heard.append(np.zeros(1920, np.float32))
        else:
            assert slot in self.settings, "a frame before the beginning"
            assert given.shape == (1920,)
            heard.append(given.copy())
        step = len(heard) - 1
        token = 10 + (step // 4 - 1) % len(WORDS) if step and step % 4 == 0 else PAD
        return Spoken(token, heard[step - self.delay] if step >= self.delay else None)

    def warmup(self) -> None:
        return None


def make_stream(**options: object) -> DialogueStream:
    pieces = TextPieces(lambda token: WORDS[token - 10], lambda token: False, silent=(0, PAD))
    return DialogueStream(pieces, DialogueSettings(), **options)  # type: ignore[arg-type]
