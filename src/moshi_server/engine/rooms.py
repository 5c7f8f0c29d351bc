"""Rooms on the model thread: a producer's codes in, sound out, with its text in order; it knows no listener."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE
from ..errors import CheckpointError, InvalidMessageError
from ..events import Audio, Codes, Text

if TYPE_CHECKING:
    import torch

    from ..model.mimi import Mimi

Pcm = NDArray[np.float32]


class RoomStream:
    """One producer: a frame of codes for each step; text waits for the codes that came before it.

    Args:
        semantic: how few codes a frame may have.
        codebooks: how many at most.
        bins: what a code must be below.
    """

    def __init__(self, semantic: int, codebooks: int, bins: int) -> None:
        self.needs_reset = True
        self._semantic = semantic
        self._codebooks = codebooks
        self._bins = bins
        self._queue: deque[Codes | Text] = deque()
        self._consumed = 0

    @property
    def consumed(self) -> int:
        """Samples that the codes taken so far stand for."""
        return self._consumed

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one event of the producer.

        Raises:
            InvalidMessageError: codes that this Mimi does not have.
        """
        match event:
            case Codes(codes=codes):
                self._check(codes)
                self._queue.append(event)
            case Text():
                if not self._queue:
                    return [event]
                self._queue.append(event)
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of a room's producer")
        return []

    def take(self, now: float) -> NDArray[np.int64] | None:
        """The next frame's codes, of shape (codes,)."""
        if not self._queue:
            return None
        event = self._queue.popleft()
        assert isinstance(event, Codes), "text is given out as soon as it is first"
        self._consumed += FRAME_SIZE
        return event.codes

    def accept(self, output: Pcm) -> list[Any]:
        """The frame's sound, and the text that came after its codes."""
        events: list[Any] = [Audio(output)]
        while self._queue and isinstance(self._queue[0], Text):
            events.append(self._queue.popleft())
        return events

    def deadline(self) -> float | None:
        """Nothing here waits for time."""
        return None

    def _check(self, codes: NDArray[np.int64]) -> None:
        if not self._semantic <= len(codes) <= self._codebooks:
            raise InvalidMessageError(
                f"a frame of {len(codes)} codes came; this server's Mimi takes {self._semantic} to {self._codebooks}"
            )
        if codes.min() < 0 or codes.max() >= self._bins:
            raise InvalidMessageError(f"a code is {int(codes.max())}; this server's Mimi has 0 to {self._bins - 1}")


class DecodeRunner:
    """Steps Mimi's decoder for the batcher: codes in, 1920 samples out."""

    def __init__(self, mimi: Mimi, slots: int, device: torch.device) -> None:
        if mimi.decoder is None:
            raise CheckpointError("this Mimi only encodes", hint="rooms need an audio_tokenizer_file with a decoder")
        if mimi.frame_size != FRAME_SIZE:
            raise CheckpointError(f"this Mimi has frames of {mimi.frame_size} samples; {FRAME_SIZE} are needed")
        self._mimi = mimi
        self._slots = slots
        self._device = device
        self._state = mimi.init_decoder_state(slots, device=device)

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        return self._slots

    def make_stream(self) -> RoomStream:
        """The logic of one producer for this Mimi."""
        quantizer = self._mimi.spec.quantizer
        return RoomStream(quantizer.semantic, quantizer.codebooks, quantizer.bins)

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        import torch

        from ..model.streaming import reset_state

        with torch.inference_mode():
            reset_state(self._state, torch.tensor(list(slots), dtype=torch.int64, device=self._device))

    def step(self, slots: Sequence[int], inputs: Sequence[NDArray[np.int64]]) -> list[Pcm]:
        """One frame of codes, of shape (k,), for each slot; its sound, of shape (1920,)."""
        outputs: list[Pcm] = [_NONE] * len(slots)
        for count in sorted({len(codes) for codes in inputs}):  # producers may send different numbers of codes
            rows = [row for row, codes in enumerate(inputs) if len(codes) == count]
            sound = self._decode([slots[row] for row in rows], np.stack([inputs[row] for row in rows]))
            for row, pcm in zip(rows, sound, strict=True):
                outputs[row] = pcm
        return outputs

    def warmup(self) -> None:
        """Two steps for one stream, and for all of them."""
        codes = np.zeros(self._mimi.spec.quantizer.codebooks, np.int64)
        for count in sorted({1, self._slots}):
            for _ in range(2):
                self.step(range(count), [codes] * count)
        self.reset(range(self._slots))

    def _decode(self, slots: Sequence[int], codes: NDArray[np.int64]) -> Pcm:
        import torch

        with torch.inference_mode():
            index = torch.tensor(slots, dtype=torch.int64, device=self._device)
            pcm = self._mimi.decode_step(torch.from_numpy(codes).to(self._device), self._state, index)
            return pcm.float().cpu().numpy()


_NONE: Pcm = np.zeros(0, np.float32)
