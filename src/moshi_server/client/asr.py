"""One speech-to-text stream over one WebSocket: `AsrClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection

from ..events import AsrClientEvent, AsrServerEvent, Audio, Error, Flush, Init, Marker, OggOpus, Ready
from ..protocol import asr_client
from ..speech.transcript import Transcript
from .closing import error_of_close
from .connecting import DEFAULT_URL, Connecting, websocket_url
from .exchange import Recording, load, samples, transcribe_over
from .stream import ClientStream

DEFAULT_PATH: Final = "/api/asr-streaming"


class AsrClient(ClientStream[AsrServerEvent]):
    """A stream that holds a slot of the server. Open it with `connect`.

    Sending and receiving are independent: events that come while you send wait for you. Iterate over the client for
    the server's events; the iteration ends when the stream was closed, and raises the server's reason if it has one.

        async with AsrClient.connect("ws://127.0.0.1:8080", api_key="public_token") as client:
            await client.send_audio(pcm)
            await client.flush()
            async for event in client:
                ...
    """

    def __init__(self, websocket: ClientConnection, url: str) -> None:
        super().__init__(websocket, url)
        self._used = False

    @classmethod
    def connect(
        cls,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        turns: bool = False,
        notices: bool = False,
        timeout: float = 10.0,
    ) -> Connecting[AsrClient]:
        """Connect and wait until the server holds a slot for this stream; to be awaited, or used in ``async with``.

        Args:
            url: ``ws://``, ``wss://``, ``http://`` or ``https://``; without a path, ``/api/asr-streaming`` is meant.
            api_key: sent in the ``kyutai-api-key`` header.
            turns: ask for `Turn` events.
            notices: ask for a `GoingAway` event once the server is told to end.
            timeout: seconds until the server must have answered.

        Raises:
            ServerUnreachableError: nothing answers there, or no server of this kind.
            AuthError: the server wants other credentials.
            NoFreeSlotError: all slots are taken.
            ResourceNotFoundError: the server has no such path.
        """
        return Connecting(cls, full_url(url, turns=turns, notices=notices), api_key, timeout)

    async def send(self, event: AsrClientEvent) -> None:
        """Send one event; waits while the server takes no more.

        Raises:
            SessionError: the server has ended the stream, and this is why.
        """
        self._used = self._used or isinstance(event, Audio | OggOpus)
        await self._put(asr_client.encode(event))

    async def send_audio(self, pcm: ArrayLike) -> None:
        """Send samples at 24 kHz, mono, of shape (samples,): floats between -1 and 1, or 16-bit integers."""
        await self.send(Audio(samples(pcm)))

    async def send_opus(self, data: bytes) -> None:
        """Send bytes of an Ogg/Opus stream, cut anywhere. Its last page (end of stream) also asks for a flush."""
        await self.send(OggOpus(data))

    async def marker(self, id: int) -> None:
        """Ask for `events.Marker` with this id once all audio sent before it is transcribed."""
        await self.send(Marker(id))

    async def flush(self) -> None:
        """Ask for every pending word now; `events.Flush` comes after the last of them."""
        await self.send(Flush())

    async def transcribe(
        self,
        audio: Recording,
        *,
        realtime: bool = False,
        on_event: Callable[[AsrServerEvent], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Transcript:
        """Send a whole recording and collect its words. Nothing else may use the stream meanwhile.

        Args:
            audio: a path, the bytes of an audio file, or samples at 24 kHz.
            realtime: send no faster than one would speak, as a microphone does.
            on_event: is told each event as it comes.
            on_progress: is told how many seconds are done.

        Raises:
            AudioError: the recording cannot be read.
            SessionError: the server ended the stream.
        """
        pcm = await asyncio.to_thread(load, audio)
        if self._used:  # the words' times are to count from this recording's beginning
            await self.send(Init())
            while not any(isinstance(event, Ready) for event in await self._more()):
                pass
        return await transcribe_over(self, pcm, realtime=realtime, on_event=on_event, on_progress=on_progress)

    async def wait_ready(self) -> None:
        """Return once the server has said that it holds a slot. `connect` has done so."""
        while not isinstance((await self._more())[0], Ready):
            pass

    async def _more(self) -> list[AsrServerEvent]:
        return await self.receive() or await self._nothing()

    async def _nothing(self) -> list[AsrServerEvent]:
        raise error_of_close(None, "the server closed the stream before it was done")

    def _take(self, data: bytes | str) -> None:
        event = asr_client.decode(data) if isinstance(data, bytes) else None
        if isinstance(event, Error):
            self._said = event.message
        elif event is not None:
            self._unread.append(event)


def full_url(url: str, *, turns: bool = False, notices: bool = False) -> str:
    """The WebSocket address that a user's shorter one means.

    Raises:
        ServerUnreachableError: it is no such address.
    """
    asked = [("turns", "1")] * turns + [("notices", "1")] * notices
    return websocket_url(url, DEFAULT_PATH, asked)
