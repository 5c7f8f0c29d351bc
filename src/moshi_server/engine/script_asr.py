"""Speech to text by a user's script, in upstream's contract: `PyBatchedAsr` with ``script``; it knows no socket.

The script's ``step(pcm, flags_out, tokens_out, extra_heads, updates)`` is called with one frame of each stream that
has one. Words, times, markers and pauses are made of its tokens exactly as of the built-in model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ..audio import FRAME_SIZE
from ..events import Init, Marker
from ..speech.tokenizer import PADDING
from .asr import AsrOutput, AsrStream
from .frames import SILENCE, Frame
from .script import Script

EXTRA_HEADS: Final = 4
"""Columns of ``extra_heads``: pauses of 0.5, 1, 2 and 3 s."""

# What `updates` says of a slot; a number above zero is a marker, with the whole frames that wait before it.
NO_DATA: Final = 0
ACTIVE: Final = -1
RESET: Final = -2

# What the script says of a slot in `flags_out`.
HEARD: Final = 1
MARKER_RECEIVED: Final = 2
END_OF_STREAM: Final = 4


class ScriptFrame(NamedTuple):
    """A frame, and the markers that arrived since the last one, each as the frames that waited before it."""

    pcm: Frame
    markers: tuple[int, ...]


class ScriptAsrStream(AsrStream):
    """An `AsrStream` whose script is told of markers, too; they are answered as everywhere, whatever it makes of it."""

    def __init__(self, delay: int, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__(delay, decode)
        self._markers: list[int] = []

    def put(self, event: Any, now: float) -> list[Any]:
        """As `AsrStream.put`."""
        if isinstance(event, Marker):
            self._markers.append(max(1, -(-self._queue.waiting // FRAME_SIZE)))
        elif isinstance(event, Init):
            self._markers.clear()
        return super().put(event, now)

    def take(self, now: float) -> ScriptFrame | None:
        """As `AsrStream.take`, with the markers."""
        frame = super().take(now)
        if frame is None:
            return None
        markers, self._markers = tuple(self._markers), []
        return ScriptFrame(frame, markers)


class ScriptAsrRunner:
    """Steps a script for the batcher.

    Args:
        script: what runs; started by `prepare`.
        slots: the ``batch_size`` that it is made with.
        vocabulary: how many tokens there are.
        options: the module's ``py`` table.
    """

    def __init__(self, script: Script, slots: int, vocabulary: int, options: dict[str, Any]) -> None:
        self._script = script
        self._slots = slots
        self._vocabulary = vocabulary
        self._options = options
        self._reset = set(range(slots))
        self._pcm = np.zeros(slots * FRAME_SIZE, np.float32)
        self._flags = np.zeros(slots, np.uint8)
        self._tokens = np.zeros(slots, np.uint32)
        self._heads = np.zeros((slots, EXTRA_HEADS), np.float32)

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
        """Tell the script, with the next frame of each, that these begin anew."""
        self._reset.update(slots)

    def step(self, slots: Sequence[int], inputs: Sequence[ScriptFrame]) -> list[AsrOutput]:
        """One frame for each slot; one `AsrOutput` each.

        Raises:
            ScriptError: the script raised, or gave what no model gives.
        """
        self._tell_markers(slots, inputs)
        updates = [NO_DATA] * self._slots
        frames = self._pcm.reshape(self._slots, FRAME_SIZE)
        frames[:] = 0.0
        for slot, frame in zip(slots, inputs, strict=True):
            frames[slot] = frame.pcm
            updates[slot] = RESET if slot in self._reset else ACTIVE
        self._reset.difference_update(slots)
        self._run(updates)
        return [self._output(slot) for slot in slots]

    def warmup(self) -> None:
        """Two steps of silence for all slots."""
        for _ in range(2):
            self.step(range(self._slots), [ScriptFrame(SILENCE, ())] * self._slots)
        self.reset(range(self._slots))

    def _tell_markers(self, slots: Sequence[int], inputs: Sequence[ScriptFrame]) -> None:
        """Hand markers over in calls of their own, in which no stream has audio.

        A script remembers which slots were active, so they are first all said to have no data: else a marker would
        make it hear a frame that nobody sent.
        """
        if not any(frame.markers for frame in inputs):
            return
        self._pcm[:] = 0.0
        self._run([NO_DATA] * self._slots)
        for slot, frame in zip(slots, inputs, strict=True):
            for queued in frame.markers:
                updates = [NO_DATA] * self._slots
                updates[slot] = queued
                self._run(updates)

    def _run(self, updates: list[int]) -> None:
        self._flags[:] = 0
        self._script.call("step", self._pcm, self._flags, self._tokens, self._heads, updates)

    def _output(self, slot: int) -> AsrOutput:
        if not self._flags[slot] & (HEARD | MARKER_RECEIVED | END_OF_STREAM):
            return AsrOutput(PADDING, ())  # the script passed the frame over
        token = int(self._tokens[slot])
        if token >= self._vocabulary:
            raise self._script.wrong(
                f"step wrote {token} into tokens_out[{slot}]; the tokenizer has 0 to {self._vocabulary - 1}"
            )
        heads = self._heads[slot]
        if not np.isfinite(heads).all():
            raise self._script.wrong(f"step wrote {heads.tolist()} into extra_heads[{slot}]: no probabilities")
        return AsrOutput(token, tuple(heads.tolist()))
