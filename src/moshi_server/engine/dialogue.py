"""Dialogue on the model thread: one client's conversation, and the runner that steps the model; it knows no socket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..errors import InvalidMessageError, SessionLimitError
from ..events import Audio, Control, Metadata, Settings, Text
from ..speech.dialogue import DialogueSettings, TextPieces
from .frames import SILENCE, Frame, FrameQueue

if TYPE_CHECKING:
    import torch

    from ..model.dialogue import DialogueModel

FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
HEADER = Audio(np.zeros(0, np.float32))
"""The first, empty piece of audio: the stream of sound begins, and whoever encodes it can send its header."""


class Begin(NamedTuple):
    """Instead of a frame: the first step of a conversation, in which the model hears nothing yet."""

    settings: DialogueSettings


class Spoken(NamedTuple):
    """What one step gave: a text token, and a frame of sound once the acoustic delay is over."""

    token: int
    pcm: Frame | None


class DialogueStream:
    """One client's audio in; text pieces and the model's own audio out, a frame for each frame heard.

    The model's first step hears nothing (upstream gives it no audio either), so it is made before any audio has come,
    and the answer comes a frame sooner.

    Args:
        pieces: text tokens to what is shown.
        settings: how a conversation is held unless its client asks otherwise.
        conditions: the values that a client may ask for, by the conditioner's name.
        about: what else a client that asks is told.
    """

    def __init__(
        self,
        pieces: TextPieces,
        settings: DialogueSettings,
        *,
        conditions: Mapping[str, Collection[str]] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._pieces = pieces
        self._settings = settings
        self._conditions = conditions or {}
        self._about = dict(about or {})
        self._queue = FrameQueue()
        self._header_due = True
        self._paused = False
        self._configured = False
        self._restart()

    def _restart(self) -> None:
        self.needs_reset = True
        self._begun = False
        self._steps = 0
        self._paused = False
        self._silence_at: float | None = None
        self._pieces.restart()

    @property
    def consumed(self) -> int:
        """Client samples that were heard or dropped."""
        return self._queue.consumed

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event.

        Raises:
            InvalidMessageError: a setting that is none, or an event that is not of a dialogue.
        """
        match event:
            case Audio(pcm=pcm):
                self._configured = True
                self._queue.push(pcm)
                if self._paused:
                    self._queue.clear()
                elif len(pcm):
                    self._silence_at = None
            case Settings(values=values):
                if self._configured:
                    raise InvalidMessageError(
                        "a dialogue that has begun cannot be set otherwise", hint="open a new one"
                    )
                self._settings = self._settings.changed(values, self._conditions)
                self._configured = True
            case Control(action=action):
                self._control(action, now)
            case Metadata():
                return [Metadata(self._about | self._settings.public())]
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of a dialogue")
        return []

    def _control(self, action: str, now: float) -> None:
        self._configured = True
        if action == "restart":
            self._queue.clear()
            self._restart()
        elif action == "pause":
            self._queue.clear()
            self._paused = True
            self._silence_at = None
        elif action == "start":
            self._paused = False
            self._silence_at = None
        elif not self._paused:  # end_turn
            self._silence_at = now

    def take(self, now: float) -> Begin | Frame | None:
        """The input of the next step.

        Raises:
            SessionLimitError: the conversation has had all the steps that were asked for.
        """
        if not self._configured or self._paused:
            return None
        if not self._begun:
            self._begun = True
            return Begin(self._settings)
        frame = self._queue.take()
        if frame is None and self._silence_at is not None and now >= self._silence_at:
            # The client's turn is over and the model's is on: it hears silence, at the pace of time.
            self._silence_at = max(self._silence_at, now - FRAME_SECONDS) + FRAME_SECONDS
            frame = self._queue.take_padded()
        if frame is not None and 0 < self._settings.max_steps <= self._steps:
            raise SessionLimitError(f"this conversation has had the {self._settings.max_steps} steps it asked for")
        return frame

    def deadline(self) -> float | None:
        """When the next silence is due."""
        return self._silence_at

    def accept(self, output: Spoken) -> list[Any]:
        """What one step tells the client, in upstream's order: text, then sound."""
        events: list[Any] = []
        if self._header_due:
            self._header_due = False
            events.append(HEADER)
        self._steps += 1
        if shown := self._pieces.take(output.token):
            events.append(Text(shown))
        if output.pcm is not None:
            events.append(Audio(output.pcm))
        return events


