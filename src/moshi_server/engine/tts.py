"""Text to speech on the model thread: one client's stream, and the runner that steps the model; it knows no socket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidMessageError
from ..events import Audio, Eos, Finished, NextSpeaker, SpeechSettings, SpokenWord, Text, Voice
from ..speech.text import TextQueue
from ..speech.tokenizer import PADDING
from ..speech.tts import FRAME_RATE, Machine, SpokenAt

if TYPE_CHECKING:
    import torch

    from ..model.tts import TtsModel

TEXT_ONLY_BETWEEN: Final = 2
"""Steps that streams without sound yet are made ahead, between two steps of those that sound."""

Pcm = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VoiceChoice:
    """Whose voice: names, the first speaker's first, or an embedding. None of both is nobody's in particular."""

    names: tuple[str, ...] = ()
    embedding: Pcm | None = None


@dataclass(frozen=True)
class Attended:
    """What a stream's layers attend to, and what those of its guiding row do."""

    voice: list[torch.Tensor]
    nobody: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How one stream is spoken: the voice, and how tokens are drawn.

    ``top_k`` 0 leaves it to the model; 1 is the likeliest token, as is ``temperature`` 0. ``guidance`` 1 is none.
    ``attended`` is what the voice's keys and values are once it was taken.
    """

    voice: VoiceChoice = VoiceChoice()
    attended: Attended | None = None
    temperature: float = 0.6
    top_k: int = 0
    seed: int = 0
    guidance: float = 1.0


class Cue(Protocol):
    """What the runner is given of a stream for a step: it asks for more in the middle of it."""

    opening: Delivery | None
    """How it is spoken, before its first step; the runner takes it."""

    def ready(self) -> bool:
        """Whether a step can be made with the words that have come."""
        ...

    def force(self, sampled: int) -> int:
        """The text token that stands for the sampled one."""
        ...


class VoiceSource(Protocol):
    """Where a stream's voice comes from; see `moshi_server.engine.voices`."""

    def check(self, choice: VoiceChoice) -> None:
        """Return if there is such a voice.

        Raises:
            ResourceNotFoundError, InvalidMessageError: there is none, or it is of another model.
        """
        ...

    def take(self, choice: VoiceChoice) -> Attended:
        """What a stream with this voice attends to.

        Raises:
            ResourceNotFoundError, InvalidMessageError: as `check`.
        """
        ...


class Spoken(NamedTuple):
    """What a step made of one stream: its next frame of sound, shape (1920,), unless none is due yet."""

    pcm: Pcm | None


