"""The seam between batching and models: what the batcher needs of each, without torch.

A `Runner` owns the streaming state of ``slots`` streams. The batcher decides which slots run in a step and gives each
its input; the runner answers one output a slot, in the same order. A `Stream` is one client's logic between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Runner(Protocol):
    """A model that steps many streams together. Every method is called on the model thread only.

    One whose device works by itself has ``launch(slots, inputs) -> finish`` too: ``finish()`` waits and gives what
    `step` would. Until it was called there is no other step and no reset.
    """

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        ...

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        ...

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> Sequence[Any]:
        """Advance these slots by one frame: ``inputs[i]`` belongs to ``slots[i]``, and so does the i-th output.

        ``slots`` are distinct; a slot that is not named keeps its state untouched.
        """
        ...

    def warmup(self) -> None:
        """Run the real step as it will be used, then leave all slots reset."""
        ...


class Stream(Protocol):
    """One client's logic, called on the model thread only.

    A stream that hears no audio has ``size(event) -> int`` too, called on the event loop: how many units of its queue
    an event takes.
    """

    needs_reset: bool
    """The slot's state must be reset before the next step; the batcher does it and lowers the flag."""

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event that arrived; returns events to send at once. ``now`` is monotonic seconds."""
        ...

    def take(self, now: float) -> Any | None:
        """The input of the next step, or None if there is nothing to run now."""
        ...

    def accept(self, output: Any) -> list[Any]:
        """What the client is to be told after a step. `Finished` as the last event, also of `put`, ends the session."""
        ...

    def deadline(self) -> float | None:
        """When `take` is worth asking again although nothing arrives (monotonic seconds), or None."""
        ...

    @property
    def consumed(self) -> int:
        """Units of input (samples, for audio) taken out of the queue since the stream began."""
        ...
