"""Speech to text on a GPU: each step one graph of the bucket that its streams fill; it knows no socket and no word."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..audio import FRAME_SIZE
from .asr import AsrOutput, SttRunner
from .frames import SILENCE

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..model.streaming import State
    from ..model.stt import SttModel


class CudaSttRunner(SttRunner):
    """An `SttRunner` whose steps are captured, with one slot more, the scratch, for the rows that fill a bucket up.

    A row of a step is its slot and the samples of its frame, so that one copy brings both; slots are far below 2**24.
    Resets are not part of a graph. The buckets share one pool of memory.
    """

    def __init__(
        self,
        model: SttModel,
        slots: int,
        device: torch.device,
        *,
        eight_bit_kv: bool = False,
        graphs: bool = True,
    ) -> None:
        import torch

        from ..model.graphs import BucketedStep
        from ..model.ring_attention import in_place

        if device.type == "cuda" and not in_place(device):
            logger.warning(
                "a step takes longer: Triton, a C compiler or Python's headers are missing (see docs/gpu-memory.md)"
            )

        self._torch = torch
        self._model = model
        self._slots = slots
        self._device = device
        self._state = model.init_state(slots + 1, device=device, eight_bit_kv=eight_bit_kv)
        self._counters = list(counters(self._state))
        padding = torch.zeros(1 + FRAME_SIZE)
        padding[0] = slots
        self._bucketed = BucketedStep(self._advance, slots, padding, device, graphs=graphs)
        self.reset(range(slots))

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> list[AsrOutput]:
        """One `Frame` of 1920 samples for each slot; one `AsrOutput` each."""
        return self.launch(slots, inputs)()

    def launch(self, slots: Sequence[int], inputs: Sequence[Any]) -> Callable[[], list[AsrOutput]]:
        """As `step`, without waiting for the device: what is returned does."""
        count = len(slots)
        rows = self._bucketed.inputs
        rows[:count, 0] = slots
        for row, frame in zip(rows, inputs, strict=False):
            row[1:] = frame
        self._bucketed.launch(count)
        return lambda: [AsrOutput(int(row[0]), tuple(row[1:])) for row in self._bucketed.result().tolist()]

    def warmup(self) -> None:
        """Two steps of silence in every bucket."""
        for count in self._bucketed.sizes:
            for _ in range(2):
                self.step(range(count), [SILENCE] * count)
        self.reset(range(self._slots))

    def _advance(self, rows: Tensor) -> Tensor:
        """(N, 1 + 1920) -> (N, 1 + H): each stream's token and its pause probabilities."""
        slots, pcm = rows[:, 0].long(), rows[:, 1:]
        tokens, prs = self._model.step(pcm, self._state, slots)
        for counter in self._counters:
            counter[self._slots :].zero_()  # the scratch slot stays at its beginning, where it has least to look at
        made: Tensor = self._torch.cat((tokens.to(prs.dtype).unsqueeze(1), prs), dim=1)
        return made


def counters(state: State) -> Iterator[Tensor]:
    """The positions and numbers of steps of a state: what is one integer a slot."""
    from ..model.streaming import leaves

    for tensor in leaves(state):
        if tensor.dim() == 1 and not tensor.is_floating_point():
            yield tensor
