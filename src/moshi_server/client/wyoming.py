"""The Wyoming protocol, which Home Assistant speaks, over this SDK's streams; it knows no model and no discovery."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np
import soxr
from numpy.typing import NDArray
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error as ErrorEvent
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStopped, SynthesizeVoice

from .. import __version__
from ..audio import SAMPLE_RATE, pcm16
from ..errors import InvalidMessageError, MoshiServerError, ServerUnreachableError, SessionError
from ..events import Audio, Flush, Word
from .asr import AsrClient
from .connecting import THIS_MACHINE, websocket_url
from .tts import TtsClient

KYUTAI: Final = Attribution(name="Kyutai", url="https://kyutai.org")
NAME: Final = "moshi-server"
HEARS: Final = ("Asr", "BatchedAsr", "PyBatchedAsr")
SPEAKS: Final = {"Py": "", "PocketTts": "", "Tts": "_streaming"}
"""What a module's streaming path has after its own."""
RATES: Final = range(4_000, 384_001)

Write = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker serves: addresses, empty where there is none, and the names of its voices."""

    asr: str = ""
    tts: str = ""
    voices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bridge:
    """The workers behind the bridge, and what to tell Home Assistant of them.

    Attributes:
        asr_url: the worker that hears.
        tts_url: the worker that speaks; may be the same.
        api_key: of both.
        languages: codes such as ``en``: the workers do not say which languages their models know.
        complain: is told, in one line, what went wrong.
    """

    asr_url: str
    tts_url: str
    api_key: str | None
    languages: Sequence[str]
    complain: Callable[[str], None]

    def handler(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Handler:
        """Serve one connection."""
        return Handler(self, reader, writer)

    async def services(self) -> Services:
        """Ask the workers what they serve.

        Raises:
            ServerUnreachableError: one of them does not answer.
        """
        hears = await services_at(self.asr_url)
        speaks = hears if self.tts_url == self.asr_url else await services_at(self.tts_url)
        return Services(hears.asr, speaks.tts, speaks.voices)

    def info(self, services: Services) -> Info:
        """The answer to ``describe``."""
        languages = list(self.languages)
        common: dict[str, Any] = {"attribution": KYUTAI, "installed": True, "version": __version__}
        does: dict[str, Any] = {"name": NAME, "description": "Kyutai's models"}
        info = Info()
        if services.asr:
            model = AsrModel(name=NAME, description="streaming speech to text", languages=languages, **common)
            info.asr = [AsrProgram(models=[model], supports_transcript_streaming=True, **does, **common)]
        if services.tts:
            voices = [
                TtsVoice(name=name, description=name, languages=languages, **common)
                for name in services.voices or ("default",)
            ]
            info.tts = [TtsProgram(voices=voices, supports_synthesize_streaming=True, **does, **common)]
        return info


async def services_at(url: str) -> Services:
    """What the worker at this address serves, by ``/api/status`` and ``/api/voices``; its first module of each kind.

    Raises:
        ServerUnreachableError: it does not answer, or is no such worker.
    """
    parts = urlsplit(websocket_url(url, "/"))
    base = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    try:
        async with httpx.AsyncClient(
            base_url=base.replace("ws", "http", 1), timeout=10, trust_env=parts.hostname not in THIS_MACHINE
        ) as http:
            modules = (await http.get("/api/status")).raise_for_status().json()["modules"]
            voices = (await http.get("/api/voices")).raise_for_status().json()
        asr = [base + module["path"] for module in modules if module["type"] in HEARS]
        tts = [module for module in modules if module["type"] in SPEAKS]
        named = {entry["module"]: entry for entry in voices}
        speaker = named.get(tts[0]["name"]) if tts else None
        return Services(
            asr[0] if asr else "",
            base + tts[0]["path"] + SPEAKS[tts[0]["type"]] if tts else "",
            _default_first(speaker["voices"], speaker["default"]) if speaker else (),
        )
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ServerUnreachableError(f"no moshi-server answers at {base}: {error}") from None


def _default_first(voices: Sequence[str], default: str | None) -> tuple[str, ...]:
    return tuple(sorted(voices, key=lambda name: name != default))


class Handler(AsyncEventHandler):
    """One connection of Home Assistant: an utterance to be heard, or a text to be spoken, or both in turn."""

    def __init__(self, bridge: Bridge, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._bridge = bridge
        self._hearing: _Hearing | None = None
        self._speaking: _Speaking | None = None

    async def run(self) -> None:
        """Read events until the client goes; what it sends wrong ends the connection, never the bridge."""
        try:
            await super().run()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._bridge.complain(f"a client sent something that is no Wyoming event: {error!r}")

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; false, after an ``error`` event, if that cannot be done."""
        try:
            await self._answer(event)
        except MoshiServerError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._bridge.complain(f"{error}{hint}")
            await self.write_event(ErrorEvent(text=str(error), code=type(error).__name__).event())
            return False
        return True

    async def disconnect(self) -> None:
        """Free the worker's slots."""
        for stream in (self._hearing, self._speaking):
            if stream is not None:
                await stream.close()
        self._hearing = self._speaking = None

    async def _answer(self, event: Event) -> None:
        match event.type:
            case "describe":
                await self.write_event(self._bridge.info(await self._bridge.services()).event())
            case "ping":
                await self.write_event(Pong(text=Ping.from_event(event).text).event())
            case "audio-start":
                await self._begin_hearing(AudioStart.from_event(event))
            case "audio-chunk" if self._hearing is not None:
                await self._hearing.send(AudioChunk.from_event(event))
            case "audio-stop" if self._hearing is not None:
                hearing, self._hearing = self._hearing, None
                await hearing.finish()
            case "synthesize" if self._speaking is None:  # else it repeats, for older servers, what came in pieces
                request = Synthesize.from_event(event)
                await self._begin_speaking(request.voice)
                await self._finish_speaking(request.text)
            case "synthesize-start":
                await self._begin_speaking(SynthesizeStart.from_event(event).voice)
            case "synthesize-chunk" if self._speaking is not None:
                await self._speaking.send(SynthesizeChunk.from_event(event).text)
            case "synthesize-stop" if self._speaking is not None:
                await self._finish_speaking("")
                await self.write_event(SynthesizeStopped().event())

    async def _begin_hearing(self, start: AudioStart) -> None:
        if self._hearing is not None:
            await self._hearing.close()
            self._hearing = None
        pcm = _Samples(start.rate, start.width, start.channels)
        url = (await self._bridge.services()).asr
        if not url:
            raise MoshiServerError(f"the worker at {self._bridge.asr_url} has no speech-to-text module")
        client = await AsrClient.connect(url, api_key=self._bridge.api_key)
        self._hearing = _Hearing(client, pcm, self.write_event)

    async def _begin_speaking(self, voice: SynthesizeVoice | None) -> None:
        if self._speaking is not None:
            await self._speaking.close()
            self._speaking = None
        services = await self._bridge.services()
        if not services.tts:
            raise MoshiServerError(f"the worker at {self._bridge.tts_url} has no text-to-speech module")
        name = voice.name if voice is not None and services.voices else None
        client = await TtsClient.connect(services.tts, api_key=self._bridge.api_key, voice=name)
        self._speaking = _Speaking(client, self.write_event)

    async def _finish_speaking(self, text: str) -> None:
        assert self._speaking is not None
        await self._speaking.finish(text)
        await self._speaking.close()
        self._speaking = None


