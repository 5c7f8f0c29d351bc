"""The seam between batching and models: what the batcher needs of a model, without torch.

A `Runner` owns the streaming state of ``slots`` streams. The batcher decides which slots run in a step and gives each
its input; the runner answers one output a slot, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..events import AsrServerEvent

In = TypeVar("In")
Out = TypeVar("Out")


class Runner(Protocol[In, Out]):
    """A model that steps many streams together. Every method is called on the model thread only."""

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        ...

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        ...

    def step(self, slots: Sequence[int], inputs: Sequence[In]) -> Sequence[Out]:
        """Advance these slots by one frame: ``inputs[i]`` belongs to ``slots[i]``, and so does the i-th output.

        ``slots`` are distinct; a slot that is not named keeps its state untouched.
        """
        ...

    def warmup(self) -> None:
        """Run the real step at every size that will be used, then leave all slots reset."""
        ...


class Stream(Protocol[In, Out]):
    """One stream's logic on the model thread: it turns what arrived into inputs, and outputs into events."""

    def take(self, now: float) -> In | None:
        """The input of the next step, or None if this stream has nothing to run at monotonic time ``now``."""
        ...

    def accept(self, output: Out) -> list[AsrServerEvent]:
        """What the client is to be told after a step."""
        ...
