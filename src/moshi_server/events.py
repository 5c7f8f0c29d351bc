"""What every room says to another: frozen events, in and out; it knows neither bytes nor tensors.

Times are seconds of the client's own audio, counted from the first sample it sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Init:
    """Client: reset the stream to its beginning."""


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Either way: mono PCM at 24 kHz, float32 of shape (samples,), any number of samples."""

    pcm: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OggOpus:
    """Either way: bytes of an Ogg/Opus stream, cut anywhere."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Marker:
    """Client: say when all audio sent so far is transcribed. Server: it is."""

    id: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Client: give the words still pending now. Server: they have all been sent."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Server: a slot is held, send."""


@dataclass(frozen=True, slots=True)
class Word:
    """Server: one word, and when it began (s)."""

    text: str
    start_time: float


@dataclass(frozen=True, slots=True)
class EndWord:
    """Server: when the last word ended (s)."""

    stop_time: float


@dataclass(frozen=True, slots=True)
class Step:
    """Server: one frame was processed.

    ``prs[i]`` is the probability that a pause of 0.5, 1, 2, 3 s is under way; ``buffered_pcm`` counts the samples
    that have arrived and wait.
    """

    step_idx: int
    prs: tuple[float, ...]
    buffered_pcm: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Server, only if asked: a speaker's turn began or ended, at this time (s)."""

    kind: Literal["start", "end"]
    time: float


@dataclass(frozen=True, slots=True)
class Text:
    """Client: text to speak, which may begin or end within a word. Server: a piece of text as it is spoken."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Client: one frame of Mimi's codes, int64 of shape (codes,), the semantic ones first."""

    codes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """Client: the voice to speak with, as a speaker's embedding, float32 of one to three dimensions."""

    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """Client: how it is to be spoken, before the first text; what is None or empty stays as the module has it.

    Attributes:
        voice: a name out of the module's voices.
        voices: one for each speaker of a dialogue, instead of ``voice``.
        seed: of the sampling, so that the same text is spoken the same way.
        temperature: of the sampling; 0 is the likeliest token each time.
        top_k: from how many of the likeliest tokens is sampled.
        cfg_alpha: how strongly the voice is insisted on.
        max_steps: frames of 80 ms after which the speech is cut off.
    """

    voice: str | None = None
    voices: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    cfg_alpha: float | None = None
    max_steps: int | None = None


@dataclass(frozen=True, slots=True)
class NextSpeaker:
    """Client: the text that follows is the other speaker's turn; a dialogue begins with the first speaker's."""


@dataclass(frozen=True, slots=True)
class Eos:
    """Client: the text is complete."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """Server: one word was spoken, from ``start`` to ``stop`` (s) of the audio sent."""

    text: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Client: how its dialogue is to be held, by name; what is not named stays as the server has it."""

    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Control:
    """Client: go on, say that its turn is over, hold the dialogue, or begin it anew."""

    action: Literal["start", "end_turn", "pause", "restart"]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Client: asks how the dialogue is held. Server: says so; any JSON value."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Engine: the last event of a stream that has nothing more to say; its session takes it, and ends normally."""


@dataclass(frozen=True, slots=True)
class GoingAway:
    """Server, only if asked: it is told to end, and closes this stream in so many seconds; others take new ones."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Error:
    """Server: why this stream ends."""

    message: str


AsrClientEvent = Init | Audio | OggOpus | Marker | Flush
AsrServerEvent = Ready | Word | EndWord | Step | Marker | Flush | Turn | GoingAway | Error
TtsClientEvent = SpeechSettings | Text | NextSpeaker | Voice | Eos
TtsServerEvent = Ready | Audio | OggOpus | SpokenWord | GoingAway | Error
DialogueClientEvent = Settings | Audio | Control | Metadata
DialogueServerEvent = Ready | Audio | Text | Metadata | GoingAway | Error
