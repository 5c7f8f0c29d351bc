"""Pocket TTS behind the batcher: sentences, pauses, many at once; with a model that hums, and with the real package."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from moshi_server.engine.pocket import PocketRunner, PocketStream
from moshi_server.engine.session import Session
from moshi_server.engine.worker import Engine
from moshi_server.errors import EngineFailedError, InvalidMessageError, ResourceNotFoundError
from moshi_server.events import Audio, Eos, NextSpeaker, SpeechSettings, SpokenWord, Text, Voice
from moshi_server.speech.voices import Voices

VOICES = Voices(["alba", "jean"], default="alba")


class Hum:
    """Hums 1000 samples for each letter, as loud as the voice and the temperature say."""

    temp = 0.5

    def __init__(self) -> None:
        self.said: list[str] = []

    def generate_audio_stream(
        self, model_state: float, text_to_generate: str, *, copy_state: bool = True, stop: threading.Event | None = None
    ) -> Iterator[np.ndarray]:
        self.said.append(text_to_generate)
        if "bad" in text_to_generate:
            raise ValueError("it does not want to")
        for _ in text_to_generate:
            assert stop is not None
            if stop.is_set():
                return
            yield np.full(1000, model_state * self.temp, np.float32)


@asynccontextmanager
async def humming(slots: int = 2) -> AsyncIterator[tuple[Engine, list[Hum]]]:
    hums = [Hum() for _ in range(slots)]
    runner = PocketRunner(hums, lambda voice: {"alba": 0.5, "jean": 0.25}[voice or "alba"])
    engine = Engine("pocket", "PocketTts", runner, lambda: PocketStream(VOICES))
    engine.start()
    await engine.wait_ready()
    for hum in hums:
        hum.said.clear()
    try:
        yield engine, hums
    finally:
        await asyncio.to_thread(engine.stop)


async def spoken(session: Session) -> tuple[np.ndarray, list[SpokenWord]]:
    parts, words = [np.zeros(0, np.float32)], []
    async with asyncio.timeout(20):
        while events := await session.receive():
            for event in events:
                if isinstance(event, Audio):
                    assert event.pcm.shape == (1920,)
                    parts.append(event.pcm)
                elif isinstance(event, SpokenWord):
                    words.append(event)
    return np.concatenate(parts), words


async def say(engine: Engine, *events: Any) -> tuple[np.ndarray, list[SpokenWord]]:
    session = await engine.open()
    try:
        for event in events:
            await session.send(event)
        return await spoken(session)
    finally:
        session.close()


async def test_a_sentence_at_a_time() -> None:
    async with humming(1) as (engine, (hum,)):
        pcm, words = await say(engine, Text("Hello to"), Text("you. And"), Text('"bye!" Done'), Eos())
        assert hum.said == ["Hello to you.", 'And "bye!"', "Done"]
        assert [word.text for word in words] == hum.said
        letters = sum(map(len, hum.said))
        assert words[-1].stop == pytest.approx(letters * 1000 / 24_000)
        assert words[1].start == words[0].stop
        assert len(pcm) == -(-letters * 1000 // 1920) * 1920
        assert np.allclose(pcm[: letters * 1000], 0.25)
        assert not pcm[letters * 1000 :].any()


async def test_it_begins_before_the_text_is_complete() -> None:
    async with humming(1) as (engine, (hum,)):
        session = await engine.open()
        await session.receive()
        await session.send(Text("Hi. More"))
        events: list[Any] = []
        async with asyncio.timeout(10):
            while not any(isinstance(event, SpokenWord) for event in events):
                events += await session.receive()
        assert hum.said == ["Hi."]
        await session.send(Eos())
        _, words = await spoken(session)
        assert [word.text for word in words] == ["More"]


async def test_pauses_turns_and_long_sentences() -> None:
    async with humming(1) as (engine, (hum,)):
        pcm, _ = await say(engine, Text('ab <break time="0.4s"/> cd'), NextSpeaker(), Text("ef"), Eos())
        assert hum.said == ["ab", "cd .", "ef"]
        assert not pcm[2000 : 2000 + 5 * 1920].any()
        assert pcm[2000 + 5 * 1920 :].any()
        hum.said.clear()
        await say(engine, Text("a " * 100), Eos())
        assert [len(text.split()) for text in hum.said] == [40, 40, 20]


async def test_voice_and_temperature_and_limit() -> None:
    async with humming(1) as (engine, _):
        pcm, _ = await say(engine, SpeechSettings(voice="jean", temperature=1.0), Text("abcd"), Eos())
        assert np.allclose(pcm[:4000], 0.25)
        pcm, _ = await say(engine, Text("abcd"), Eos())  # the next one has the usual temperature again
        assert np.allclose(pcm[:4000], 0.25)
        pcm, _ = await say(engine, SpeechSettings(max_steps=3), Text("abcdefghijklmnop"), Eos())
        assert len(pcm) == 4 * 1920 or len(pcm) == 3 * 1920


async def test_nothing_to_say() -> None:
    async with humming(1) as (engine, (hum,)):
        for events in ([Eos()], [Text("  "), Eos()], [Text("\x00"), Eos(), Eos()]):
            pcm, words = await say(engine, *events)
            assert (len(pcm), words) == (0, [])
        pcm, _ = await say(engine, Text('<break time="0.16s"/>'), Eos())
        assert len(pcm) == 2 * 1920
        assert hum.said == []


async def test_many_at_once_and_one_that_fails() -> None:
    async with humming(3) as (engine, _):
        results = await asyncio.gather(
            say(engine, Text("First one. " * 5), Eos()),
            say(engine, Text("This is bad. Really"), Eos()),
            say(engine, Text("Second. " * 9), Eos()),
            return_exceptions=True,
        )
        assert isinstance(results[1], EngineFailedError)
        assert [len(words) for _, words in (results[0], results[2])] == [5, 9]
        assert engine.slots_used == 0


async def test_bad_input() -> None:
    async with humming(1) as (engine, _):
        with pytest.raises(ResourceNotFoundError, match="did you mean 'alba'"):
            await say(engine, SpeechSettings(voice="alva"))
        with pytest.raises(InvalidMessageError, match="voices by name only"):
            await say(engine, Voice(np.ones(3, np.float32)))
        with pytest.raises(InvalidMessageError, match="is not a message"):
            await say(engine, Audio(np.ones(3, np.float32)))


async def test_a_client_that_leaves_stops_its_model() -> None:
    async with humming(1) as (engine, (hum,)):
        session = await engine.open()
        await session.send(Text("a" * 200 + " b" * 30 + "."))
        await session.receive()
        session.close()
        await say(engine, Text("Next."), Eos())
        assert hum.said[-1] == "Next."
