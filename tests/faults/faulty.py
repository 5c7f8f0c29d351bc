"""A runner without a model that does what it is told by the audio: fails, hangs, runs out of memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from moshi_server.engine.asr import AsrOutput
from moshi_server.engine.frames import Frame

from ..fakes import FakeRunner, say

FAIL, HANG, NO_MEMORY = 901, 902, 903


class FaultyRunner(FakeRunner):
    """Frames that say so make the step of their batch fail, as often as ``times`` says; then all is well again."""

    def __init__(self, slots: int, *, times: int = 1) -> None:
        super().__init__(slots)
        self.times = times
        self.hanging = threading.Event()
        self.go_on = threading.Event()

    def step(self, slots: Sequence[int], inputs: Sequence[Frame]) -> list[AsrOutput]:
        tokens = [round(float(frame.max()) * 1000) for frame in inputs]
        said = {FAIL, HANG, NO_MEMORY}.intersection(tokens)
        if self.times and said:
            self.times -= 1
            if FAIL in said:
                raise RuntimeError("CUDA error: unspecified launch failure")
            if NO_MEMORY in said:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            self.hanging.set()
            self.go_on.wait(30)
        # A server that does as it should hears silence there.
        return super().step(
            slots, [0 * frame if token in said else frame for frame, token in zip(inputs, tokens, strict=True)]
        )


WORDS = 12


def speech(fault: int | None = None, *, at: int = 6) -> tuple[list[str], object]:
    """The words of a recording and its samples; one frame in a pause of it does harm to a server that hears it."""
    tokens: list[int] = []
    for index in range(WORDS):
        tokens += [3, 999, 11 + index, 3, fault if fault is not None and index == at else 3, 3]
    return [f"<{11 + index}>" for index in range(WORDS)], say(*tokens)
