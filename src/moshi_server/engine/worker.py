"""The life of one module's model thread: start, warm up, serve, fail or end; it knows no model and no protocol."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from structlog.contextvars import bind_contextvars

from ..audio import SAMPLE_RATE
from ..errors import EngineFailedError, GoingAwayError, MoshiServerError, NoFreeSlotError, ScriptError, SessionError
from ..events import GoingAway, Ready
from .batcher import Batcher
from .hooks import EngineHooks
from .runner import Runner, Stream
from .session import Session
from .slots import SlotTable

if TYPE_CHECKING:
    from .token_log import TokenLog

logger = logging.getLogger(__name__)

Status = Literal["starting", "ready", "draining", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one stream may take.

    Attributes:
        queue_seconds: audio that may wait for the model before the client's socket is no longer read.
        session_seconds: how long a stream may last, or None for ever.
    """

    queue_seconds: float = 10.0
    session_seconds: float | None = None


class Engine:
    """One module: a runner, its slots, and the thread that steps them.

    Args:
        name: the module's name in the configuration.
        kind: the module's type, for those who list it.
        runner: the model; used on the model thread only from `start` on.
        make_stream: makes one client's logic.
        prepare: called first on the model thread, before the warm-up; what it raises is the end of the module.
        token_log: told of each stream, and closed at the end.
        isolated: its failure is its own affair: the server starts and goes on without it (a user's script).
    """

    def __init__(
        self,
        name: str,
        kind: str,
        runner: Runner,
        make_stream: Callable[[], Stream],
        *,
        limits: EngineLimits | None = None,
        hooks: EngineHooks | None = None,
        warmup: bool = True,
        prepare: Callable[[], None] | None = None,
        token_log: TokenLog | None = None,
        isolated: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.error: BaseException | None = None
        self.status: Status = "starting"
        self._runner = runner
        self._make_stream = make_stream
        self._limits = limits or EngineLimits()
        self._hooks = hooks or EngineHooks()
        self._warmup = warmup
        self._prepare = prepare
        self._token_log = token_log
        self.isolated = isolated
        self._slots = SlotTable(runner.slots)
        self._batcher = Batcher(runner, self._hooks, session_seconds=self._limits.session_seconds)
        self._ids = itertools.count(1)
        self._begun = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"model-{name}", daemon=True)

    @property
    def slots_total(self) -> int:
        """How many streams can be served at once."""
        return self._slots.total

    @property
    def slots_used(self) -> int:
        """How many streams are being served."""
        return self._slots.used

    @property
    def slots_waiting(self) -> int:
        """How many callers wait for a slot."""
        return self._slots.waiting

    @property
    def step_in_flight(self) -> int | None:
        """The number of the model step that runs now; None between steps."""
        return self._batcher.step_in_flight

    def take_turns(self, turn: AbstractContextManager[None]) -> None:
        """Enter this for each step, since other modules use the device, too. To be called before `start`."""
        self._batcher.turn = turn

    def start(self) -> None:
        """Begin to warm up and serve, on a thread of its own."""
        self._thread.start()

    async def wait_ready(self) -> None:
        """Return once streams can be opened.

        Raises:
            EngineFailedError: the warm-up failed.
        """
        while not self._begun.is_set():
            await asyncio.sleep(0.02)
        self.check_open()

    async def open(self, *, wait_seconds: float = 0.0, caller: str = "") -> Session:
        """Take a slot for one stream; its first event is `Ready`.

        Args:
            wait_seconds: how long to queue for a slot when all are taken.
            caller: who it is for, as it may stand in a log.

        Raises:
            NoFreeSlotError: no slot, even after waiting.
            EngineFailedError: the model loop has stopped.
            GoingAwayError: the engine is ending.
        """
        self.check_open()
        slot = self._slots.acquire()
        if slot is None and wait_seconds > 0:
            slot = await self._slots.wait(wait_seconds)
        if slot is None:
            raise NoFreeSlotError
        try:
            self.check_open()
            session = Session(
                next(self._ids),
                slot,
                self._make_stream(),
                queue_samples=round(self._limits.queue_seconds * SAMPLE_RATE),
                on_close=self._closed,
                wake=self._batcher.wake,
            )
        except BaseException:
            self._slots.release(slot)
            raise
        self._hooks.on_open()
        if self._token_log is not None:
            self._token_log.begin(slot, caller)
        session.deliver([Ready()], None)
        self._batcher.add(session)
        return session

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new streams, tell the running ones to end within ``grace_seconds``, then end them."""
        if self.status in ("starting", "ready"):
            self.status = "draining"
            for session in self._batcher.sessions() if grace_seconds > 0 else ():
                session.deliver([GoingAway(grace_seconds)], None)
        end = time.monotonic() + grace_seconds
        while self.slots_used and time.monotonic() < end and self.status == "draining":
            await asyncio.sleep(0.05)
        for session in self._batcher.sessions():
            session.fail(GoingAwayError("the server is shutting down"))

    def stop(self) -> None:
        """End the model thread after the step in flight. Streams still open are ended."""
        self._stopping.set()
        self._batcher.wake()
        lost = self.status == "failed"  # it may hang in the step that failed
        if self._thread.is_alive() and self._thread is not threading.current_thread() and not lost:
            self._thread.join(timeout=30)
        if self._token_log is not None:
            self._token_log.close()

    def abandon(self, error: EngineFailedError) -> None:
        """Give up on the model thread, which hangs in a step: its streams end, and it is left behind.

        Safe to call from any other thread.
        """
        self._stopping.set()
        self._fail(error)
        self._begun.set()

    def check_open(self) -> None:
        """Raise unless streams can be opened now.

        Raises:
            EngineFailedError, GoingAwayError, NoFreeSlotError: as `open`.
        """
        if self.status == "failed":
            hint = self.error.hint if isinstance(self.error, MoshiServerError) else ""
            raise EngineFailedError(f"module {self.name} has failed: {self.error}", hint=hint or "see the server's log")
        if self.status in ("draining", "stopped"):
            raise GoingAwayError("the server is shutting down")
        if self.status == "starting":
            raise NoFreeSlotError("the model is still warming up", hint="try again in a few seconds", limit="warming")

    def _closed(self, session: Session) -> None:
        self._batcher.discard(session)
        if self._token_log is not None:
            self._token_log.end(session.slot)
        self._slots.release(session.slot)
        self._hooks.on_close(session.steps)

    def _main(self) -> None:
        bind_contextvars(module=self.name)  # in every line that this thread logs
        try:
            if self._prepare is not None:
                self._run_prepare(self._prepare)
            if self._warmup:
                self._warm_up()
            else:
                logger.info("warmup skipped: [warmup] enabled is false")
            if self.status == "starting":
                self.status = "ready"
            self._begun.set()
            self._batcher.run(lambda: not self._stopping.is_set())
        except Exception as error:
            self._fail(error)
        else:
            if self.status == "failed":  # abandoned, and come back after all
                return
            self.status = "stopped"
            self._end_all(GoingAwayError("the server is shutting down"))
        finally:
            self._begun.set()

    def _run_prepare(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        except Exception as error:
            hint = error.hint if isinstance(error, MoshiServerError) else ""
            logger.error("%s", error, exc_info=error, extra={"fields": {"hint": hint} if hint else {}})
            raise

    def _warm_up(self) -> None:
        start = time.perf_counter()
        logger.info("warmup starts")
        try:
            self._runner.warmup()
        except Exception as error:
            self._hooks.on_warmup(time.perf_counter() - start, False)
            failure = warmup_failure(error)
            fields = {"seconds": time.perf_counter() - start, "hint": failure.hint}
            logger.error("%s", failure, exc_info=error, extra={"fields": fields})
            raise failure from error
        seconds = time.perf_counter() - start
        self._hooks.on_warmup(seconds, True)
        logger.info("warmup done", extra={"fields": {"seconds": seconds}})

    def _fail(self, error: Exception) -> None:
        if self.status == "failed":
            return
        if self._begun.is_set() or self._stopping.is_set():  # else it was the warm-up, which has said so
            logger.critical("the model loop has stopped: %s", error, exc_info=error)
        self.error = error
        self.status = "failed"
        self._hooks.on_failure(error)
        if isinstance(error, ScriptError):  # its sentence says whose fault it is
            self._end_all(error)
        else:
            self._end_all(EngineFailedError(f"module {self.name} has failed: {error}"))

    def _end_all(self, reason: SessionError) -> None:
        for session in self._batcher.sessions():
            try:
                session.loop.call_soon_threadsafe(session.fail, reason)
            except RuntimeError:  # its event loop is closed: nobody waits any more
                self._batcher.discard(session)


def warmup_failure(error: Exception) -> EngineFailedError:
    """The error of a warm-up, with what to do about it."""
    # Torch's own class for this is not known here, and older drivers raise a plain RuntimeError.
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        hint = "lower the module's batch_size, set dtype_override to a smaller type, or end what else uses the memory"
    else:
        hint = "the log says where; try --cpu or another dtype_override ([warmup] enabled = false would only hide it)"
    reason = " ".join(str(error).split()) or type(error).__name__
    return EngineFailedError(f"the warmup failed: {reason}", hint=hint)
