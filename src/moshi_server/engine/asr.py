"""Speech to text on the model thread: one client's stream, and the runner that steps the model; it knows no socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..errors import InvalidMessageError
from ..events import Audio, Flush, Init, Marker, Ready, Step, Word
from ..speech.asr import StreamClock, WordAssembler
from ..speech.turns import TurnDetector, TurnSettings
from ..speech.watchdog import Watchdog
from .frames import SILENCE, Frame, FrameQueue

if TYPE_CHECKING:
    import torch

    from ..model.stt import SttModel

GRACE_SECONDS = 0.25
"""How long no audio must have come before silence is fed in to reach a marker."""
MAX_HELD_STEPS = 12
"""How long a due marker waits for a word that is still being spelled."""
MAX_MARKERS = 4096


class AsrOutput(NamedTuple):
    """What the model said of one frame: the text token, and the pause probabilities (empty without extra heads)."""

    token: int
    prs: tuple[float, ...]


@dataclass(slots=True)
class _Due:
    """A marker or flush on its way: answered after step ``step``; ``drain`` feeds silence without waiting."""

    step: int
    event: Marker | Flush
    drain: bool


class AsrStream:
    """One client's audio in, words out.

    Args:
        delay: ``asr_delay_in_tokens``.
        decode: token ids to text.
        watchdog_seconds: reset the model's state after so much speech with no word; 0 for never.
        turns: when a turn starts and ends.
    """

    def __init__(
        self,
        delay: int,
        decode: Callable[[Sequence[int]], str],
        *,
        watchdog_seconds: float = 0.0,
        turns: TurnSettings | None = None,
    ) -> None:
        self._delay = delay
        self._decode = decode
        self._watchdog_seconds = watchdog_seconds
        self._turn_settings = turns or TurnSettings()
        self._queue = FrameQueue()
        self._begin()

    def _begin(self) -> None:
        self.needs_reset = True
        self._last_arrival = 0.0
        self._steps = 0
        self._audio_frames = 0
        self._frame_has_audio = False
        self._rms = 0.0
        self._held = 0
        self._dues: deque[_Due] = deque()
        self._drains = 0
        self._clock = StreamClock()
        self._words = WordAssembler(self._delay, self._decode, self._clock.seconds)
        self._watchdog = Watchdog(self._watchdog_seconds)
        self._turns = TurnDetector(self._turn_settings)
        self._heard = 0

    @property
    def consumed(self) -> int:
        """Client samples that were stepped, or dropped by an `Init`."""
        return self._queue.consumed

    @property
    def owes(self) -> bool:
        """Whether a marker or a flush waits for its answer."""
        return bool(self._dues)

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event.

        Raises:
            InvalidMessageError: more markers are outstanding than anyone needs.
        """
        match event:
            case Audio(pcm=pcm):
                if len(pcm):
                    self._queue.push(pcm)
                    self._last_arrival = now
            case Marker() | Flush():
                if len(self._dues) >= MAX_MARKERS:
                    raise InvalidMessageError(f"more than {MAX_MARKERS} markers are waiting: send audio between them")
                queued = -(-self._queue.waiting // FRAME_SIZE)
                drain = isinstance(event, Flush)
                self._dues.append(_Due(self._steps + queued + self._delay, event, drain))
                self._drains += drain
                self._last_arrival = now
            case Init():
                self._queue.clear()
                self._begin()
                return [Ready()]
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of speech to text")
        return []

    def take(self, now: float) -> Any | None:
        """The next `Frame`, of shape (1920,), completed with silence when only that answers what a client waits for."""
        frame = self._queue.take()
        if frame is not None:
            self._took(FRAME_SIZE)
        elif self._dues and (self._drains or now - self._last_arrival >= GRACE_SECONDS):
            frame = self._padded_frame()
        else:
            return None
        if self._watchdog.enabled:
            self._rms = float(np.sqrt(np.dot(frame, frame) / FRAME_SIZE))
        return frame

    def following(self, limit: int) -> Frame | None:
        """The whole frames that are queued behind those taken, at most ``limit``: (n, 1920), or None; takes none."""
        return self._queue.peek(limit)

    def deadline(self) -> float | None:
        """When a waiting marker begins to be answered with silence."""
        return self._last_arrival + GRACE_SECONDS if self._dues else None

    def accept(self, output: AsrOutput) -> list[Any]:
        """What one step's output tells the client, in upstream's order: step, words, markers."""
        self._steps += 1
        events: list[Any] = []
        if self._frame_has_audio:
            self._audio_frames += 1
            if output.prs:
                events.append(Step(self._audio_frames, output.prs, self._queue.waiting))
        words = self._words.step(output.token)
        events += words
        for word in words:
            if isinstance(word, Word):
                self._watchdog.word(word.text)
        if self._frame_has_audio:  # in silence that is only fed in, nobody pauses
            events += self._turn(output.prs, words)
        if output.prs and self._watchdog.frame(self._rms, output.prs[0]):
            events += self._restart()
        while self._dues and self._dues[0].step <= self._steps:
            if self._words.pending and self._held < MAX_HELD_STEPS:
                self._held += 1
                break
            self._held = 0
            due = self._dues.popleft()
            self._drains -= due.drain
            events += self._words.flush() if due.drain or self._words.pending else []
            events.append(due.event)
        return events

    def _turn(self, prs: Sequence[float], words: Sequence[Any]) -> list[Any]:
        now = self._heard / SAMPLE_RATE
        turn = self._turns.frame(prs, now)
        if turn is None and prs and any(isinstance(word, Word) for word in words):
            turn = self._turns.word(now)
        return [] if turn is None else [turn]

    def _restart(self) -> list[Any]:
        """Begin anew in the model, not in time."""
        words = self._words.flush()
        self._words.restart(self._steps)
        self.needs_reset = True
        for due in self._dues:
            due.step = max(due.step, self._steps + self._delay)
        return list(words)

    def _padded_frame(self) -> Frame:
        got = self._queue.waiting
        self._clock.insert(self._steps * FRAME_SIZE + got, FRAME_SIZE - got)
        self._took(got)
        return self._queue.take_padded()

    def _took(self, samples: int) -> None:
        self._frame_has_audio = samples > 0
        self._heard += samples


class SttRunner:
    """Steps an `SttModel` for the batcher: frames to the device in one copy, tokens and probabilities back in one."""

    def __init__(self, model: SttModel, slots: int, device: torch.device) -> None:
        import torch

        self._torch = torch
        self._model = model
        self._slots = slots
        self._device = device
        model.prepare()
        self._state = model.init_state(slots, device=device)
        pin = device.type == "cuda"
        self._pcm = torch.zeros(slots, FRAME_SIZE, pin_memory=pin)
        self._pcm_rows = self._pcm.numpy()
        self._index = torch.zeros(slots, dtype=torch.int64, pin_memory=pin)
        self._index_rows = self._index.numpy()

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        return self._slots

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        from ..model.ring_attention import in_place
        from ..model.streaming import reset_state

        with self._torch.inference_mode():
            index = self._torch.tensor(list(slots), dtype=self._torch.int64, device=self._device)
            reset_state(self._state, index, rings=not in_place(self._device))

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> list[AsrOutput]:
        """One `Frame` of 1920 samples for each slot; one `AsrOutput` each."""
        count = len(slots)
        self._index_rows[:count] = slots
        for row, frame in zip(self._pcm_rows, inputs, strict=False):
            row[:] = frame
        with self._torch.inference_mode():
            index = self._index[:count].to(self._device, non_blocking=True)
            pcm = self._pcm[:count].to(self._device, non_blocking=True)
            tokens, prs = self._model.step(pcm, self._state, index)
            # Token ids are far below 2**24, so that float32 carries them: one copy to the host instead of two.
            packed = self._torch.cat((tokens.to(prs.dtype).unsqueeze(1), prs), dim=1).cpu()
        return [AsrOutput(int(row[0]), tuple(row[1:])) for row in packed.tolist()]

    def last_codes(self, slots: Sequence[int]) -> NDArray[np.int64]:
        """The codes (n, K) of the frames that these slots heard last."""
        from ..model.streaming import leaf

        with self._torch.inference_mode():
            index = self._torch.tensor(list(slots), dtype=self._torch.int64, device=self._device)
            codes: NDArray[np.int64] = leaf(self._state, "codes").index_select(0, index).cpu().numpy()
        return codes

    def warmup(self) -> None:
        """Two steps of silence for one stream, and for all of them."""
        for count in sorted({1, self._slots}):
            for _ in range(2):
                self.step(range(count), [SILENCE] * count)
        self.reset(range(self._slots))
