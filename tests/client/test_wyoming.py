"""The bridge to Home Assistant, asked by Wyoming's own client over TCP; speech to text by the embedded model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncTcpServer
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from moshi_server.audio import pcm16, read_audio, resample
from moshi_server.auth import Authenticator
from moshi_server.cli.demo import API_KEY, running_worker, samples
from moshi_server.client.wyoming import Bridge
from moshi_server.errors import ServerUnreachableError

from ..app.server import serve, until
from ..app.test_speech import speaking
from ..fakes import FakeRunner, say

KEYS = Authenticator([API_KEY])
SPOKEN = next(path for path in samples() if path.suffix == ".wav")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def bridged(asr: str, tts: str | None = None, key: str | None = API_KEY) -> AsyncIterator[tuple[int, list[str]]]:
    said: list[str] = []
    server = AsyncTcpServer("127.0.0.1", port := free_port())
    await server.start(Bridge(asr, tts or asr, key, ("en", "fr"), said.append).handler)
    try:
        yield port, said
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[AsyncTcpClient]:
    async with AsyncTcpClient("127.0.0.1", port, connect_timeout=5, read_timeout=60) as client:
        yield client


async def ask(client: AsyncTcpClient, *events: Event, last: str) -> list[Event]:
    """Send these, and read what comes up to an event of this type, or to the end of the connection."""
    for event in events:
        await client.write_event(event)
    got: list[Event] = []
    while (event := await client.read_event()) is not None:
        got.append(event)
        if event.type == last:
            break
    return got


def utterance(pcm: np.ndarray, rate: int = 24_000, width: int = 2, channels: int = 1) -> Iterator[Event]:
    """What Home Assistant sends: the format, chunks that end within a sample, and the end."""
    data = pcm16(pcm)
    if width == 4:
        data = (np.frombuffer(data, "<i2").astype("<i4") << 16).tobytes()
    if channels == 2:
        data = np.repeat(np.frombuffer(data, f"<i{width}"), 2).tobytes()
    shape = {"rate": rate, "width": width, "channels": channels}
    yield Transcribe(language="en").event()
    yield AudioStart(**shape).event()
    for at in range(0, len(data), 3001):
        yield AudioChunk(audio=data[at : at + 3001], **shape).event()
    yield AudioStop().event()


async def test_the_command_hears_what_the_embedded_model_hears() -> None:
    with running_worker("demo") as url:
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "moshi_server.cli", "wyoming", "--url", url, "--api-key", API_KEY, "-p", str(port),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert f"port {port}; this server hears." in (await process.stdout.readline()).decode()
        async with client_of(port) as client:
            # As Home Assistant has it: 16 kHz.
            events = await ask(
                client, *utterance(resample(read_audio(SPOKEN), 24_000, 16_000), 16_000), last="transcript-stop"
            )
        process.send_signal(signal.SIGTERM)
        _, complaints = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, complaints.decode()) == (0, "")
    assert events[0].type == "transcript-start"
    text = Transcript.from_event(events[-2]).text
    assert text == SPOKEN.with_suffix(".txt").read_text().strip()
    assert "".join(TranscriptChunk.from_event(event).text for event in events[1:-2]) == text


@pytest.mark.parametrize(("width", "channels"), [(2, 1), (4, 1), (2, 2)])
async def test_formats_of_audio_and_two_utterances_on_one_connection(width: int, channels: int) -> None:
    async with serve(auth=KEYS) as server, bridged(server.http) as (port, said), client_of(port) as client:
        for word in (41, 52):
            pcm = say(3, word, 999, 3, 3)
            events = await ask(client, *utterance(pcm, 24_000, width, channels), last="transcript-stop")
            assert Transcript.from_event(events[-2]).text == f"<{word}>"
        await until(lambda: server.state.modules[0].engine.slots_used == 0)
    assert said == []


async def test_describe_tells_what_there_is() -> None:
    async with serve(auth=KEYS) as hears, speaking(auth=KEYS) as speaks:
        async with bridged(hears.http, speaks.http) as (port, _), client_of(port) as client:
            (event,) = await ask(client, Describe().event(), last="info")
            info = Info.from_event(event)
        assert [model.languages for model in info.asr[0].models] == [["en", "fr"]]
        assert info.asr[0].supports_transcript_streaming
        assert [voice.name for voice in info.tts[0].voices] == ["alba.wav", "expresso/happy.wav"]
        async with bridged(hears.http) as (port, _), client_of(port) as client:
            (event,) = await ask(client, Describe().event(), last="info")
            assert Info.from_event(event).tts == []
            (event,) = await ask(client, Ping(text="x").event(), last="pong")
            assert Pong.from_event(event).text == "x"


def sound(events: list[Event]) -> np.ndarray:
    return np.frombuffer(b"".join(event.payload or b"" for event in events if event.type == "audio-chunk"), "<i2")


async def test_a_text_is_spoken_whole_or_in_pieces() -> None:
    async with speaking(auth=KEYS) as server, bridged(server.http) as (port, said), client_of(port) as client:
        voice = SynthesizeVoice(name="expresso/happy.wav")
        whole = await ask(client, Synthesize("Good morning, you.", voice).event(), last="audio-stop")
        pieces = await ask(
            client,
            SynthesizeStart(voice).event(),
            SynthesizeChunk("Good mor").event(),
            SynthesizeChunk("ning, you.").event(),
            Synthesize("Good morning, you.", voice).event(),  # which is for servers that know no pieces
            SynthesizeStop().event(),
            last="synthesize-stopped",
        )
    assert AudioStart.from_event(whole[0]) == AudioStart(rate=24_000, width=2, channels=1)
    assert [event.type for event in pieces if event.type != "audio-chunk"] == [
        "audio-start", "audio-stop", "synthesize-stopped",
    ]  # fmt: skip
    assert len(sound(whole)) > 0
    assert np.abs(sound(whole)).max() > 1000
    assert len(sound(pieces)) == len(sound(whole))
    assert said == []


@pytest.mark.parametrize("problem", ["key", "full", "gone", "deaf", "voice", "format", "change"])
async def test_what_goes_wrong_is_told_and_ends_the_connection(problem: str) -> None:
    runner = FakeRunner(1, 3)
    async with serve(runner, auth=KEYS) as hears, speaking(auth=KEYS) as speaks, contextlib.AsyncExitStack() as stack:
        start, chunk = AudioStart(24_000, 2, 1).event(), AudioChunk(24_000, 2, 1, b"12").event()
        asr, key, events = hears.http, API_KEY, [start, chunk, AudioStop().event()]
        match problem:
            case "key":
                key, expected = "wrong", "AuthError"
            case "full":
                await (await stack.enter_async_context(hears.connect(query=f"?auth_id={API_KEY}"))).recv()
                expected = "NoFreeSlotError"
            case "gone":
                asr, expected = f"ws://127.0.0.1:{free_port()}", "ServerUnreachableError"
            case "deaf":
                asr, expected = speaks.http, "MoshiServerError"
            case "voice":
                events = [Synthesize("Hello.", SynthesizeVoice("alva.wav")).event()]
                expected = "ResourceNotFoundError"
            case "format":
                events, expected = [AudioStart(0, 3, 1).event()], "InvalidMessageError"
            case "change":
                events, expected = [start, AudioChunk(16_000, 2, 1, b"12").event()], "InvalidMessageError"
        async with bridged(asr, speaks.http, key) as (port, said), client_of(port) as client:
            got = await ask(client, *events, last="never")
        assert got[-1].type == "error"
        error = Error.from_event(got[-1])
        assert error.code == expected
        assert error.text
        assert len(said) == 1


@pytest.mark.parametrize(
    "line", [b"no json\n", b"{}\n", b"[]\n", json.dumps({"type": "audio-start", "data": {}}).encode() + b"\n"]
)
async def test_a_client_that_speaks_something_else_ends_its_own_connection(line: bytes) -> None:
    async with serve(auth=KEYS) as server, bridged(server.http) as (port, said):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        async with client_of(port) as client:
            (event,) = await ask(client, Ping().event(), last="pong")
            assert event.type == "pong"
    assert all("no Wyoming event" in complaint for complaint in said)


async def test_a_client_that_goes_frees_its_slot() -> None:
    async with serve(FakeRunner(1, 3), auth=KEYS) as server, bridged(server.http) as (port, _):
        async with client_of(port) as client:
            await client.write_event(AudioStart(24_000, 2, 1).event())
            assert (await client.read_event()).type == "transcript-start"
        await until(lambda: server.state.modules[0].engine.slots_used == 0)


async def test_the_command_says_at_once_that_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachableError, match="no moshi-server answers"):
        await Bridge(f"ws://127.0.0.1:{free_port()}", "ws://x", None, ("en",), print).services()
