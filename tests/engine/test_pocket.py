"""Pocket TTS behind the batcher: sentences, pauses, many at once; with a model that hums, and with the real package."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moshi_server.audio import write_wav
from moshi_server.config import PocketTtsConfig
from moshi_server.engine.build_pocket import pocket_engine
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.pocket import PocketRunner, PocketStream
from moshi_server.engine.session import Session
from moshi_server.engine.worker import Engine
from moshi_server.errors import (
    CheckpointError,
    ConfigError,
    EngineFailedError,
    InvalidMessageError,
    NotServedError,
    ResourceNotFoundError,
)
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


def tiny(folder: Path) -> Path:
    """A configuration of the package's own model, too small to say anything, with weights at random."""
    tokenizer = resources.files("moshi_server") / "demo" / "tokenizer.model"
    transformer = "num_heads: 2, num_layers: 1"
    seanet = "dimension: 16, channels: 1, n_filters: 4, n_residual_layers: 1, ratios: [6, 5, 4], kernel_size: 7"
    seanet += ", residual_kernel_size: 3, last_kernel_size: 3, dilation_base: 2, pad_mode: constant, compress: 2"
    codec = "d_model: 16, layer_scale: 0.01, context: 50, dim_feedforward: 32, input_dimension: 16"
    path = folder / "tiny.yaml"
    path.write_text(f"""
capitalize_first_letter: false
flow_lm:
  dtype: float32
  insert_bos_before_voice: true
  flow: {{depth: 1, dim: 16}}
  transformer: {{d_model: 16, hidden_scale: 2, max_period: 10000, {transformer}}}
  lookup_table: {{dim: 16, n_bins: 212, tokenizer: sentencepiece, tokenizer_path: "{tokenizer}"}}
mimi:
  dtype: float32
  sample_rate: 24000
  inner_dim: 8
  outer_dim: 16
  channels: 1
  frame_rate: 12.5
  seanet: {{{seanet}}}
  transformer: {{{transformer}, {codec}, output_dimensions: [16]}}
  quantizer: {{dimension: 8, output_dimension: 16}}
""")
    return path


@pytest.fixture
def module(tmp_path: Path) -> PocketTtsConfig:
    rng = np.random.default_rng(5)
    for name in ("low.wav", "high.wav"):
        write_wav(tmp_path / name, rng.normal(0, 0.1, 24_000).astype(np.float32))
    voices = {"low": str(tmp_path / "low.wav"), "high": str(tmp_path / "high.wav"), "lost": str(tmp_path / "gone.wav")}
    return PocketTtsConfig.model_validate(
        {"type": "PocketTts", "path": "/api/tts", "config_file": str(tiny(tmp_path)), "voices": voices}
        | {"default_voice": "low", "batch_size": 3}
    )


async def test_the_real_package_with_weights_at_random(module: PocketTtsConfig) -> None:
    threads = torch.get_num_threads()
    engine, voices = pocket_engine("pocket", module, EngineHooks(), warmup=True)
    assert torch.get_num_threads() == threads
    assert voices.names == ("high", "lost", "low")
    twins = engine._runner._models
    assert len({id(twin) for twin in twins}) == 3
    assert len({next(twin.parameters()).data_ptr() for twin in twins}) == 1
    engine.start()
    await engine.wait_ready()
    try:
        alone, words = await say(engine, Text("one two three. four five"), Eos())
        assert [word.text for word in words] == ["one two three.", "four five"]
        assert len(alone) >= 1920 * 12
        assert np.isfinite(alone).all()
        assert alone.any()
        results = await asyncio.gather(
            *(
                say(engine, SpeechSettings(voice=voice), Text("one two three."), Eos())
                for voice in ("low", "high", "low")
            )
        )
        assert all(len(pcm) >= 1920 * 6 for pcm, _ in results)
        with pytest.raises(ResourceNotFoundError, match="voice 'lost' cannot be read"):
            await say(engine, SpeechSettings(voice="lost"), Text("one two"), Eos())
        assert engine.slots_used == 0
    finally:
        await asyncio.to_thread(engine.stop)


def test_what_cannot_be_loaded_is_said(module: PocketTtsConfig, tmp_path: Path) -> None:
    def build(**changes: Any) -> None:
        pocket_engine("pocket", module.model_copy(update=changes), EngineHooks(), warmup=True)

    with pytest.raises(ConfigError, match="default_voice = 'alba' is no voice"):
        build(default_voice="alba")
    (tmp_path / "bad.yaml").write_text("flow_lm: 3")
    with pytest.raises(CheckpointError, match="Pocket TTS cannot be loaded"):
        build(config_file=str(tmp_path / "bad.yaml"))
    with pytest.raises(CheckpointError, match="klingon"):
        build(config_file=None, language="klingon")


def test_without_the_package_it_says_what_to_install(module: PocketTtsConfig, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pocket_tts", None)
    with pytest.raises(NotServedError, match="needs the package pocket-tts") as caught:
        pocket_engine("pocket", module, EngineHooks(), warmup=True)
    assert "moshi-server[pocket]" in caught.value.hint
