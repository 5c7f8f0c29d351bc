"""What a run says of the server: held or not and why, figures for people and for programs; it measures nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from .crowd import Plan, Register
from .numbers import Moment, Percentiles, course, growth, percentiles
from .stt import SttRegister
from .tts import PLAYER_SECONDS, TtsRegister
from .usage import Usage

LIMIT_SECONDS: Final = 0.16
"""The answer delay that 99 % must keep. A server that just keeps up lets a frame wait for the step under way and for
its own, of at most 80 ms each."""
LATE_SECONDS: Final = 0.02
"""From this lateness (p99) of our own messages on, the figures are not the server's alone."""
BUSY_CORES: Final = 0.9
"""From this use of a core on, our one thread is too busy to tell the time."""


@dataclass(frozen=True, slots=True)
class Generator:
    """The load generator itself: how late it sent, and what it took of a core."""

    lateness: Percentiles | None
    cores: float

    @property
    def complaint(self) -> str:
        """Why the figures are not to be trusted, or nothing."""
        if self.cores > BUSY_CORES:
            return f"the load generator used {self.cores:.0%} of a core: it may be the bottleneck itself"
        if self.lateness is not None and self.lateness.p99 > LATE_SECONDS * 1000:
            late = self.lateness.p99
            return f"the load generator sent up to {late:.0f} ms late (p99): the machine was too busy for it"
        return ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. Times are milliseconds; ``delays`` is what the verdict is about.

    Attributes:
        measure: what ``delays`` are of: "step", "word", "first audio" or "nothing".
        held: whether all streams were served in real time; ``why`` says why not.
        others: further times by name.
        counts: further numbers by name.
        moments: ``delays`` over the run.
        server: None if unknown.
    """

    streams: int
    seconds: float
    held: bool
    why: str
    measure: str
    delays: Percentiles | None
    over_limit: float
    others: Mapping[str, Percentiles | None]
    counts: Mapping[str, float]
    errors: Mapping[str, int]
    generator: Generator
    server: Usage | None
    moments: Sequence[Moment] = field(default=(), repr=False)


def stt_trial(
    plan: Plan, register: SttRegister, generator: Generator, server: Usage | None, limit: float = LIMIT_SECONDS
) -> Trial:
    """The verdict on a run of speech to text."""
    measure, moments, delays = "nothing", register.answered_at, register.delays
    if len(register.delays):
        measure = "step"
    elif len(register.word_delays):
        measure, moments, delays = "word", register.spoken_at, register.word_delays
    late = float(np.mean(np.asarray(delays) > limit)) if len(delays) else 0.0
    why = _failures(register)
    if not why and measure == "step":
        if register.unanswered:
            why = f"{register.unanswered} of {register.frames} frames were never answered"
        elif late > 0.01:
            why = f"{late:.1%} of the answers took more than {limit * 1000:.0f} ms"
    elif not why and measure == "word":
        # A word's delay holds the model's own, which only the server knows; that it grows is a backlog.
        grown = growth(moments, delays)
        if grown > limit:
            why = f"words came {grown * 1000:.0f} ms later at the end than at the beginning"
    elif not why:
        why = "neither a Step nor a Word has come"
    return Trial(
        streams=plan.streams,
        seconds=plan.seconds,
        held=not why,
        why=why,
        measure=measure,
        delays=percentiles(delays),
        over_limit=late,
        others={
            "first word": percentiles(register.first_word_delays),
            "word": percentiles(register.word_delays),
            "ready": percentiles(register.ready),
        },
        counts={"frames": register.frames, "unanswered": register.unanswered, "words": len(register.word_delays)},
        errors=dict(register.errors),
        generator=generator,
        server=server,
        moments=course(moments, delays),
    )


def tts_trial(
    plan: Plan, register: TtsRegister, generator: Generator, server: Usage | None, limit: float = LIMIT_SECONDS
) -> Trial:
    """The verdict on a run of text to speech: held if no more than 1 % of the speeches stood still for ``limit``."""
    gaps = np.asarray(register.gaps)
    broken = float(np.mean(gaps > limit)) if len(gaps) else 0.0
    why = _failures(register)
    if not why and not len(gaps):
        why = "no sound has come"
    elif not why and broken > 0.01:
        why = f"{broken:.0%} of the speeches had gaps of more than {limit * 1000:.0f} ms"
    delays = register.first_audio
    speeds = np.asarray(register.speeds)
    return Trial(
        streams=plan.streams,
        seconds=plan.seconds,
        held=not why,
        why=why,
        measure="first audio",
        delays=percentiles(delays),
        over_limit=broken,
        others={"gap": percentiles(gaps), "ready": percentiles(register.ready)},
        counts={
            "speeches": register.speeches,
            "words": register.words,
            "audio_seconds": register.seconds,
            "real_time_factor_p50": float(np.median(speeds)) if len(speeds) else 0.0,
            "player_ms": PLAYER_SECONDS * 1000,
        },
        errors=dict(register.errors),
        generator=generator,
        server=server,
        moments=course(register.asked_at, delays),
    )


def _failures(register: Register) -> str:
    if not register.errors:
        return ""
    message, count = register.errors.most_common(1)[0]
    others = f" (and {register.failed - count} others)" if register.failed > count else ""
    return f"{count} x {message}{others}"


def as_json(url: str, plan: Plan, trials: Sequence[Trial], limit: float) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "url": url,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "limit_ms": limit * 1000,
        "most_streams_held": most_held(trials),
        "plan": asdict(plan),
        "trials": [_rounded(asdict(trial)) for trial in trials],
    }


def most_held(trials: Sequence[Trial]) -> int | None:
    """The most streams that held, or None if none did."""
    return max((trial.streams for trial in trials if trial.held), default=None)


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
    return value
