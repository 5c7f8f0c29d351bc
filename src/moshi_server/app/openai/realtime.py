"""``/v1/realtime?intent=transcription``: the pump's socket, OpenAI's events."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from starlette.websockets import WebSocket

from ...auth import Caller
from ...errors import InvalidMessageError
from ...events import GoingAway
from ...protocol.openai_realtime import RealtimeTranscription
from ..module import ServedModule
from ..routes import ServerState
from ..websocket import Channel, Pump
from .errors import ApiError
from .models import HEARING, Models

_SUBPROTOCOL: Final = "realtime"
_KEY_SUBPROTOCOL: Final = "openai-insecure-api-key."


class _Farewell:
    """What the pump asks of a wire, where everything else is text."""

    def __init__(self, session: RealtimeTranscription) -> None:
        self._session = session

    def decode(self, data: bytes) -> Iterator[Any]:
        """Refuse binary messages."""
        raise InvalidMessageError("events are JSON in text frames, not binary")

    def encode(self, event: Any) -> bytes | None:
        """Nothing: events are text."""
        return None

    def farewell(self, message: str) -> str:
        """An error event."""
        return self._session.farewell(message)


class RealtimePump(Pump):
    """One realtime client."""

    def __init__(
        self, websocket: WebSocket, module: ServedModule, session: RealtimeTranscription, state: ServerState
    ) -> None:
        super().__init__(websocket, module, _Farewell(session), state)
        self._session = session
        if _SUBPROTOCOL in websocket.scope.get("subprotocols", ()):
            self._subprotocol = _SUBPROTOCOL

    async def _deliver(self, data: bytes | str, channel: Channel) -> bool:
        if isinstance(data, bytes):
            return await super()._deliver(data, channel)
        events, answers = self._session.take(data)
        for event in events:
            await self._hand_over(event, channel)
        for answer in answers:
            await self._put(answer)
        return True

    async def _tell(self, event: Any) -> None:
        if isinstance(event, GoingAway) and self._notices:
            await self._put(json.dumps({"type": "server.going_away", "seconds": event.seconds}))
        for message in self._session.give(event):
            await self._put(message)


def realtime(state: ServerState, models: Models) -> Callable[[WebSocket], Awaitable[None]]:
    """The route."""

    async def stream(websocket: WebSocket) -> None:
        try:
            module, caller = _admitted(websocket, models)
        except ApiError as error:
            await websocket.send_denial_response(error.response())
            return
        beta = "realtime=v1" in websocket.headers.get("openai-beta", "")
        session = RealtimeTranscription(module.name, lambda name: _means(models, name, module), beta=beta)
        await RealtimePump(websocket, module, session, state).run(caller)

    return stream


def _admitted(websocket: WebSocket, models: Models) -> tuple[ServedModule, Caller]:
    if websocket.query_params.get("intent") != "transcription":
        raise ApiError(400, "only sessions with ?intent=transcription are served", param="intent")
    module = models.find(websocket.query_params.get("model", ""), HEARING)
    offered = websocket.scope.get("subprotocols", ())
    key = next((name.removeprefix(_KEY_SUBPROTOCOL) for name in offered if name.startswith(_KEY_SUBPROTOCOL)), "")
    return module, models.check(websocket, module, key)


def _means(models: Models, name: str, module: ServedModule) -> bool:
    try:
        return models.find(name, HEARING) is module
    except ApiError:
        return False
