"""Rooms on the event loop: what one producer makes is encoded once and sent to every listener; it knows no model."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from ..audio import FRAME_SIZE, SAMPLE_RATE, OpusEncoder
from ..auth import Caller
from ..engine.session import Session
from ..errors import ClientTimeoutError, GoingAwayError, NoFreeSlotError, ResourceNotFoundError, SessionError
from ..events import Audio, Codes, GoingAway, Text
from ..protocol import moshi
from ..protocol.moshi import Frame, Kind
from .dialogue import going_away
from .module import RoomsSpec, ServedModule
from .routes import ServerState
from .websocket import SLOT_SECONDS, Channel, Pump

PING_SECONDS: Final = 5.0
"""How often a listener gets a ping frame, as upstream."""
LEAD_SECONDS: Final = 5.0
"""How far a room's sound may run ahead of real time; a faster producer is slowed down by TCP."""
MAX_WAITING: Final = 128
"""Frames that may wait for a listener (about 10 s); who is further behind is closed, and the room goes on."""
ROOM_HEADER: Final = "room_id"


class Seat:
    """One listener: the frames on their way to it, from when it joined."""

    steps = 0
    buffered_samples = 0
    owes = False

    def __init__(self, number: int, room: Room, check: Callable[[], None], notices: bool = False) -> None:
        self.id = number
        self.notices = notices
        self._room = room
        self._check = check
        self._frames: deque[bytes] = deque((moshi.handshake().to_bytes(), room.header))
        self._arrived = asyncio.Event()
        self._error: SessionError | None = None
        self._next_ping = time.monotonic() + PING_SECONDS

    def offer(self, frame: bytes) -> None:
        """Take a frame to send; a listener that is too far behind loses its seat."""
        if len(self._frames) >= MAX_WAITING:
            behind = MAX_WAITING * FRAME_SIZE / SAMPLE_RATE
            sentence = f"the listener reads too slowly: it is {behind:.0f} s behind the room"
            self.fail(ClientTimeoutError(sentence, limit="not_reading"))
            return
        self._frames.append(frame)
        self._arrived.set()

    def fail(self, error: SessionError) -> None:
        """End the seat with a reason; what still waits is not sent any more."""
        self._error = self._error or error
        self._frames.clear()
        self._arrived.set()
        self.close()

    async def send(self, event: Any) -> None:
        """A listener has nothing to say."""

    async def receive(self) -> list[bytes]:
        """The frames that have come, at least one; a ping if none came for a while.

        Raises:
            SessionError: the reason why the seat was lost.
        """
        while True:
            if self._error is not None:
                raise self._error
            if time.monotonic() >= self._next_ping:
                self._check()
                self._next_ping = time.monotonic() + PING_SECONDS
                self._frames.append(moshi.PING.to_bytes())
            if self._frames:
                frames = list(self._frames)
                self._frames.clear()
                return frames
            self._arrived.clear()
            timer = asyncio.get_running_loop().call_later(self._next_ping - time.monotonic(), self._arrived.set)
            try:
                await self._arrived.wait()
            finally:
                timer.cancel()

    def close(self) -> None:
        """Leave the room. Safe to call again."""
        self._room.leave(self)


class Room:
    """One room: at most one producer, and those who listen. Its Opus stream never begins anew."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._encoder = OpusEncoder()
        self.header = Frame(Kind.AUDIO, self._encoder.header()).to_bytes()
        self._seats: set[Seat] = set()
        self._producer = asyncio.Lock()
        self._sounding_until = 0.0

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._seats)

    async def claim(self) -> None:
        """Become the room's producer.

        Raises:
            NoFreeSlotError: another one is there, and stays.
        """
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await self._producer.acquire()
        except TimeoutError:
            raise NoFreeSlotError(
                f"room {self.name} already has a producer", hint="one producer at a time: end the other one first"
            ) from None

    def release(self) -> None:
        """Stop being the producer."""
        self._producer.release()

    def join(self, seat: Seat) -> None:
        """Listen from now on."""
        self._seats.add(seat)

    def leave(self, seat: Seat) -> None:
        """Listen no more."""
        self._seats.discard(seat)

    async def publish(self, event: Any) -> None:
        """Give one of the producer's events to everyone, no faster than it can be heard."""
        match event:
            case Audio(pcm=pcm):
                await self._keep_time(len(pcm) / SAMPLE_RATE)
                if self._seats:  # whoever joins later begins at a later frame of the same stream
                    self._broadcast(Frame(Kind.AUDIO, self._encoder.encode(pcm)))
            case Text(text=text):
                self._broadcast(moshi.text(text))
        await asyncio.sleep(0)  # a turn for the listeners: a burst must not fill their queues

    def tell(self, seconds: float) -> None:
        """Say to those listeners who asked for notices that the server ends in so many seconds."""
        for seat in list(self._seats):
            if seat.notices:
                seat.offer(going_away(seconds))

    def end(self, error: SessionError) -> None:
        """Send every listener away."""
        for seat in list(self._seats):
            seat.fail(error)

    def _broadcast(self, frame: Frame) -> None:
        data = frame.to_bytes()
        for seat in list(self._seats):
            seat.offer(data)

    async def _keep_time(self, seconds: float) -> None:
        now = time.monotonic()
        self._sounding_until = max(self._sounding_until, now) + seconds
        if (ahead := self._sounding_until - now - LEAD_SECONDS) > 0:
            await asyncio.sleep(ahead)


