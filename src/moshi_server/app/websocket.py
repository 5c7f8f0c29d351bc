"""The one pump that joins a WebSocket to an engine's session, whatever the protocol; it knows no model.

The socket is read only as fast as the session takes what is read, so that a client which sends too fast is slowed by
TCP. Every way to end (the client's close, a bad message, silence, a client that does not read, the engine's failure,
shutdown) leaves through `Pump.run`, which frees the slot before anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect
from structlog.contextvars import bind_contextvars

from ..audio import FRAME_SIZE
from ..auth import OPEN, Caller
from ..engine.session import Session
from ..errors import (
    ClientTimeoutError,
    EngineFailedError,
    GoingAwayError,
    MoshiServerError,
    NoFreeSlotError,
    RateLimitedError,
    SessionError,
    TooLargeError,
)
from ..events import GoingAway, Step, Word
from ..protocol import asr
from .closing import BrokenFramesError, CloseCode, closing_for
from .connection import MESSAGE_TOO_BIG, connection_of
from .module import ServedModule
from .routes import ServerState
from .upload import refusal_of
from .waiting import first_of
from .wire import AsrWire, Wire

logger = logging.getLogger(__name__)

PING_SECONDS: Final = 10.0
"""How often the client is pinged."""
SECOND_LOOK_SECONDS: Final = 0.1
"""How long a client whose time is up may still be heard, in case the event loop was late and not the client."""
SLOT_SECONDS: Final = 0.25
"""How long a stream waits for a slot: a client may connect again before the end of its last stream has been seen."""


_BEFORE_THE_UPGRADE: Final = (NoFreeSlotError, GoingAwayError, RateLimitedError, EngineFailedError)
"""What may be said by an HTTP status: another worker could serve this client, or this one later."""


class Channel(Protocol):
    """What a pump needs of the other side: an engine's `Session`, or something that looks like one."""

    id: int
    steps: int

    @property
    def buffered_samples(self) -> int:
        """Samples that were sent and not yet stepped."""
        ...

    @property
    def owes(self) -> bool:
        """Whether the client waits for an answer that it has asked for."""
        ...

    async def send(self, event: Any) -> None:
        """Hand one client event over."""
        ...

    async def receive(self) -> list[Any]:
        """All server events that have come, at least one; an empty list at the end."""
        ...

    def close(self) -> None:
        """Free everything at once. Safe to call again."""
        ...


