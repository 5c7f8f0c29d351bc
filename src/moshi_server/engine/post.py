"""One recording in, one array out: `PyPost`, by a user's script or by Mimi's encoder; it knows no request.

The recording is 10 s of a voice; the array is what text to speech takes as that voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ..audio import SAMPLE_RATE
from ..errors import CheckpointError, InvalidMessageError
from ..events import Audio, Finished, Voice
from .script import Script

if TYPE_CHECKING:
    import torch

    from ..model.mimi import Mimi

LENGTH: Final = 10 * SAMPLE_RATE
"""Samples of a recording: longer ones are cut, shorter ones completed with silence, as upstream."""
MAX_VALUES: Final = 4_000_000
"""What an answer may hold."""

Pcm = NDArray[np.float32]


def ten_seconds(pcm: Pcm) -> Pcm:
    """The recording at its length."""
    return np.pad(pcm[:LENGTH], (0, max(0, LENGTH - len(pcm)))).astype(np.float32, copy=False)


class PostStream:
    """One recording, one step, one `Voice`."""

    def __init__(self) -> None:
        self.needs_reset = False
        self._recording: Pcm | None = None
        self._consumed = 0

    @property
    def consumed(self) -> int:
        """Samples taken."""
        return self._consumed

    def put(self, event: Any, now: float) -> list[Any]:
        """Take the recording, of `LENGTH` samples."""
        if not isinstance(event, Audio) or len(event.pcm) != LENGTH:
            raise InvalidMessageError(f"one recording of {LENGTH} samples is needed")
        self._recording = event.pcm
        return []

    def take(self, now: float) -> Pcm | None:
        """The recording, once."""
        recording, self._recording = self._recording, None
        self._consumed += len(recording) if recording is not None else 0
        return recording

    def accept(self, output: Pcm) -> list[Any]:
        """The array, and the end."""
        return [Voice(output), Finished()]

    def deadline(self) -> float | None:
        """Nothing here waits for time."""
        return None


class ScriptPostRunner:
    """Runs a script's ``run_one`` for one recording at a time.

    Args:
        script: what runs; started by `prepare`.
        options: the module's ``py`` table.
    """

    slots = 1

    def __init__(self, script: Script, options: dict[str, Any]) -> None:
        self._script = script
        self._options = options

    def prepare(self) -> None:
        """Start the script.

        Raises:
            ScriptError: it does not start.
        """
        self._script.init(self._options)

    def reset(self, slots: Sequence[int]) -> None:
        """Nothing is kept from one recording to the next."""

    def step(self, slots: Sequence[int], inputs: Sequence[Pcm]) -> list[Pcm]:
        """What the script makes of each recording: float32, of any shape.

        Raises:
            ScriptError: it raised, or returned something else.
        """
        return [self._checked(self._script.call("run_one", pcm.copy())) for pcm in inputs]

    def warmup(self) -> None:
        """One recording of silence."""
        self.step([0], [np.zeros(LENGTH, np.float32)])

    def _checked(self, array: Any) -> Pcm:
        if not isinstance(array, np.ndarray):
            raise self._script.wrong(f"run_one returned {type(array).__name__}; a numpy array of float32 is needed")
        if array.dtype != np.float32:
            raise self._script.wrong(f"run_one returned an array of {array.dtype}; float32 is needed")
        if not 1 <= array.ndim <= 3 or not 0 < array.size <= MAX_VALUES:
            raise self._script.wrong(f"run_one returned an array of shape {array.shape}; 1 to 3 dimensions are needed")
        if not np.isfinite(array).all():
            raise self._script.wrong("run_one returned values that are not finite")
        return array


class LatentRunner:
    """The built-in voice embedding: Mimi's latents of the recording before quantization, (1, dimension, 125)."""

    slots = 1

    def __init__(self, mimi: Mimi, device: torch.device) -> None:
        if LENGTH % mimi.frame_size:
            raise CheckpointError(f"this Mimi has frames of {mimi.frame_size} samples, which do not make up 10 s")
        self._mimi = mimi
        self._device = device

    def reset(self, slots: Sequence[int]) -> None:
        """Nothing is kept from one recording to the next."""

    def step(self, slots: Sequence[int], inputs: Sequence[Pcm]) -> list[Pcm]:
        """The latents of each recording."""
        import torch

        with torch.inference_mode():
            return [
                self._mimi.latents(torch.from_numpy(pcm).to(self._device)[None, None]).float().cpu().numpy()
                for pcm in inputs
            ]

    def warmup(self) -> None:
        """One recording of silence."""
        self.step([0], [np.zeros(LENGTH, np.float32)])
