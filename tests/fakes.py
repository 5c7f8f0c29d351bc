"""A runner without a model: it answers from a script, so that batching is tested alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from moshi_server.engine.asr import AsrOutput
from moshi_server.engine.frames import Frame

PAUSE = (0.9, 0.9, 0.9, 0.9)


class FakeRunner:
    """Hears the token that each frame carries, ``delay`` frames late, as a delayed-streams model would.

    A frame says token ``t`` by having all samples equal to ``t / 1000``; silence is padding. Each slot keeps its own
    history, so that a slot which is stepped out of turn, or not reset, says the wrong thing.
    """

    def __init__(self, slots: int, delay: int = 3, *, heads: bool = True) -> None:
        self._slots = slots
        self.delay = delay
        self.heads = heads
        self.history: list[list[int]] = [[] for _ in range(slots)]
        self.batches: list[list[int]] = []
        self.resets: list[int] = []
        self.before_step: Callable[[], None] = lambda: None
        self.thread: int | None = None

    @property
    def slots(self) -> int:
        return self._slots

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.history[slot] = []
            self.resets.append(slot)

    def step(self, slots: Sequence[int], inputs: Sequence[Frame]) -> list[AsrOutput]:
        assert len(set(slots)) == len(slots) == len(inputs)
        self.thread = self.thread or threading.get_ident()
        assert self.thread == threading.get_ident(), "stepped from two threads"
        self.before_step()
        self.batches.append(list(slots))
        return [self._hear(slot, frame) for slot, frame in zip(slots, inputs, strict=True)]

    def _hear(self, slot: int, frame: Frame) -> AsrOutput:
        assert frame.shape == (1920,)
        history = self.history[slot]
        history.append(round(float(frame.max()) * 1000) or 3)
        heard = history[-self.delay] if len(history) >= self.delay else 3
        return AsrOutput(0 if heard == 999 else heard, PAUSE if self.heads else ())

    def warmup(self) -> None:
        return None


def say(*tokens: int) -> np.ndarray:
    """Audio in which the fake hears these tokens, a frame each; 3 is silence, 999 the end of padding."""
    return np.repeat(np.array([0 if token == 3 else token / 1000 for token in tokens], np.float32), 1920)


def spell(tokens: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)
