"""When a lost stream is worth another connection, and how long to wait before it; it opens none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import (
    ClientTimeoutError,
    EngineFailedError,
    GoingAwayError,
    MoshiServerError,
    NoFreeSlotError,
    RateLimitedError,
    ServerUnreachableError,
    SessionError,
)
from .connecting import public_url

_PASSING = (EngineFailedError, GoingAwayError, NoFreeSlotError, RateLimitedError, ServerUnreachableError)


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a stream goes on after its connection was lost.

    Attributes:
        first_seconds: the longest wait before the first attempt. Each wait is drawn between 0 and its limit, so that
            the clients of a server that died do not all come at once.
        most_seconds: the limit doubles with each attempt, up to this one.
        give_up_seconds: without a connection for so long, the stream ends with the last attempt's error.
        fruitless_losses: so many losses in a row with no more audio transcribed end the stream, too: it is not the
            servers then.
        buffer_seconds: audio that may wait for its transcription; whoever sends more waits.
        stall_seconds: nothing came from the server for so long though it owes an answer: it is taken for lost.
    """

    first_seconds: float = 0.5
    most_seconds: float = 8.0
    give_up_seconds: float = 60.0
    fruitless_losses: int = 5
    buffer_seconds: float = 60.0
    stall_seconds: float = 20.0

    def waits(self, fruitless: int = 0) -> Iterator[float]:
        """Seconds to wait before each attempt; ``fruitless`` losses before this one make the first ones longer."""
        limit = self.first_seconds * 2**fruitless
        while True:
            limit = min(limit, self.most_seconds)
            yield random.uniform(0, limit)  # noqa: S311
            limit *= 2


def passes(error: MoshiServerError, *, owed: bool = True) -> bool:
    """Whether another connection may do better.

    Args:
        error: what ended the stream, or an attempt.
        owed: the server had yet to answer something. A client that was silent too long has it coming otherwise.
    """
    if isinstance(error, ClientTimeoutError):
        return owed
    return isinstance(error, _PASSING) or type(error) is SessionError


def in_turn(urls: Sequence[str], lost: str) -> list[str]:
    """The addresses in the order to try them: shuffled, so that clients spread; the one lost (its public form) last."""
    return sorted(random.sample(list(urls), len(urls)), key=lambda url: public_url(url) == lost)
