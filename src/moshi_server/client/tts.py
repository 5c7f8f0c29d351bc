"""One text-to-speech stream over a WebSocket: `TtsClient`; and `speak`, which does it all in one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Final

from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection

from ..audio import OpusDecoder
from ..events import Audio, Eos, Error, OggOpus, Ready, SpokenWord, Text, Voice
from ..protocol import tts_client
from ..speech.text import PieceJoiner
from .connecting import DEFAULT_URL, Connecting, websocket_url
from .speaking import Speech, SpeechEvent, embedding_of, speak_over
from .stream import ClientStream

DEFAULT_PATH: Final = "/api/tts_streaming"


class TtsClient(ClientStream[SpeechEvent]):
    """A stream that holds a slot of the server. Open it with `connect`.

    Text may be sent as it comes to be, and is spoken once a few words are there; sound comes back meanwhile. Iterate
    over the client for `events.Audio` (24 kHz) and `events.SpokenWord`; the iteration ends when everything was said,
    and raises the server's reason if it has one.

        async with TtsClient.connect("ws://127.0.0.1:8080", api_key="public_token", voice="alba.wav") as client:
            await client.send_text("Good morning.")
            await client.finish()
            async for event in client:
                ...
    """

    def __init__(self, websocket: ClientConnection, url: str) -> None:
        super().__init__(websocket, url)
        self._opus = OpusDecoder()
        self._joiner = PieceJoiner()
        self._ready = False

    @classmethod
    def connect(
        cls,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        opus: bool = False,
        timeout: float = 10.0,
    ) -> Connecting[TtsClient]:
        """Connect and wait until the server holds a slot for this stream; to be awaited, or used in ``async with``.

        Args:
            url: ``ws://``, ``wss://``, ``http://`` or ``https://``; without a path, ``/api/tts_streaming`` is meant.
            api_key: sent in the ``kyutai-api-key`` header.
            voice: a name out of the server's ``GET /api/voices``; None is the default voice.
            seed: so that the same text is spoken the same way; None leaves it to the server.
            temperature: of the sampling.
            top_k: of the sampling.
            opus: have the sound sent as Opus, at a twentieth of the size. Here it comes out as samples all the same.
            timeout: seconds until the server must have answered.

        Raises:
            ServerUnreachableError: nothing answers there, or no server of this kind.
            AuthError: the server wants other credentials.
            NoFreeSlotError: all slots are taken.
            ResourceNotFoundError: the server has no such path, or no such voice.
        """
        query = [("format", "OggOpusMessagePack" if opus else "PcmMessagePack")]
        asked = {"voice": voice, "seed": seed, "temperature": temperature, "top_k": top_k}
        query += [(name, str(value)) for name, value in asked.items() if value is not None]
        return Connecting(cls, websocket_url(url, DEFAULT_PATH, query), api_key, timeout)

    async def send(self, event: Text | Voice | Eos) -> None:
        """Send one event; waits while the server takes no more.

        Raises:
            SessionError: the server has ended the stream, and this is why.
        """
        await self._put(tts_client.encode(event))

    async def send_text(self, text: str) -> None:
        """Send whole words: where the text ends, a word ends."""
        await self.send(Text(text))

    async def send_piece(self, piece: str) -> None:
        """Send text cut anywhere, as a language model writes it; the last word waits for the rest of it."""
        if words := self._joiner.push(piece):
            await self.send(Text(words))

    async def send_voice(self, embedding: ArrayLike) -> None:
        """Speak with this voice, an embedding of one to three dimensions; to be sent before any text."""
        await self.send(Voice(embedding_of(embedding)))

    async def finish(self) -> None:
        """Say that the text is complete. The server closes the stream after the last sound."""
        if words := self._joiner.finish():
            await self.send(Text(words))
        await self.send(Eos())

    async def speak(
        self,
        text: str | AsyncIterable[str],
        *,
        on_event: Callable[[SpeechEvent], None] | None = None,
    ) -> Speech:
        """Send a whole text, or pieces of it as they come, and collect its speech. The stream is over afterwards.

        Args:
            text: all of it, or pieces cut anywhere.
            on_event: is told each event as it comes.

        Raises:
            SessionError: the server ended the stream.
        """
        return await speak_over(self, text, on_event=on_event)

    async def wait_ready(self) -> None:
        """Return once the server has said that it holds a slot. `connect` has done so."""
        await self._until(lambda: self._ready)

    def _take(self, data: bytes | str) -> None:
        event = tts_client.decode(data) if isinstance(data, bytes) else None
        match event:
            case Ready():
                self._ready = True
            case Error(message):
                self._said = message
            case OggOpus(pages):
                if len(pcm := self._opus.feed(pages)):
                    self._unread.append(Audio(pcm))
            case Audio() | SpokenWord():
                self._unread.append(event)


def speak(
    text: str,
    url: str = DEFAULT_URL,
    *,
    api_key: str | None = None,
    voice: str | None = None,
    seed: int | None = None,
    timeout: float = 10.0,
) -> Speech:
    """Have a text spoken by a server and wait for all of it. It reads no environment and starts no server.

    Args:
        text: what is said.
        url: as for `TtsClient.connect`.
        api_key: as for `TtsClient.connect`.
        voice: as for `TtsClient.connect`.
        seed: as for `TtsClient.connect`.
        timeout: seconds until the server must have answered the connection.

    Raises:
        ServerUnreachableError, AuthError, SessionError: as for `TtsClient.connect` and `TtsClient.speak`.
    """

    async def run() -> Speech:
        async with TtsClient.connect(url, api_key=api_key, voice=voice, seed=seed, timeout=timeout) as client:
            return await client.speak(text)

    return asyncio.run(run())
