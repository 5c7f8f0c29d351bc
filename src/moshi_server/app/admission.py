"""How much one caller may have at once and begin in a minute, and who is being served now; it knows no credentials."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..auth import Caller
from ..errors import RateLimitedError

MAX_REMEMBERED = 10_000
"""Callers whose pace is remembered; beyond, those are forgotten who may begin as many as anyone new."""


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one key or user may have; None for no limit.

    Attributes:
        sessions: streams and requests at once.
        per_minute: streams and requests begun in a minute; as many may begin at once.
    """

    sessions: int | None = None
    per_minute: int | None = None


class Admission:
    """Lets callers in, and counts them while they are served. Belongs to the event loop."""

    def __init__(self, limits: CallerLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or CallerLimits()
        self._clock = clock
        self._present: dict[str, int] = {}
        self._starts: dict[str, tuple[float, float]] = {}  # how many may still begin, and when that was so
        self.served = 0
        """Streams and requests that are being served, those included that wait for a slot."""

    @contextlib.contextmanager
    def admit(self, caller: Caller) -> Iterator[None]:
        """A place among those served. Who showed no credentials is anyone, and has no limit of its own.

        Raises:
            RateLimitedError: this caller has too many, or begins too many.
        """
        who = "" if caller.method == "open" else f"{caller.method} {caller.identity or caller.name}"
        if who:
            self._check_sessions(who)
            self._check_pace(who)
            self._present[who] = self._present.get(who, 0) + 1
        self.served += 1
        try:
            yield
        finally:
            self.served -= 1
            if who:
                self._present[who] -= 1
                if not self._present[who]:
                    del self._present[who]

    def _check_sessions(self, who: str) -> None:
        most = self._limits.sessions
        if most is not None and self._present.get(who, 0) >= most:
            raise RateLimitedError(
                f"this key has {most} streams and requests open already, which is the limit",
                hint="close one first; the operator's setting is max_sessions_per_key",
                limit="sessions_per_key",
            )

    def _check_pace(self, who: str) -> None:
        most = self._limits.per_minute
        if most is None:
            return
        now = self._clock()
        left, then = self._starts.get(who, (float(most), now))
        left = min(float(most), left + (now - then) * most / 60)
        if left < 1:
            self._starts[who] = (left, now)
            raise RateLimitedError(
                f"this key has begun more than {most} streams and requests in a minute, which is the limit",
                hint=f"wait {(1 - left) * 60 / most:.0f} s; the operator's setting is max_starts_per_minute",
            )
        self._starts[who] = (left - 1, now)
        if len(self._starts) > MAX_REMEMBERED:
            self._starts = {
                each: (left, then)
                for each, (left, then) in self._starts.items()
                if left + (now - then) * most / 60 < most
            }


class Refusal(JSONResponse):
    """An answer that refuses; ``limit`` is what was run into, if it was a limit."""

    def __init__(self, content: object, status: int, headers: dict[str, str] | None = None, limit: str = "") -> None:
        super().__init__(content, status, headers)
        self.limit = limit


class Held(Response):
    """Another answer, sent as it is; its place is given back once its last byte was handed on."""

    def __init__(self, inner: Response, place: contextlib.ExitStack) -> None:
        super().__init__()
        self._inner = inner
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._place:
            await self._inner(scope, receive, send)
