"""Queued audio encoded several frames at once, for a small codec on a CPU; it knows no socket and no word.

A tiny convolution costs little more for eight frames than for one. The language model feeds on its own text and cannot
run ahead: it takes the codes of one frame a step, so that no stream starves another. A live stream has one frame at a
time and notices nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .asr import AsrOutput, AsrStream, SttRunner
from .frames import SILENCE, Frame

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..model.mimi import MimiSpec
    from ..model.stt import SttModel

AHEAD_FRAMES = 8
"""Frames that one tick may encode, all streams together: with more streams the batch has the same effect."""

SMALL_CODEC = 256
"""No wider codec encodes ahead: one that computes more than it calls would only make the others wait."""


def suits(spec: MimiSpec, device: torch.device) -> bool:
    """Whether streams of this codec gain by encoding ahead."""
    fits = AHEAD_FRAMES * spec.stride <= spec.transformer.context
    return device.type == "cpu" and fits and spec.seanet.dimension <= SMALL_CODEC


class AheadInput(NamedTuple):
    """The frame that is due, and a look at what is queued behind it (`AsrStream.following`); good for one tick."""

    frame: Frame
    following: Callable[[int], Frame | None]


class AheadStream(AsrStream):
    """An `AsrStream` whose queue its runner may look into."""

    def take(self, now: float) -> AheadInput | None:
        """As `AsrStream.take`."""
        frame = super().take(now)
        return None if frame is None else AheadInput(frame, self.following)


class AheadRunner(SttRunner):
    """An `SttRunner` on a CPU that keeps, for each slot, the codes of frames whose turn has not come.

    A reset drops them: the stream then begins anew with the frame that is due, whose samples its queue still has.
    """

    def __init__(self, model: SttModel, slots: int, device: torch.device) -> None:
        super().__init__(model, slots, device)
        self._ahead: list[list[Tensor]] = [[] for _ in range(slots)]  # codes (K,), the next ones last

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        super().reset(slots)
        for slot in slots:
            self._ahead[slot].clear()

    def step(self, slots: Sequence[int], inputs: Sequence[AheadInput]) -> list[AsrOutput]:
        """The codes of one frame for each slot, encoded now or before; one `AsrOutput` each."""
        with self._torch.inference_mode():
            self._encode(slots, inputs)
            codes = self._torch.stack([self._ahead[slot].pop() for slot in slots])
            tokens, prs, _ = self._model.step_codes(codes, self._state, self._torch.tensor(slots))
        return [AsrOutput(token, tuple(row)) for token, row in zip(tokens.tolist(), prs.tolist(), strict=True)]

    def _encode(self, slots: Sequence[int], inputs: Sequence[AheadInput]) -> None:
        """Give every slot codes; those that encode equally many frames do so together."""
        groups: dict[int, list[tuple[int, Frame]]] = {}
        room = AHEAD_FRAMES // len(slots)
        for slot, each in zip(slots, inputs, strict=True):
            if not self._ahead[slot]:
                frames = _look(each, room)
                groups.setdefault(len(frames), []).append((slot, frames))
        for group in groups.values():
            pcm = self._torch.from_numpy(np.stack([frames.reshape(-1) for _, frames in group]))
            codes = self._model.encode_frames(pcm, self._state, self._torch.tensor([slot for slot, _ in group]))
            for (slot, _), rows in zip(group, codes.flip(1), strict=True):
                self._ahead[slot].extend(rows)

    def warmup(self) -> None:
        """Two steps of silence for one stream, alone and with a full queue, and for all of them."""
        queue = np.zeros((AHEAD_FRAMES, len(SILENCE)), np.float32)
        alone, queued = AheadInput(SILENCE, lambda _: None), AheadInput(SILENCE, lambda limit: queue[:limit])
        for inputs in ([alone], [queued], [alone] * self.slots):
            self.reset(range(self.slots))
            for _ in range(2):
                self.step(range(len(inputs)), inputs)
        self.reset(range(self.slots))


def _look(each: AheadInput, room: int) -> Frame:
    """The frame that is due and those behind it, (n, 1920): n a power of two, so that few sizes meet."""
    following = each.following(room - 1) if room > 1 else None
    if following is None:
        return each.frame[None]
    count = 1 << (1 + len(following)).bit_length() - 1
    return np.concatenate((each.frame[None], following[: count - 1]))