class _Samples:
    """A client's PCM as samples at 24 kHz.

    Raises:
        InvalidMessageError: it is none that can be read.
    """

    def __init__(self, rate: int, width: int, channels: int) -> None:
        if rate not in RATES or width not in (2, 4) or channels not in range(1, 9):
            raise InvalidMessageError(
                f"audio of {rate} Hz, {width} bytes a sample and {channels} channels cannot be read",
                hint="send 16-bit or 32-bit samples",
            )
        self._format = (rate, width, channels)
        self._rest = b""
        self._resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def add(self, chunk: AudioChunk) -> NDArray[np.float32]:
        if (chunk.rate, chunk.width, chunk.channels) != self._format:
            raise InvalidMessageError("the format of the audio has changed within a stream")
        return self._resampled(self._floats(chunk.audio), last=False)

    def finish(self) -> NDArray[np.float32]:
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _floats(self, data: bytes) -> NDArray[np.float32]:
        _, width, channels = self._format
        data = self._rest + data
        whole = len(data) - len(data) % (width * channels)
        self._rest = data[whole:]
        pcm = np.frombuffer(data[:whole], f"<i{width}").reshape(-1, channels).mean(axis=1)
        scaled: NDArray[np.float32] = (pcm / 2 ** (8 * width - 1)).astype(np.float32)
        return scaled

    def _resampled(self, pcm: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return pcm
        resampled: NDArray[np.float32] = self._resampler.resample_chunk(pcm, last=last)
        return resampled


class _Hearing:
    """One utterance: its audio to the worker, and its words to the client as they come."""

    def __init__(self, client: AsrClient, pcm: _Samples, write: Write) -> None:
        self._client = client
        self._pcm = pcm
        self._write = write
        self._words: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def send(self, chunk: AudioChunk) -> None:
        await self._put(self._pcm.add(chunk))

    async def finish(self) -> None:
        """Wait for the last words and send the transcript; the stream is over."""
        try:
            await self._put(self._pcm.finish())
            await self._client.flush()
            await self._reading
        finally:
            await self.close()
        await self._write(Transcript(text=" ".join(self._words)).event())
        await self._write(TranscriptStop().event())

    async def close(self) -> None:
        await _end(self._reading)
        await self._client.close()

    async def _put(self, pcm: NDArray[np.float32]) -> None:
        try:
            if len(pcm):
                await self._client.send_audio(pcm)
        except SessionError:
            await self._reading  # which has heard why, if anyone has
            raise

    async def _read(self) -> None:
        await self._write(TranscriptStart().event())
        async for event in self._client:
            if isinstance(event, Flush):
                return
            if isinstance(event, Word) and (text := event.text.strip()):
                await self._write(TranscriptChunk(text=f" {text}" if self._words else text).event())
                self._words.append(text)
        raise SessionError("the worker closed the stream before it was done")


class _Speaking:
    """One text: its words to the worker, and its sound to the client as it comes."""

    def __init__(self, client: TtsClient, write: Write) -> None:
        self._client = client
        self._write = write
        self._reading = asyncio.create_task(self._read())

    async def send(self, piece: str) -> None:
        try:
            await self._client.send_piece(piece)
        except SessionError:
            await self._reading
            raise

    async def finish(self, text: str) -> None:
        """Send the rest of the text, and wait until all of it was spoken."""
        await self.send(text)
        await self._client.finish()
        await self._reading

    async def close(self) -> None:
        await _end(self._reading)
        await self._client.close()

    async def _read(self) -> None:
        shape = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
        await self._write(AudioStart(**shape).event())
        async for event in self._client:
            if isinstance(event, Audio):
                await self._write(AudioChunk(audio=pcm16(event.pcm), **shape).event())
        await self._write(AudioStop().event())


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task whose outcome nobody waits for any more."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, MoshiServerError, ConnectionError):
        await task
