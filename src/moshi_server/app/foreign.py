"""Our application under a web server that is not ours: what the pumps ask of a transport, out of plain ASGI.

`connection.Connection` knows more: when a client was last heard, and how to leave one that does not read. Here the web
server in front looks after that, and every message is a task's to carry.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .closing import reason_text


class ForeignConnection:
    """The part of `connection.Connection` that a pump uses; what it is to say last is said when the pump is done."""

    cut_short = False
    said_goodbye = True
    """A code that the server gives is the client's: it tells a lost connection by itself."""

    def __init__(self) -> None:
        self.take: Callable[[bytes], bool] | None = None
        self.last: list[Message] = []

    def silence(self) -> float:
        """Return 0: pings are the server's business, and so is a client that does not answer them."""
        return 0.0

    def put(self, *messages: bytes | str) -> bool:
        """Send nothing: there is no short way."""
        return False

    def hang_up(self, code: int, reason: str, last_words: bytes | str = b"") -> None:
        """Send ``last_words`` as a message, if any, then a close frame."""
        if last_words:
            kind = "text" if isinstance(last_words, str) else "bytes"
            self.last.append({"type": "websocket.send", kind: last_words})
        self.last.append({"type": "websocket.close", "code": code, "reason": reason_text(reason)})

    def finish(self, patience: float) -> None:
        """Send a normal close frame."""
        self.last.append({"type": "websocket.close", "code": 1000, "reason": ""})


class Foreign:
    """The application for any ASGI server. Give it what `factory.create_app` made."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        connection = ForeignConnection()
        state: MutableMapping[str, Any] = {**scope.get("state", {}), "connection": connection}
        gone = False

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "websocket.disconnect"
            return message

        await self._app({**scope, "state": state}, heard, send)
        if not gone:
            for message in connection.last:
                await send(message)
