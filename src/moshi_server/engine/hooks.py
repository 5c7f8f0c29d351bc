"""What the engine measures leaves it through these hooks; it knows nobody who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class EngineHooks:
    """Callables that the engine calls, from its own thread or from the event loop; each must be quick and thread-safe.

    Attributes:
        on_open: a stream took a slot.
        on_close: a stream left its slot, after this many steps.
        on_step: one batched step took this many seconds for this many streams.
        on_words: after a step of text to speech, how many streams waited for words, and how many did not.
        on_warmup: the warm-up took this many seconds, and whether it succeeded.
        on_failure: the model loop stopped with this error.
    """

    on_open: Callable[[], None] = _nothing
    on_close: Callable[[int], None] = _nothing
    on_step: Callable[[float, int], None] = _nothing
    on_words: Callable[[int, int], None] = _nothing
    on_warmup: Callable[[float, bool], None] = _nothing
    on_failure: Callable[[BaseException], None] = _nothing
