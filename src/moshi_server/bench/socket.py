"""A virtual client's socket, as light as one gets: picows calls back, so that a socket costs no task; no protocol here.

With `websockets` the generator takes twice the CPU time a message, which on one machine is the server's to miss.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from urllib.parse import urlsplit

import picows

from ..client.closing import START_HINT, error_of_close
from ..client.connecting import public_url
from ..errors import AuthError, MoshiServerError, NoFreeSlotError, ResourceNotFoundError, ServerUnreachableError

MAX_MESSAGE_BYTES: Final = 2**26
CONNECT_SECONDS: Final = 10.0
_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")


class Socket(picows.WSListener):  # type: ignore[misc, unused-ignore]
    """What a user of `connect` derives from: override `on_message`, and `on_end`."""

    transport: picows.WSTransport | None = None
    _said: tuple[int | None, str] = (None, "")
    _parts: bytes = b""

    def send(self, message: bytes) -> None:
        """Send a binary message; never waits."""
        assert self.transport is not None, "sent before it was connected"
        self.transport.send(picows.WSMsgType.BINARY, message)

    def send_text(self, message: str) -> None:
        """Send a text message; never waits."""
        assert self.transport is not None, "sent before it was connected"
        self.transport.send(picows.WSMsgType.TEXT, message.encode())

    def leave(self) -> None:
        """Close as a client that has finished; nothing if it was never connected."""
        if self.transport is not None and not self.transport.is_disconnected:
            self.transport.send_close(picows.WSCloseCode.OK)
            self.transport.disconnect()

    @property
    def close_code(self) -> int | None:
        """What the server closed with, if it did."""
        return self._said[0]

    def on_message(self, message: bytes) -> None:
        """One whole binary message has come."""

    def on_end(self, error: MoshiServerError) -> None:
        """The connection has ended, and this would be why if nobody wanted it."""

    # What picows calls.

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        """The upgrade is done."""
        self.transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """One frame has come; picows answers pings by itself."""
        kind = frame.msg_type
        if kind is picows.WSMsgType.BINARY and frame.fin:
            self.on_message(frame.get_payload_as_bytes())
        elif kind is picows.WSMsgType.BINARY:
            self._parts = frame.get_payload_as_bytes()
        elif kind is picows.WSMsgType.CONTINUATION:
            self._parts += frame.get_payload_as_bytes()
            if frame.fin:
                whole, self._parts = self._parts, b""
                self.on_message(whole)
        elif kind is picows.WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
            self._said = code, payload[2:].decode("utf-8", "replace")
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        """The connection is gone."""
        self.on_end(error_of_close(*self._said))


async def connect(url: str, api_key: str | None, socket: Socket) -> None:
    """Open ``url``, a whole WebSocket address, for this socket.

    Raises:
        ServerUnreachableError: nothing answers there, or no server of this kind.
        AuthError, NoFreeSlotError, ResourceNotFoundError: it refused.
    """
    where = public_url(url)
    options: dict[str, Any] = {"extra_headers": {"kyutai-api-key": api_key} if api_key else None}
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await picows.ws_connect(
                lambda: socket,
                url,
                websocket_handshake_timeout=None,
                max_frame_size=MAX_MESSAGE_BYTES,
                logger_name="moshi_server",
                **options,
            )
    except TimeoutError:
        raise ServerUnreachableError(f"{where} did not answer within {CONNECT_SECONDS:g} s") from None
    except picows.WSInvalidStatusError as refused:
        raise _refusal(refused, where) from None
    except (picows.WSError, EOFError) as error:
        raise ServerUnreachableError(f"{where} speaks no WebSocket: {error}") from None
    except OSError as error:
        raise ServerUnreachableError(f"no server answers at {where}: {error.strerror}", hint=START_HINT) from None


def _refusal(refused: picows.WSInvalidStatusError, where: str) -> MoshiServerError:
    status = int(refused.response.status) if refused.response is not None else 0
    try:
        fields = json.loads(refused.raw_body or b"")
    except ValueError:
        fields = {}
    said = fields.get("message") if isinstance(fields, dict) else None
    if status == 401:
        return AuthError("invalid_key", said or "the server refused the credentials", hint="pass a valid --api-key")
    if status == 503:
        return NoFreeSlotError(said or "the server is full")
    if status in (403, 404, 405, 426):
        return ResourceNotFoundError(f"nothing answers at {where}", hint="the path must be that of a module")
    return ServerUnreachableError(f"{where} answered with HTTP status {status}")


def seen(future: asyncio.Future[None]) -> None:
    """A done callback: whoever waits has the error, and if nobody does, nobody is to be told."""
    if not future.cancelled():
        future.exception()


def is_local(url: str) -> bool:
    """Whether the address is this machine's own."""
    return urlsplit(url).hostname in _THIS_MACHINE
