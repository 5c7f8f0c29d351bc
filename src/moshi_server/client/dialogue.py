"""One dialogue over a WebSocket: `DialogueClient` sends what you say and yields what the model says, sound and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection

from ..audio import OpusDecoder, OpusEncoder
from ..events import Audio, Metadata, Text
from ..protocol import moshi
from ..protocol.moshi import Action, Frame, Kind
from .connecting import DEFAULT_URL, Connecting, websocket_url
from .exchange import samples
from .stream import ClientStream

DEFAULT_PATH: Final = "/api/chat"
DialogueEvent = Audio | Text | Metadata

_ACTIONS: Final = {
    "start": Action.START,
    "end_turn": Action.END_TURN,
    "pause": Action.PAUSE,
    "restart": Action.RESTART,
}


class DialogueClient(ClientStream[DialogueEvent]):
    """A conversation that holds a slot of the server. Open it with `connect`.

    Sending and receiving are independent, as listening and speaking are: send each 80 ms of your microphone as it
    comes, and play what comes back. Iterate over the client for `events.Audio` (24 kHz), `events.Text` and
    `events.Metadata`; the iteration ends when the stream was closed, and raises the server's reason if it has one.

        async with DialogueClient.connect("ws://127.0.0.1:8080", api_key="public_token") as client:
            await client.send_audio(pcm)
            async for event in client:
                ...
    """

    def __init__(self, websocket: ClientConnection, url: str) -> None:
        super().__init__(websocket, url)
        self._spoken = OpusEncoder()
        self._heard = OpusDecoder()
        self._ready = False

    @classmethod
    def connect(
        cls,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
    ) -> Connecting[DialogueClient]:
        """Connect and wait until the server holds a slot; to be awaited, or used in ``async with``.

        Args:
            url: as for `AsrClient.connect`; without a path, ``/api/chat`` is meant.
            api_key: sent in the ``kyutai-api-key`` header.
            settings: how to hold the conversation: ``text_temperature``, ``seed``, ``description``...
            timeout: seconds until the server must have answered.

        Raises:
            ServerUnreachableError, AuthError, NoFreeSlotError, ResourceNotFoundError: as for `AsrClient.connect`.
            InvalidMessageError: a setting that the server refuses; it may come later, too, with the first event.
        """
        query = [(name, str(value)) for name, value in (settings or {}).items()]
        return Connecting(cls, websocket_url(url, DEFAULT_PATH, query), api_key, timeout)

    async def send_audio(self, pcm: ArrayLike) -> None:
        """Send samples at 24 kHz, mono, of shape (samples,): floats between -1 and 1, or 16-bit integers.

        They leave in pages of 80 ms; a shorter rest waits for more.
        """
        if pages := self._spoken.encode(samples(pcm)):
            await self._put(Frame(Kind.AUDIO, pages).to_bytes())

    async def control(self, action: Literal["start", "end_turn", "pause", "restart"]) -> None:
        """Say that your turn is over (the model goes on alone), hold the dialogue, go on, or begin anew."""
        await self._put(Frame(Kind.CONTROL, bytes((_ACTIONS[action],))).to_bytes())

    async def ask_metadata(self) -> None:
        """Ask how the conversation is held; the answer comes as `events.Metadata`."""
        await self._put(moshi.metadata({}).to_bytes())

    async def wait_ready(self) -> None:
        """Return once the server has shaken hands. `connect` has done so."""
        await self._until(lambda: self._ready)

    def _take(self, data: bytes | str) -> None:
        frame = moshi.decode(data) if isinstance(data, bytes) else None
        if frame is None:
            return
        match frame.kind:
            case Kind.HANDSHAKE:
                self._ready = True
            case Kind.AUDIO:
                pcm = self._heard.feed(frame.payload)
                if len(pcm):
                    self._unread.append(Audio(pcm))
            case Kind.TEXT:
                self._unread.append(Text(frame.text))
            case Kind.COLOURED_TEXT:
                self._unread.append(Text(frame.coloured_text[1]))
            case Kind.METADATA:
                self._unread.append(Metadata(frame.metadata))
            case Kind.ERROR:
                self._said = frame.text