class Rooms:
    """The rooms of one module, by name."""

    def __init__(self, spec: RoomsSpec) -> None:
        self._spec = spec
        self._rooms = {name: Room(name) for name in spec.names}
        self._joined = 0

    def find(self, asked: str | None) -> Room:
        """The room of this name.

        Raises:
            ResourceNotFoundError: it does not exist, or none was named.
        """
        if asked is None:
            raise ResourceNotFoundError("no room was named", hint="add ?room_id=NAME, or a room_id header")
        room = self._rooms.get(asked)
        if room is None:
            raise ResourceNotFoundError(f"there is no room {asked[:60]!r}", hint="rooms are set in the configuration")
        return room

    def seat(self, asked: str | None, check: Callable[[], None], notices: bool = False) -> Seat:
        """A place in a room, in the default one if none is named.

        Raises:
            ResourceNotFoundError: no such room.
            SessionError: ``check`` says that the module takes nobody now.
        """
        check()
        room = self.find(asked if asked is not None else self._spec.default)
        self._joined += 1
        seat = Seat(self._joined, room, check, notices)
        room.join(seat)
        return seat

    def tell(self, seconds: float) -> None:
        """Say to listeners that the server ends in so many seconds."""
        for room in self._rooms.values():
            room.tell(seconds)

    def end(self) -> None:
        """Send every listener away, since the server ends."""
        for room in self._rooms.values():
            room.end(GoingAwayError("the server is shutting down"))


class ProducerWire:
    """The producer's side: codes and text come in; nothing goes out but the reason of an end."""

    def decode(self, data: bytes) -> Iterator[Any]:
        """The event of one frame; frames of other kinds are discarded, as upstream does."""
        frame = moshi.decode(data)
        if frame is None:
            return
        if frame.kind is Kind.TEXT:
            yield Text(frame.text)
        elif frame.kind is Kind.CODES:
            yield Codes(frame.codes.astype(np.int64))

    def encode(self, event: Any) -> bytes | None:
        """A producer is told nothing."""
        return None

    def farewell(self, message: str) -> bytes:
        """An error frame."""
        return moshi.error(message).to_bytes()


class ListenerWire(ProducerWire):
    """The listeners' side: frames go out as the room made them; what comes in is discarded."""

    def decode(self, data: bytes) -> Iterator[Any]:
        """Nothing."""
        return iter(())

    def encode(self, event: Any) -> bytes | None:
        """The frame itself."""
        assert isinstance(event, bytes)
        return event


class ProducerPump(Pump):
    """A room's producer, from the accepted upgrade to the close."""

    def __init__(self, websocket: WebSocket, module: ServedModule, rooms: Rooms, state: ServerState) -> None:
        super().__init__(websocket, module, ProducerWire(), state)
        self._rooms = rooms
        self._room: Room | None = None

    async def run(self, caller: Caller) -> None:
        """As `Pump.run`; the room is free for the next producer afterwards."""
        try:
            await super().run(caller)
        finally:
            if self._room is not None:
                self._room.release()

    async def _open(self) -> Channel:
        room = self._rooms.find(_room_id(self._websocket))
        await room.claim()
        self._room = room
        return await self._module.engine.open(wait_seconds=SLOT_SECONDS)

    async def _write(self, session: Channel) -> None:
        assert self._room is not None
        assert isinstance(session, Session)
        while events := await session.receive():
            for event in events:
                if isinstance(event, GoingAway) and self._notices:
                    await self._put(going_away(event.seconds))
                await self._room.publish(event)


class ListenerPump(Pump):
    """One of a room's listeners, from the accepted upgrade to the close."""

    def __init__(self, websocket: WebSocket, module: ServedModule, rooms: Rooms, state: ServerState) -> None:
        super().__init__(websocket, module, ListenerWire(), state)
        self._rooms = rooms

    async def _open(self) -> Channel:
        return self._rooms.seat(_room_id(self._websocket), self._module.engine.check_open, self._notices)


def _room_id(connection: HTTPConnection) -> str | None:
    return connection.headers.get(ROOM_HEADER) or connection.query_params.get(ROOM_HEADER)