class TtsStream:
    """One client's text in, sound and words out. It waits, unstepped, while words are missing.

    Args:
        text: of the client, to words and pauses.
        machine: words to tokens.
        delivery: how it is spoken unless the client asks otherwise.
        voices: those of the model; None if it has none.
        guided: whether the client may choose the guidance.
        marked_turns: whether the second speaker's turns begin with a token, too.
        on_missing: told each time that the stream has to wait for words.
    """

    def __init__(
        self,
        text: TextQueue,
        machine: Machine,
        delivery: Delivery,
        *,
        voices: VoiceSource | None = None,
        guided: bool = False,
        marked_turns: bool = True,
        on_missing: Callable[[], None] = lambda: None,
    ) -> None:
        self.needs_reset = True
        self.opening: Delivery | None = delivery
        self._delivery = delivery
        self._queue = text
        self._machine = machine
        self._voices = voices
        self._guided = guided
        self._marked_turns = marked_turns
        self._on_missing = on_missing
        self._max_steps: int | None = None
        self._turns = 1
        self._steps = 0
        self._begun = False
        self._ended = False
        self._finished = False

    @property
    def consumed(self) -> int:
        """Characters of which words were made."""
        return self._queue.characters_out

    def size(self, event: Any) -> int:
        """How many characters an event brings."""
        return len(event.text) if isinstance(event, Text) else 0

    def put(self, event: Any, now: float) -> list[Any]:
        """Take one client event.

        Raises:
            InvalidMessageError: it comes too late, or is none of text to speech; the voice is of another model.
            ResourceNotFoundError: there is no such voice.
        """
        match event:
            case Text() | NextSpeaker() if self._ended:
                raise InvalidMessageError("the text was said to be complete", hint="open another stream after Eos")
            case SpeechSettings():
                self._choose(event)
            case Voice(embedding):
                self._set_voice(VoiceChoice(embedding=embedding))
            case Text(text):
                self._queue.put(text)
            case NextSpeaker():
                self._turns += 1
                self._queue.next_turn(marked=self._marked_turns or self._turns % 2 == 1)
            case Eos():
                return self._end()
            case _:
                raise InvalidMessageError(f"{type(event).__name__} is not a message of text to speech")
        return []

    def take(self, now: float) -> Cue | None:
        """The stream itself, if it can be stepped.

        Raises:
            ResourceNotFoundError: its voice cannot be read.
        """
        if self._finished:
            return None
        if not self.ready():
            if self._begun:
                self._on_missing()
            return None
        if not self._begun and self._voices is not None:
            self._replace(attended=self._voices.take(self._delivery.voice))
        self._begun = True
        return self

    def ready(self) -> bool:
        """Whether a step can be made with the words that have come."""
        machine = self._machine
        while wanted := machine.wanted:
            entries = self._queue.pull(wanted)
            for entry in entries:
                machine.add(entry)
            if not entries:
                break
        if self._ended and machine.wanted and self._queue.empty:
            machine.close()
        return machine.ready

    def force(self, sampled: int) -> int:
        """The text token that stands for the sampled one."""
        self._steps += 1
        return self._machine.force(sampled)

    def accept(self, output: Spoken) -> list[Any]:
        """What one step tells the client: words, sound, and at the end the last word."""
        events: list[Any] = [_told(word) for word in self._machine.spoken()]
        last = events[-1:] if self._machine.finished else []
        if last:
            events.pop()
        if output.pcm is not None:
            events.append(Audio(output.pcm))
        if self._machine.finished or (self._max_steps is not None and self._steps >= self._max_steps):
            self._finished = True
            events += [*last, Finished()]
        return events

    def deadline(self) -> float | None:
        """Nothing here waits for time."""
        return None

    def _end(self) -> list[Any]:
        if self._ended:
            return []
        self._ended = True
        self._queue.end()
        self.ready()
        if not self._begun and self._machine.empty:  # a text without a word is not spoken at all
            self._finished = True
            return [Finished()]
        return []

    def _choose(self, settings: SpeechSettings) -> None:
        delivery = self._delivery
        if settings.voice is not None or settings.voices:
            names = settings.voices or (settings.voice or "",)
            self._set_voice(VoiceChoice(names))
        elif self._voices is not None:
            self._voices.check(delivery.voice)
        changes: dict[str, Any] = {
            name: value
            for name, value in (
                ("temperature", settings.temperature),
                ("top_k", None if settings.top_k is None else max(1, settings.top_k)),
                ("seed", settings.seed),
                ("guidance", settings.cfg_alpha if self._guided else None),
            )
            if value is not None
        }
        self._max_steps = settings.max_steps if settings.max_steps is not None else self._max_steps
        self._replace(**changes)

    def _set_voice(self, choice: VoiceChoice) -> None:
        if self._begun:
            raise InvalidMessageError("the voice must come before the text")
        if self._voices is None:
            if choice.embedding is not None:
                raise InvalidMessageError("this model speaks with one voice, which cannot be chosen")
            return
        self._voices.check(choice)
        self._replace(voice=choice)

    def _replace(self, **changes: Any) -> None:
        self._delivery = dataclasses.replace(self._delivery, **changes)
        if self.opening is not None:
            self.opening = self._delivery


def _told(word: SpokenAt) -> SpokenWord:
    return SpokenWord(word.text, word.begin / FRAME_RATE, word.end / FRAME_RATE)