class Pump:
    """One client of one module, from the upgrade to the close."""

    def __init__(self, websocket: WebSocket, module: ServedModule, wire: Wire, state: ServerState) -> None:
        self._websocket = websocket
        self._connection = connection_of(websocket)
        self._module = module
        self._wire = wire
        self._state = state
        self._metrics = state.metrics
        self._notices = websocket.query_params.get("notices") in ("1", "true")
        self._loop = asyncio.get_running_loop()
        self._last_message = self._loop.time()
        self._handing_over = False
        self._writing = False
        self._caller = OPEN
        self._subprotocol: str | None = None

    async def run(self, caller: Caller) -> None:
        """Accept, take a slot, carry messages both ways, and close with the reason.

        The other way round, and refused by an HTTP status, where the server is set to refuse before the upgrade.
        """
        self._caller = caller
        bind_contextvars(module=self._module.name)
        self._module.metrics.connected()
        with contextlib.ExitStack() as place:
            early: Channel | None = None
            if self._state.refuse_before_upgrade:
                try:
                    early = await self._admit(place)
                except _BEFORE_THE_UPGRADE as error:
                    await self._refuse(error)
                    return
                except MoshiServerError:
                    place.close()  # what else is wrong is said as the protocol has it: it is found again below
            await self._websocket.accept(self._subprotocol)
            await self._serve(place, early)

    async def _serve(self, place: contextlib.ExitStack, early: Channel | None) -> None:
        start = time.monotonic()
        steps = 0
        code, reason = int(CloseCode.NORMAL), ""
        caller = self._caller
        try:
            session = early if early is not None else await self._admit(place)
            bind_contextvars(session=session.id)
            logger.info("stream opened", extra={"fields": {"caller": caller.name, "by": caller.method}})
            try:
                self._take_short_ways(session)
                await first_of(self._read(session), self._write(session), self._watch(session))
            finally:
                self._connection.take = None
                session.close()
                steps = session.steps
            self._connection.finish(self._module.limits.send_seconds)
            self._metrics.closed(code)
        except WebSocketDisconnect as gone:
            code, reason = gone.code, gone.reason or "the client has gone"
            self._metrics.closed(gone.code)
        except MoshiServerError as error:
            code, reason = self._end(error), error.message
        except Exception as error:
            logger.exception("a stream failed; this is a bug of ours")
            code, reason = self._end(error), "internal error"
        fields = {"code": code, "reason": reason, "seconds": time.monotonic() - start, "steps": steps}
        logger.info("stream ended", extra={"fields": fields})

    async def _admit(self, place: contextlib.ExitStack) -> Channel:
        place.enter_context(self._state.admission.admit(self._caller))
        session = await self._open()
        place.callback(session.close)
        return session

    async def _refuse(self, error: MoshiServerError) -> None:
        """Say no with a status, so that a proxy can ask another worker."""
        self._count(error)
        logger.info("stream refused before the upgrade", extra={"fields": {"reason": error.message}})
        with contextlib.suppress(WebSocketDisconnect):
            await self._websocket.send_denial_response(refusal_of(error, internal=503))

    def _count(self, error: Exception) -> None:
        if error_type := closing_for(error).error_type:
            self._metrics.connection_errors.inc(error_type, self._module.name)
        if isinstance(error, SessionError) and error.limit:
            self._metrics.limits.inc(error.limit, self._module.name)

    async def _open(self) -> Channel:
        return await self._module.engine.open(wait_seconds=SLOT_SECONDS, caller=self._caller.name)

    def _end(self, error: Exception) -> int:
        """Say why, as an `Error` message for clients that know only upstream and as a close code."""
        closing = closing_for(error)
        message = error.message if isinstance(error, MoshiServerError) else "internal error"
        self._connection.hang_up(closing.code, message, self._wire.farewell(message))
        self._metrics.closed(closing.code)
        self._count(error)
        return closing.code

    async def _read(self, session: Channel) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise self._gone(message)
            data: bytes | str | None = message.get("bytes")
            if data is None:
                data = str(message["text"])
            if len(data) > self._module.limits.max_message_bytes:
                raise self._too_big()
            self._handing_over = True
            counts = await self._deliver(data, session)
            self._handing_over = False
            if counts:
                self._last_message = self._loop.time()

    def _take_short_ways(self, session: Channel) -> None:
        """Carry what is most common, samples in and steps out, without waking a task for each.

        `_read` and `_write` get the rest, and everything while one of them is at work, so that the order is kept.
        """
        wire, limit = self._wire, self._module.limits.max_message_bytes
        if type(self) is not Pump or not isinstance(wire, AsrWire) or not isinstance(session, Session):
            return

        def take(data: bytes) -> bool:
            if self._handing_over or len(data) > limit:
                return False
            audio = wire.quick(data)
            if audio is None or not session.offer(audio):
                return False
            self._last_message = self._loop.time()
            return True

        def tell(events: list[Any]) -> bool:
            if self._writing or any(type(event) is not Step for event in events):
                return False
            return self._connection.put(*map(asr.encode, events))

        self._connection.take = take
        session.tell = tell

    async def _deliver(self, data: bytes | str, session: Channel) -> bool:
        """Hand a message's events over; whether it counts as a sign of life."""
        events = self._events(data)
        for event in events or ():
            await self._hand_over(event, session)
        return events is not None

    async def _hand_over(self, event: Any, session: Channel) -> None:
        try:
            await session.send(event)
        except SessionError:
            # The session has ended. `_write` raises the reason once everything before it is sent.
            await self._loop.create_future()

    async def _write(self, session: Channel) -> None:
        while events := await session.receive():
            self._writing = True
            if words := sum(isinstance(event, Word) for event in events):
                self._module.metrics.spoke(words)
            for event in events:
                await self._tell(event)
            self._writing = False
        for data in self._last_messages():
            await self._put(data)

    async def _tell(self, event: Any) -> None:
        for data in self._messages(event):
            await self._put(data)

    async def _put(self, data: bytes | str) -> None:
        if self._connection.put(data):
            return
        limit = self._module.limits.send_seconds
        try:
            async with asyncio.timeout(limit):
                await self._websocket.send(
                    {"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data}
                )
        except TimeoutError:
            raise ClientTimeoutError(f"the client read nothing for {limit:g} s", limit="not_reading") from None

    def _events(self, data: bytes | str) -> Iterable[Any] | None:
        """The events of a message; None for one that does not count as a sign of life, as upstream's text frames."""
        return None if isinstance(data, str) else self._wire.decode(data)

    def _messages(self, event: Any) -> Iterable[bytes]:
        """One event as messages."""
        if isinstance(event, GoingAway) and not self._notices:
            return ()  # clients that know only upstream may take an unknown message for a fault
        data = self._wire.encode(event)
        return () if data is None else (data,)

    def _last_messages(self) -> Iterable[bytes]:
        """What is still to be sent when the stream has ended by itself."""
        return ()

    def _busy(self, session: Channel) -> bool:
        """Whether the client rightly waits for us."""
        return self._handing_over or session.owes or session.buffered_samples >= FRAME_SIZE

    async def _watch(self, session: Channel) -> None:
        """Raise once the client has been silent for too long. Audio that waits for the model is no silence."""
        limits = self._module.limits
        overdue = False
        while True:
            if self._busy(session):
                self._last_message = self._loop.time()
            frame_left = limits.idle_seconds - self._connection.silence()
            message_left = limits.message_seconds - (self._loop.time() - self._last_message)
            if min(frame_left, message_left) <= 0 and not overdue:
                # It may be we who stood still: take what has arrived meanwhile, and look once more.
                overdue = True
                await asyncio.sleep(SECOND_LOOK_SECONDS)
                continue
            if frame_left <= 0:
                idle = limits.idle_seconds
                raise ClientTimeoutError(f"nothing was heard from the client for {idle:g} s", limit="idle_time")
            if message_left <= 0:
                idle = limits.message_seconds
                raise ClientTimeoutError(f"the client sent no message for {idle:g} s", limit="message_time")
            overdue = False
            await asyncio.sleep(min(frame_left, message_left) + 0.005)

    def _gone(self, message: Any) -> Exception:
        code, reason = message.get("code", CloseCode.LOST), message.get("reason") or ""
        if not self._connection.cut_short:
            if code == CloseCode.NO_STATUS and not self._connection.said_goodbye:
                code = CloseCode.LOST  # of which uvicorn says what belongs to a close frame without a code
            return WebSocketDisconnect(code, reason)
        if code == MESSAGE_TOO_BIG:
            return self._too_big()
        return BrokenFramesError(f"the client broke the WebSocket protocol: {reason or code}")

    def _too_big(self) -> TooLargeError:
        megabytes = self._module.limits.max_message_bytes / 2**20
        return TooLargeError(
            f"a message is larger than {megabytes:g} MiB", hint="send audio in chunks of a second or less"
        )
