"""The text-to-speech client against a real server: text whole and in pieces, Opus, voices, errors by their types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from moshi_server.client import TtsClient, speak
from moshi_server.errors import (
    AuthError,
    InvalidMessageError,
    NoFreeSlotError,
    ResourceNotFoundError,
    ServerUnreachableError,
)
from moshi_server.events import Audio, SpokenWord

from ..app.server import KEY, free_port
from ..app.test_speech import PATH, VOICES, speaking, tone
from ..speech_fakes import ToneRunner, ToneStream


async def pieces(*parts: str) -> AsyncIterator[str]:
    for part in parts:
        yield part
        await asyncio.sleep(0)


async def test_a_whole_text() -> None:
    async with speaking() as server, TtsClient.connect(server.ws("", ""), api_key=KEY) as client:
        speech = await client.speak("hello to you")
        assert np.abs(speech.pcm - tone("hello to you")).max() < 1e-6
        assert [word.text for word in speech.words] == ["hello", "to", "you"]
        assert speech.words[-1].stop == pytest.approx(speech.duration - 2 * 0.08)


async def test_pieces_of_a_text_and_events_as_they_come() -> None:
    seen: list[object] = []
    async with speaking() as server, TtsClient.connect(server.http, api_key=KEY) as client:
        speech = await client.speak(pieces("hel", "lo wo", "rld"), on_event=seen.append)
        assert [word.text for word in speech.words] == ["hello", "world"]
        assert [event.text for event in seen if isinstance(event, SpokenWord)] == ["hello", "world"]
        assert sum(isinstance(event, Audio) for event in seen) == 12


async def test_sent_by_hand() -> None:
    async with speaking() as server, TtsClient.connect(server.http, api_key=KEY) as client:
        await client.send_text("one two")
        await client.send_piece("thr")
        await client.send_piece("ee fo")
        await client.send_piece("ur")
        await client.finish()
        words = [event.text async for event in client if isinstance(event, SpokenWord)]
        assert words == ["one", "two", "three", "four"]
        assert await client.receive() == []


async def test_opus() -> None:
    async with speaking() as server, TtsClient.connect(server.http, api_key=KEY, opus=True) as client:
        speech = await client.speak("a few words more")
        assert len(speech.pcm) == len(tone("a few words more"))
        assert len(speech.words) == 4


async def test_voice_and_sampling() -> None:
    streams: list[ToneStream] = []
    async with (
        speaking(streams=streams) as server,
        TtsClient.connect(server.http, api_key=KEY, voice=VOICES.names[1], seed=3, temperature=0.25, top_k=5) as client,
    ):
        await client.send_voice(np.ones((2, 4)))
        await client.speak("x")
    settings = streams[0].settings
    assert (settings.voice, settings.seed, settings.temperature, settings.top_k) == (VOICES.names[1], 3, 0.25, 5)
    assert np.array_equal(streams[0].embedding, np.ones((2, 4)))


async def test_errors_have_their_types() -> None:
    async with speaking(ToneRunner(1)) as server:
        with pytest.raises(ResourceNotFoundError, match=r"there is no voice 'ALBA.wav'; did you mean 'alba.wav'"):
            await TtsClient.connect(server.http, api_key=KEY, voice="ALBA.wav")
        with pytest.raises(ResourceNotFoundError, match="nothing answers at"):
            await TtsClient.connect(server.ws("/api/elsewhere", ""), api_key=KEY)
        with pytest.raises(AuthError):
            await TtsClient.connect(server.http, api_key="no_such_key")
        with pytest.raises(InvalidMessageError, match="seed: "):
            await TtsClient.connect(server.http, api_key=KEY, seed=-1)
        async with TtsClient.connect(server.http, api_key=KEY) as client:
            with pytest.raises(NoFreeSlotError):
                await TtsClient.connect(server.http, api_key=KEY)
            with pytest.raises(InvalidMessageError, match="1 to 3 dimensions"):
                await client.send_voice(np.ones((1, 1, 1, 1)))
            await client.send_voice(np.ones((2, 3)))
            with pytest.raises(InvalidMessageError, match="the voice has the shape"):
                await client.speak("x")
    with pytest.raises(ServerUnreachableError):
        await TtsClient.connect(f"ws://127.0.0.1:{free_port()}{PATH}")


async def test_a_stream_that_ends_before_its_text() -> None:
    async def endless() -> AsyncIterator[str]:
        yield "word "
        await asyncio.Event().wait()

    async with speaking() as server, TtsClient.connect(server.http, api_key=KEY) as client:
        speaking_on = asyncio.create_task(client.speak(endless()))
        await asyncio.sleep(0.1)
        await server.engines[0].drain(0)
        with pytest.raises(Exception, match="shutting down"):
            await asyncio.wait_for(speaking_on, 5)


async def test_in_one_call() -> None:
    async with speaking() as server:
        speech = await asyncio.to_thread(speak, "good day", server.http, api_key=KEY)
        assert [word.text for word in speech.words] == ["good", "day"]