class TtsRunner:
    """Steps a `TtsModel` for the batcher.

    Streams that make no sound yet are cheap: they are made some steps ahead between two steps of those that sound, as
    upstream does, and the depth transformer runs for nobody who does not need it.

    Args:
        model: with state for ``slots`` streams on ``device``.
        slots: how many.
        device: of the model.
        begin: tells the model how the stream of a slot is spoken.
        default: how the warm-up speaks.
        text_only: see `TEXT_ONLY_BETWEEN`.
        spare: slots that the state has beside.
        on_words: told after each step how often streams had to wait for words since the last, and how many ran.
    """

    def __init__(
        self,
        model: TtsModel,
        slots: int,
        device: torch.device,
        *,
        begin: Callable[[Any, int, Delivery], None],
        default: Delivery,
        text_only: int = TEXT_ONLY_BETWEEN,
        on_words: Callable[[int, int], None] = lambda missing, running: None,
        spare: int = 0,
    ) -> None:
        import torch

        self._torch = torch
        self._model = model
        self._slots = slots
        self._device = device
        self._begin = begin
        self._default = default
        self._text_only = text_only
        self._on_words = on_words
        self._missing = 0
        self._state = model.init_state(slots + spare, device=device)
        self._steps = [0] * slots
        self._guided = [False] * slots

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        return self._slots

    def missed(self) -> None:
        """A stream had to wait for words."""
        self._missing += 1

    def reset(self, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream."""
        for slot in slots:
            self._steps[slot] = 0
        with self._torch.inference_mode():
            self._model.reset_slots(self._state, slots)

    def step(self, slots: Sequence[int], inputs: Sequence[Cue]) -> list[Spoken]:
        """One step of every stream, and a few more of those that make no sound yet."""
        for slot, cue in zip(slots, inputs, strict=True):
            if cue.opening is not None:
                opening, cue.opening = cue.opening, None
                self._guided[slot] = opening.guidance != 1.0
                self._begin(self._state, slot, opening)
        delay, pairs = self._model.spec.delay, list(zip(slots, inputs, strict=True))
        silent = [pair for pair in pairs if self._steps[pair[0]] < delay]
        if len(silent) < len(pairs):
            for _ in range(self._text_only):
                silent = [(slot, cue) for slot, cue in silent if self._steps[slot] < delay and cue.ready()]
                if not silent:
                    break
                self._pass(silent)
        sound = self._pass([(slot, cue) for slot, cue in pairs if cue.ready()])
        missing, self._missing = self._missing, 0
        self._on_words(missing, len(slots))
        return [Spoken(sound.get(slot)) for slot in slots]

    def warmup(self) -> None:
        """A whole stream's first sounds, for one stream and for all of them."""
        for count in sorted({1, self._slots}):
            cues = [_Silence(self._default) for _ in range(count)]
            for _ in range(self._model.spec.first_sound + 2):
                self.step(range(count), cues)
            self.reset(range(count))

    def _pass(self, pairs: Sequence[tuple[int, Cue]]) -> dict[int, Pcm]:
        """One step of the model for these streams: the sound of those that are far enough."""
        if not pairs:
            return {}
        torch, model, spec = self._torch, self._model, self._model.spec
        numbers = [slot for slot, _ in pairs]
        with torch.inference_mode():
            slots = self._index(numbers)
            guided = any(self._guided[slot] for slot in numbers)
            tokens, hidden = model.think(self._state, slots, guided=guided)
            forced = [cue.force(token) for (_, cue), token in zip(pairs, tokens.tolist(), strict=True)]
            voiced = [row for row, slot in enumerate(numbers) if self._steps[slot] >= spec.delay]
            rows = None if len(voiced) == len(numbers) else self._index(voiced)
            frames = model.speak(self._index(forced), hidden, self._state, slots, rows)
            sounding = [row for row, slot in enumerate(numbers) if self._steps[slot] >= spec.first_sound]
            for slot in numbers:
                self._steps[slot] += 1
            if not sounding:
                return {}
            at = [numbers[row] for row in sounding]
            if len(sounding) < len(numbers):
                frames, slots = frames[self._index(sounding)], self._index(at)
            pcm = model.sound(frames, self._state, slots).float().cpu().numpy()
        return dict(zip(at, pcm, strict=True))

    def _index(self, numbers: Sequence[int]) -> torch.Tensor:
        return self._torch.tensor(list(numbers), dtype=self._torch.int64, device=self._device)


class _Silence:
    """A stream that pads for ever, in nobody's voice."""

    def __init__(self, opening: Delivery) -> None:
        self.opening: Delivery | None = opening

    def ready(self) -> bool:
        return True

    def force(self, sampled: int) -> int:
        return PADDING
