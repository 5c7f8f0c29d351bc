"""One run from a plan to its verdict: users, our own lateness, the server's process; it knows no terminal."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from .crowd import Plan, Register, User, hold
from .numbers import Percentiles, percentiles
from .report import LIMIT_SECONDS, Generator, Trial, stt_trial, tts_trial
from .stt import SttRegister, SttUser
from .tts import TtsRegister, TtsUser
from .usage import ProcessWatch, Usage, watch_server

RECENT: Final = 500
"""How many of the last delays are shown while it runs."""


@dataclass(frozen=True, slots=True)
class Glance:
    """How a run goes right now: users here of those planned, recent delays, failures, and how far it is (0 to 1)."""

    here: int
    streams: int
    recent: Percentiles | None
    failed: int
    done: float


class Bench(ABC):
    """Runs against one server.

    Args:
        url: the whole WebSocket address.
        api_key: sent with each connection.
        limit: the delay (s) that 99 % must keep.
        pid: the server's process, where it cannot be found by its port.
    """

    def __init__(self, url: str, api_key: str | None, *, limit: float = LIMIT_SECONDS, pid: int | None = None) -> None:
        self._url = url
        self._api_key = api_key
        self._limit = limit
        self._server = watch_server(url, pid)

    @abstractmethod
    async def attempt(self, plan: Plan, on_glance: Callable[[Glance], None] = lambda _: None) -> Trial:
        """Hold the planned streams and judge what came of it."""

    async def _hold(
        self,
        plan: Plan,
        register: Register,
        delays: Callable[[], array[float]],
        user: Callable[[Random], User],
        on_glance: Callable[[Glance], None],
    ) -> tuple[Generator, Usage | None]:
        watches = _Watches(self._server)

        def tick() -> None:
            watches.tick(register.begun)
            done = (time.monotonic() - register.begun + plan.join_seconds) / (plan.seconds + plan.join_seconds)
            recent = percentiles(np.array(delays()[-RECENT:]))
            on_glance(Glance(register.here, plan.streams, recent, register.failed, min(1.0, max(0.0, done))))

        await hold(plan, register, user, tick)
        generator = Generator(percentiles(register.lateness), watches.own_cores())
        return generator, self._server.usage() if self._server is not None else None


class SttBench(Bench):
    """Runs of speech to text.

    Args:
        frames: as `frames_of` makes them.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        frames: Sequence[bytes],
        *,
        limit: float = LIMIT_SECONDS,
        pid: int | None = None,
    ) -> None:
        super().__init__(url, api_key, limit=limit, pid=pid)
        self._frames = frames

    async def attempt(self, plan: Plan, on_glance: Callable[[Glance], None] = lambda _: None) -> Trial:
        """Hold the planned streams and judge what came of it."""
        register = SttRegister()

        def user(rng: Random) -> User:
            return SttUser(self._url, self._api_key, self._frames, plan, register, rng)

        delays = lambda: register.delays or register.word_delays  # noqa: E731
        generator, server = await self._hold(plan, register, delays, user, on_glance)
        return stt_trial(plan, register, generator, server, self._limit)


class TtsBench(Bench):
    """Runs of text to speech.

    Args:
        texts: what the users have spoken, one at a time.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        texts: Sequence[str],
        *,
        limit: float = LIMIT_SECONDS,
        pid: int | None = None,
    ) -> None:
        super().__init__(url, api_key, limit=limit, pid=pid)
        self._texts = texts

    async def attempt(self, plan: Plan, on_glance: Callable[[Glance], None] = lambda _: None) -> Trial:
        """Hold the planned streams and judge what came of it."""
        register = TtsRegister()

        def user(rng: Random) -> User:
            return TtsUser(self._url, self._api_key, self._texts, plan, register, rng)

        generator, server = await self._hold(plan, register, lambda: register.first_audio, user, on_glance)
        return tts_trial(plan, register, generator, server, self._limit)


class _Watches:
    """Over the server's process and our own, from when everybody has come."""

    def __init__(self, server: ProcessWatch | None) -> None:
        self._server = server
        self._running = False
        self._start()

    def _start(self) -> None:
        self._begun, self._cpu = time.monotonic(), time.process_time()
        if self._server is not None:
            self._server.start()

    def tick(self, begun: float) -> None:
        """Look at the server; begin anew once everybody has come."""
        if not self._running and time.monotonic() >= begun:
            self._running = True
            self._start()
        elif self._server is not None:
            self._server.look()

    def own_cores(self) -> float:
        """What this process took of a core."""
        return (time.process_time() - self._cpu) / max(1e-9, time.monotonic() - self._begun)
