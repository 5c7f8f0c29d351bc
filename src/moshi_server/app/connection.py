"""One WebSocket at the transport: uvicorn's own protocol, which in addition knows when the client was last heard and
can say goodbye without waiting for a client that does not read.

Three things that ASGI has no words for are needed here. Pongs count as signs of life, but not the time in which we do
not read on purpose. A message that is too big must be answered with a reason while the rest of it still arrives. And a
close must reach the client, yet free everything soon even if the client never reacts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from starlette.websockets import WebSocket
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets import http11
from websockets.frames import Close, Frame, Opcode

from .closing import reason_text

LINGER_SECONDS = 2.0
"""How long after our close frame we wait for the client's, counted from the last bytes that it sent."""
MAX_LINGER_SECONDS = 30.0
"""How long at most, however much it still sends."""

http11.MAX_LINE_LENGTH = max(http11.MAX_LINE_LENGTH, 65_536)  # a session in many cookies, or a token in the URL

MESSAGE_TOO_BIG = 1009
"""The code with which `Connection` reports to the application that a message went over the limit."""


class Connection(WebSocketsSansIOProtocol):
    """The server side of one WebSocket. The application finds it with `connection_of`."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self._heard = self.loop.time()
        self.cut_short = False
        """What the client sent could not be read on: too big, or not WebSocket. The rest of it is thrown away."""
        self.said_goodbye = False
        """The client has sent a close frame."""
        self._linger_until = 0.0
        self.take: Callable[[bytes], bool] | None = None
        """Is offered each binary message as it arrives, and says whether it took it; else the application receives it.
        A task need not be woken then, which is half of what a message costs."""

    def silence(self) -> float:
        """Seconds since the client was last heard; 0 while it is not listened to."""
        return 0.0 if self.read_paused else self.loop.time() - self._heard

    def put(self, *messages: bytes | str) -> bool:
        """Send messages at once, if the client reads; the short way of `send`. Returns whether they were sent."""
        if not self.handshake_complete or self.close_sent or self.disconnected:
            return False
        if not self.writable.is_set() or self.transport.is_closing():
            return False
        self.transport.write(b"".join(map(frame_of, messages)))
        return True

    def hang_up(self, code: int, reason: str, last_words: bytes | str = b"") -> None:
        """Send ``last_words`` as a message, if any, then a close frame; give up on the client soon after.

        It never waits: what a client does not read is dropped with its connection.
        """
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.data_to_send()  # whatever the library meant to say is replaced by this
        text = isinstance(last_words, str)
        words = last_words.encode() if isinstance(last_words, str) else last_words
        frames = [Frame(Opcode.TEXT if text else Opcode.BINARY, words)] if words else []
        frames.append(Frame(Opcode.CLOSE, Close(code, reason_text(reason)).serialize()))
        self.transport.write(b"".join(frame.serialize(mask=False) for frame in frames))
        self.stop_keepalive()
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._linger_until = self.loop.time() + MAX_LINGER_SECONDS
        self._linger()

    def finish(self, patience: float) -> None:
        """Send a normal close frame after everything sent before; give up on a client that takes nothing for a while.

        It never waits. What the kernel has taken is delivered even if the connection is given up.

        Args:
            patience: seconds without a byte being taken.
        """
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.data_to_send()
        self.transport.write(Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=False))
        self.stop_keepalive()
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._flush(patience, self.transport.get_write_buffer_size() + 1)

    def _flush(self, patience: float, before: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting >= before:
            self.transport.abort()
        elif waiting:
            self.close_timer = self.loop.call_later(patience, self._flush, patience, waiting)
        else:
            self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client; after a goodbye that cut a message short they are thrown away."""
        self._heard = self.loop.time()
        if self.cut_short:
            if self.close_sent:
                self._linger()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            # The library has refused the request (431, 414) and put the answer where uvicorn does not look for it.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    async def receive(self) -> ASGIReceiveEvent:
        """The application's next message. The client's silence counts from when it is listened to again."""
        was_paused = self.read_paused
        message = await super().receive()
        if was_paused and not self.read_paused:
            self._heard = self.loop.time()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """The application's next message."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # uvicorn forgets that this, too, ends the handshake, and would log each refusal as an error of ours.
            self.handshake_complete = True

    def handle_bytes(self, event: Frame) -> None:
        """Offer a whole message to whoever takes it, unless others wait to be received."""
        idle = not self.read_paused and not self.close_sent and self.queue.empty()
        if idle and self.take is not None and event.fin and self.take(bytes(event.data)):
            return
        super().handle_bytes(event)

    def handle_close(self, event: Frame) -> None:
        """Answer the client's close; one that then reads nothing more does not keep its connection."""
        self.said_goodbye = True
        super().handle_close(event)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def handle_parser_exception(self) -> None:
        """Let the application choose the last words, instead of closing at once."""
        self.cut_short = True
        close = self.conn.close_sent
        code, reason = (close.code, close.reason) if close is not None else (1002, "protocol error")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _linger(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        left = max(0.0, self._linger_until - self.loop.time())
        self.close_timer = self.loop.call_later(min(LINGER_SECONDS, left), self.transport.abort)


def frame_of(data: bytes | str) -> bytes:
    """A message as one frame of a server, which masks nothing (RFC 6455, section 5.2)."""
    first, payload = (b"\x81", data.encode()) if isinstance(data, str) else (b"\x82", data)
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (first, size, payload)
    if size < 65_536:
        return b"%b\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%b\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


def connection_of(websocket: WebSocket) -> Connection:
    """The transport of this socket. The server must have been started with ``ws=Connection``."""
    return cast(Connection, websocket.scope["state"]["connection"])
