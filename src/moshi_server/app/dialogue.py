"""Dialogue over a WebSocket: one-byte kinds and Opus, both ways; it knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from starlette.websockets import WebSocket

from ..audio import OpusDecoder, OpusEncoder
from ..errors import AudioError, InvalidMessageError
from ..events import Audio, Control, GoingAway, Metadata, Ready, Settings, Text
from ..protocol import moshi
from ..protocol.moshi import Action, Frame, Kind
from .module import ServedModule
from .routes import ServerState
from .websocket import Channel, Pump

_ACTIONS: Final = {
    Action.START: Control("start"),
    Action.END_TURN: Control("end_turn"),
    Action.PAUSE: Control("pause"),
    Action.RESTART: Control("restart"),
}


def going_away(seconds: float) -> bytes:
    """What a client of one-byte kinds is told that asked for notices: metadata, since no kind is left for it."""
    return moshi.metadata({"going_away": seconds}).to_bytes()


class DialogueWire:
    """One client's frames. Opus is decoded and encoded here; the end of an Ogg stream ends the client's turn."""

    def __init__(self) -> None:
        self._heard = OpusDecoder()
        self._spoken = OpusEncoder()

    def decode(self, data: bytes) -> Iterator[Any]:
        """The events of one binary message. As upstream, what is not for the server to hear is discarded."""
        frame = moshi.decode(data)
        if frame is None:
            return
        if frame.kind is Kind.AUDIO:
            yield from self._decode_opus(frame.payload)
        elif frame.kind is Kind.CONTROL:
            yield _ACTIONS[frame.action]
        elif frame.kind is Kind.METADATA:
            yield Metadata(frame.metadata)

    def encode(self, event: Any) -> bytes | None:
        """One event as a binary message; sound that fills no page yet waits for more."""
        match event:
            case Ready():
                return moshi.handshake().to_bytes()
            case Audio(pcm=pcm):
                pages = self._spoken.encode(pcm)
                return Frame(Kind.AUDIO, pages).to_bytes() if pages else None
            case Text(text=words):
                return moshi.text(words).to_bytes()
            case Metadata(value=value):
                return moshi.metadata(value).to_bytes()
            case GoingAway(seconds=seconds):
                return going_away(seconds)
        return None

    def farewell(self, message: str) -> bytes:
        """An error frame."""
        return moshi.error(message).to_bytes()

    def _decode_opus(self, data: bytes) -> Iterator[Audio | Control]:
        if self._heard.ended:
            self._heard = OpusDecoder()  # another stream may follow
        try:
            for pcm in self._heard.decode(data):
                yield Audio(pcm)
        except AudioError as error:
            raise InvalidMessageError(f"the audio cannot be decoded: {error.message}", hint=error.hint) from error
        if self._heard.ended:
            yield Control("end_turn")


class DialoguePump(Pump):
    """One conversation, from the accepted upgrade to the close; the query says how it is to be held."""

    def __init__(self, websocket: WebSocket, module: ServedModule, state: ServerState) -> None:
        super().__init__(websocket, module, DialogueWire(), state)
        self._query: Mapping[str, str] = dict(websocket.query_params)

    async def _open(self) -> Channel:
        session = await super()._open()
        await session.send(Settings(self._query))
        if self._query.get("metadata") in ("1", "true"):
            await session.send(Metadata())
        return session