class DialogueRunner:
    """Steps a `DialogueModel` for the batcher: the rows that hear, all rows' next tokens, the rows that speak."""

    def __init__(
        self,
        model: DialogueModel,
        slots: int,
        device: torch.device,
        *,
        condition: Callable[[Mapping[str, str]], torch.Tensor | None],
        settings: DialogueSettings | None = None,
        spare: int = 0,
    ) -> None:
        import torch

        self._torch = torch
        self._model = model
        self._slots = slots
        self._device = device
        self._condition = condition
        self._default = settings or DialogueSettings()
        self._state = model.init_state(slots + spare, device=device)  # ``spare`` are slots that no stream has
        self._steps = [0] * slots
        pin = device.type == "cuda"
        self._pcm = torch.zeros(slots, FRAME_SIZE, pin_memory=pin)
        self._pcm_rows = self._pcm.numpy()

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        return self._slots

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a conversation."""
        from ..model.ring_attention import in_place
        from ..model.streaming import reset_state

        for slot in slots:
            self._steps[slot] = 0
        with self._torch.inference_mode():
            reset_state(self._state, self._index(slots), rings=not in_place(self._device))

    def step(self, slots: Sequence[int], inputs: Sequence[Begin | Frame]) -> list[Spoken]:
        """One frame of 1920 samples, or `Begin`, for each slot."""
        torch = self._torch
        with torch.inference_mode():
            hearing = [row for row, given in enumerate(inputs) if not isinstance(given, Begin)]
            for slot, given in zip(slots, inputs, strict=True):
                if isinstance(given, Begin):
                    self._begin(slot, given.settings)
            index = self._index(slots)
            codes = self._hear(slots, inputs, hearing, index)
            tokens, frames = self._model.think(codes, self._state, index)
            for slot in slots:
                self._steps[slot] += 1
            speaking = [row for row, slot in enumerate(slots) if self._steps[slot] > self._model.delay]
            pcm = self._speak(slots, frames, speaking)
        rows = iter(pcm)
        spoken = set(speaking)
        return [Spoken(token, next(rows) if row in spoken else None) for row, token in enumerate(tokens.tolist())]

    def warmup(self) -> None:
        """Three steps for one stream and for all of them: the first, one that hears, one that speaks."""
        for count in sorted({1, self._slots}):
            rows = range(count)
            self.reset(rows)
            self.step(rows, [Begin(self._default)] * count)
            for _ in range(self._model.delay + 1):
                self.step(rows, [SILENCE] * count)
        self.reset(range(self._slots))

    def _begin(self, slot: int, settings: DialogueSettings) -> None:
        self._model.begin(self._state, slot, settings, self._condition(settings.conditions))

    def _hear(
        self, slots: Sequence[int], inputs: Sequence[Begin | Frame], hearing: list[int], index: torch.Tensor
    ) -> torch.Tensor:
        model = self._model
        if not hearing:
            return model.unheard(len(slots))
        for row, place in enumerate(hearing):
            self._pcm_rows[row] = inputs[place]
        pcm = self._pcm[: len(hearing)].to(self._device, non_blocking=True)
        if len(hearing) == len(slots):
            return model.hear(pcm, self._state, index)
        codes = model.unheard(len(slots))
        codes[self._index(hearing)] = model.hear(pcm, self._state, self._index([slots[row] for row in hearing]))
        return codes

    def _speak(self, slots: Sequence[int], frames: torch.Tensor, speaking: list[int]) -> list[Frame]:
        if not speaking:
            return []
        rows = self._index(speaking)
        pcm = self._model.speak(frames[rows], self._state, self._index([slots[row] for row in speaking]))
        return list(pcm.float().cpu().numpy())

    def _index(self, numbers: Sequence[int]) -> torch.Tensor:
        return self._torch.tensor(list(numbers), dtype=self._torch.int64, device=self._device)
