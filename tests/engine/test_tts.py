"""Text to speech from a configuration on: streams that keep apart, wait, begin and end; voices; refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moshi_server.config import load_config
from moshi_server.engine.build import BuiltModule, build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.errors import (
    CheckpointError,
    ConfigError,
    InvalidMessageError,
    MoshiServerError,
    ResourceNotFoundError,
)
from moshi_server.events import Audio, Eos, NextSpeaker, Ready, SpeechSettings, SpokenWord, Text, Voice

from ..golden import tts_spec
from ..speaking import DELAY, HEAD, VOICES, py_module, write_candle, write_package


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    write_package(folder)
    return folder


def build(folder: Path, text: str) -> BuiltModule:
    path = folder / "config.toml"
    path.write_text(HEAD + text)
    return build_engines(load_config(path), device=None, hooks_for=lambda name, kind: EngineHooks())[0]


@pytest.fixture(scope="module")
def built(folder: Path) -> BuiltModule:
    return build(folder, py_module(folder))


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    engine = build(folder, py_module(folder)).engine
    engine.start()
    await engine.wait_ready()
    yield engine
    await asyncio.to_thread(engine.stop)


async def say(engine: Engine, *events: Any) -> list[Any]:
    """All that a stream gives until it ends by itself."""
    session = await engine.open()
    out: list[Any] = []
    try:
        for event in events:
            await session.send(event)
        while got := await session.receive():
            out += got
    finally:
        session.close()
    return out


def sound(events: list[Any]) -> np.ndarray:
    return np.concatenate([event.pcm for event in events if isinstance(event, Audio)])


def words(events: list[Any]) -> list[SpokenWord]:
    return [event for event in events if isinstance(event, SpokenWord)]


TEXT = "abc de fgh i jkl"


async def test_words_and_sound_come_and_the_stream_ends(engine: Engine) -> None:
    events = await say(engine, Text(TEXT), Eos())
    assert events[0] == Ready()
    spoken = words(events)
    assert [word.text for word in spoken] == TEXT.split()
    assert all(word.start < word.stop for word in spoken)
    assert [word.stop for word in spoken[:-1]] == [word.start for word in spoken[1:]]
    pcm = sound(events)
    steps = round(spoken[-1].stop * 12.5)
    assert len(pcm) == 1920 * (steps - DELAY - 2)
    assert np.abs(pcm).max() > 0.01


async def test_a_stream_is_the_same_alone_and_among_others_and_however_its_text_comes(engine: Engine) -> None:
    texts = [TEXT, "zyx wv uts", "a b c d e f", '<break time="0.5s"/> pq rst']
    alone = [
        await say(engine, SpeechSettings(voice=VOICES[number % 3]), Text(text), Eos())
        for number, text in enumerate(texts)
    ]

    async def slowly(number: int) -> list[Any]:
        session = await engine.open()
        out: list[Any] = []
        try:
            await session.send(SpeechSettings(voice=VOICES[number % 3]))
            for word in texts[number].replace('time="', "time=\0").split(" "):
                await session.send(Text(word.replace("=\0", '="') + " "))
                await asyncio.sleep(0.002 * number)
            await session.send(Eos())
            while got := await session.receive():
                out += got
        finally:
            session.close()
        return out

    together = await asyncio.gather(*(slowly(number) for number in range(len(texts))))
    for one, other in zip(alone, together, strict=True):
        assert words(one) == words(other)
        np.testing.assert_allclose(sound(one), sound(other), atol=1e-3)
    assert not np.allclose(sound(alone[0])[:1920], sound(alone[1])[:1920])


async def test_a_stream_without_words_waits_and_holds_up_nobody(engine: Engine) -> None:
    waiting = await engine.open()
    await waiting.send(Text("abc "))  # two more are needed to look ahead to
    other = await asyncio.wait_for(say(engine, Text(TEXT), Eos()), 60)
    assert len(words(other)) == 5
    assert waiting.steps == 0
    await waiting.send(Text("de fgh"))
    await waiting.send(Eos())
    events: list[Any] = []
    while got := await waiting.receive():
        events += got
    assert [word.text for word in words(events)] == ["abc", "de", "fgh"]


@pytest.mark.parametrize("texts", [[], [""], ["  \n"], ["()"], ["\x00\x01"], ["🙂"]])
async def test_a_text_without_words_ends_at_once_and_others_speak_on(engine: Engine, texts: list[str]) -> None:
    other = asyncio.create_task(say(engine, Text(TEXT), Eos()))
    events = await asyncio.wait_for(say(engine, *map(Text, texts), Eos()), 60)
    assert events[0] == Ready()
    assert len(words(await other)) == 5


async def test_voices_by_name_and_by_embedding_are_the_same_speakers(engine: Engine) -> None:
    named = [await say(engine, SpeechSettings(voice=voice), Text(TEXT), Eos()) for voice in VOICES]
    default = await say(engine, Text(TEXT), Eos())
    np.testing.assert_array_equal(sound(named[0]), sound(default))
    assert not np.array_equal(sound(named[0])[: 10 * 1920], sound(named[1])[: 10 * 1920])
    # A named voice is given twice, as upstream does; so the embedding of one alone is another.
    one = await say(engine, Voice(tts_spec.voice(0)), Text(TEXT), Eos())
    again = await say(engine, SpeechSettings(voice=VOICES[1]), Voice(tts_spec.voice(0)), Text(TEXT), Eos())
    np.testing.assert_array_equal(sound(one), sound(again))


async def test_refusals_name_what_is_wrong_and_free_the_slot(engine: Engine) -> None:
    with pytest.raises(ResourceNotFoundError, match=r"did you mean .alice\.wav"):
        await say(engine, SpeechSettings(voice="alicia.wav"), Text(TEXT), Eos())
    with pytest.raises(InvalidMessageError, match=r"shape \[1, 12, 4\].*\[1, 12, 125\]"):
        await say(engine, Voice(np.zeros((1, 12, 4), np.float32)), Text(TEXT), Eos())
    with pytest.raises(InvalidMessageError, match="said to be complete"):
        session = await engine.open()
        await session.send(Text(TEXT))
        await session.send(Eos())
        await session.send(Text("more"))
        while await session.receive():
            pass
    with pytest.raises(InvalidMessageError, match="not a message of text to speech"):
        await say(engine, Ready(), Text(TEXT))
    assert engine.slots_used == 0
    assert len(words(await say(engine, Text(TEXT), Eos()))) == 5


async def test_steps_are_limited_if_asked(engine: Engine) -> None:
    events = await say(engine, SpeechSettings(max_steps=DELAY + 2 + 5), Text(TEXT * 5), Eos())
    assert len(sound(events)) == 5 * 1920


async def test_a_seed_makes_speech_the_same_and_temperature_makes_it_differ(engine: Engine) -> None:
    settings = SpeechSettings(seed=3, temperature=1.0)
    first = await say(engine, settings, Text(TEXT), Eos())
    other = await say(engine, SpeechSettings(temperature=1.0), Text(TEXT), Eos())
    np.testing.assert_array_equal(sound(first), sound(await say(engine, settings, Text(TEXT), Eos())))
    assert not np.array_equal(sound(first)[: 9 * 1920], sound(other)[: 9 * 1920])
    likeliest = await say(engine, SpeechSettings(seed=4, temperature=1.0, top_k=1), Text(TEXT), Eos())
    np.testing.assert_array_equal(sound(likeliest), sound(await say(engine, Text(TEXT), Eos())))


async def test_a_model_without_a_condition_for_it_is_guided_by_two_rows(tmp_path: Path) -> None:
    write_package(tmp_path, "guided")
    spoken = []
    for coefficient in (1.0, 3.0):
        built = build(tmp_path, py_module(tmp_path, cfg_coef=coefficient, batch_size=2))
        built.engine.start()
        await built.engine.wait_ready()
        spoken.append(sound(await say(built.engine, Text(TEXT), Eos())))
        await asyncio.to_thread(built.engine.stop)
    assert not np.array_equal(spoken[0][: 9 * 1920], spoken[1][: 9 * 1920])


def test_voices_are_listed_by_name(built: BuiltModule) -> None:
    assert built.voices is not None
    assert built.voices.names == VOICES
    assert built.voices.default == "alice.wav"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"default_voice": "alise.wav"}, ConfigError, "did you mean 'alice.wav'"),
        ({"voice_folder": "nowhere"}, ConfigError, "no voices in nowhere"),
        ({"n_q": 9}, ConfigError, "n_q = 9, but the model has 8"),
        ({"cfg_coef": 7.0}, ConfigError, "'7.0' is not one that the model knows"),
        ({"paddding": 1}, ConfigError, "py.paddding: unknown key"),
        ({"temp": "hot"}, ConfigError, "py.temp"),
        ({"config_path": "missing.json"}, CheckpointError, "missing.json"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    folder: Path, options: dict[str, Any], error: type[MoshiServerError], match: str
) -> None:
    with pytest.raises(error, match=match):
        build(folder, py_module(folder, **options))


@pytest.fixture(scope="module")
def candle(tmp_path_factory: pytest.TempPathFactory) -> BuiltModule:
    folder = tmp_path_factory.mktemp("candle")
    return build(folder, write_candle(folder))


async def test_the_single_stream_module_speaks_with_named_and_recorded_voices(candle: BuiltModule) -> None:
    engine = candle.engine
    engine.start()
    await engine.wait_ready()
    settings = [
        SpeechSettings(voice="named", temperature=0.0),
        SpeechSettings(voice="one.wav", temperature=0.0),
        SpeechSettings(voice="one.wav+0.5", temperature=0.0),
        SpeechSettings(voices=("one.wav", "two.wav"), temperature=0.0),
        SpeechSettings(voice="one.wav", temperature=0.0, cfg_alpha=3.0),
    ]
    try:
        spoken = [await say(engine, each, Text("abc de"), NextSpeaker(), Text("fgh"), Eos()) for each in settings]
        assert all([word.text for word in words(events)] == ["abc", "de", "fgh"] for events in spoken)
        assert len({sound(events)[: 5 * 1920].tobytes() for events in spoken}) == len(settings)
        for voice, match in (("onne.wav", "there is no voice"), ("../lm.safetensors", "there is no voice")):
            with pytest.raises(ResourceNotFoundError, match=match):
                await say(engine, SpeechSettings(voice=voice), Text("abc"), Eos())
        with pytest.raises(ResourceNotFoundError):
            await say(engine, SpeechSettings(voice="one.wav+1.5"), Text("abc"), Eos())
        with pytest.raises(InvalidMessageError, match="no voice was chosen"):
            await say(engine, SpeechSettings(), Text("abc"), Eos())
    finally:
        await asyncio.to_thread(engine.stop)


async def test_a_guided_stream_and_one_that_is_not_share_steps(candle: BuiltModule, tmp_path: Path) -> None:
    engine = build(tmp_path, write_candle(tmp_path)).engine
    engine.start()
    await engine.wait_ready()
    free = SpeechSettings(voice="one.wav", temperature=0.0)
    guided = SpeechSettings(voice="two.wav", temperature=0.0, cfg_alpha=2.0)
    alone = [await say(engine, each, Text("abc de"), Eos()) for each in (free, guided)]
    together = await asyncio.gather(*(say(engine, each, Text("abc de"), Eos()) for each in (free, guided)))
    await asyncio.to_thread(engine.stop)
    for one, other in zip(alone, together, strict=True):
        assert words(one) == words(other)
        np.testing.assert_allclose(sound(one), sound(other), atol=1e-3)
