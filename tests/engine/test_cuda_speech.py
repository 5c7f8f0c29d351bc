"""Speech and dialogue in buckets: on a CPU without graphs, and (marked `gpu`) captured; against the plain runner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moshi_server.config import load_config
from moshi_server.engine import build_dialogue, build_tts
from moshi_server.engine.build import build_engines
from moshi_server.engine.cuda_speech import CudaDialogueRunner, CudaTtsRunner
from moshi_server.engine.dialogue import Begin, DialogueRunner, Spoken
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.events import Eos, SpeechSettings, Text
from moshi_server.speech.dialogue import DialogueSettings

from ..dialogue_checkpoint import dialogue_config, write_dialogue
from ..golden.dialogue_spec import CONDITION, VALUES
from ..speaking import HEAD, write_candle
from .test_tts import say, sound, words

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.timeout(600),
]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=gpu)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(path: Path, device: str) -> Engine:
    (built,) = build_engines(load_config(path), device=device, hooks_for=lambda name, kind: EngineHooks(), env={})
    torch.set_num_threads(1)
    return built.engine


async def speak(engine: Engine, requests: list[tuple[SpeechSettings, str]]) -> list[list[Any]]:
    """Streams that begin one after another, each while the last still speaks, and wait for words now and then."""
    engine.start()
    await engine.wait_ready()

    async def one(number: int, settings: SpeechSettings, text: str) -> list[Any]:
        await asyncio.sleep(0.02 * number)
        half = len(text) // 2
        return await say(engine, settings, Text(text[:half]), Text(text[half:]), Eos())

    try:
        return await asyncio.gather(*(one(number, *each) for number, each in enumerate(requests)))
    finally:
        await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize("device", DEVICES)
async def test_buckets_speak_as_streams_do_alone(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = write_candle(tmp_path).replace("batch_size = 2", 'batch_size = 5\ndtype_override = "f32"')
    path = tmp_path / "config.toml"
    path.write_text(HEAD + toml)
    voices = ["one.wav", "two.wav", "named"]
    requests = [
        (SpeechSettings(voice=voices[number % 3], temperature=0.0, cfg_alpha=1.0 + number % 2), text)
        for number, text in enumerate(["abc de fgh", "a", "jkl de fgh i jkl", "fgh", "de a"])
    ]
    want = await speak(build(path, "cpu"), requests)
    monkeypatch.setattr(build_tts, "TtsRunner", CudaTtsRunner)
    engine = build(path, device)
    assert isinstance(engine._runner, CudaTtsRunner)
    got = await speak(engine, requests)
    for ours, theirs in zip(got, want, strict=True):
        assert words(ours) == words(theirs)
        np.testing.assert_allclose(sound(ours), sound(theirs), atol=1e-3)
    steps = engine._runner._state["steps"]
    assert isinstance(steps, torch.Tensor)
    assert int(steps[-1]) == 0


def hold(runner: DialogueRunner) -> dict[int, list[Spoken]]:
    """Conversations that come, go and pause: what each slot was told since its last reset."""
    generator = np.random.Generator(np.random.PCG64(4))
    told: dict[int, list[Spoken]] = {slot: [] for slot in range(runner.slots)}
    for tick in range(24):
        if tick in (9, 16):
            gone = [2, 0] if tick == 9 else [1]
            runner.reset(gone)
            for slot in gone:
                told[slot] = []
        slots = generator.permutation(runner.slots)[: int(generator.integers(1, runner.slots + 1))].tolist()
        frames = generator.uniform(-0.5, 0.5, (len(slots), 1920)).astype(np.float32)
        settings = [
            DialogueSettings(0.0, 25, 0.0, 250, repetition_penalty=1.3, conditions={CONDITION: VALUES[slot % 2]})
            for slot in slots
        ]
        given = [
            frame if told[slot] else Begin(each) for slot, frame, each in zip(slots, frames, settings, strict=True)
        ]
        for slot, output in zip(slots, runner.step(slots, given), strict=True):
            told[slot].append(output)
    return told


@pytest.mark.parametrize("device", DEVICES)
def test_buckets_converse_as_streams_do_alone(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dialogue(tmp_path)
    dialogue_config(folder, tmp_path, 'dtype_override = "f32"')
    plain = build(tmp_path / "config.toml", "cpu")._runner
    monkeypatch.setattr(build_dialogue, "DialogueRunner", CudaDialogueRunner)
    runner = build(tmp_path / "config.toml", device)._runner
    assert isinstance(plain, DialogueRunner)
    assert isinstance(runner, CudaDialogueRunner)
    want = hold(plain)
    for got in (hold(runner), _warm(runner)):
        for slot, outputs in want.items():
            assert [output.token for output in got[slot]] == [output.token for output in outputs], f"slot {slot}"
            for ours, theirs in zip(got[slot], outputs, strict=True):
                assert (ours.pcm is None) == (theirs.pcm is None)
                if ours.pcm is not None and theirs.pcm is not None:
                    np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=1e-3)
    assert any(output.pcm is not None for outputs in want.values() for output in outputs)


def _warm(runner: DialogueRunner) -> dict[int, list[Spoken]]:
    runner.warmup()
    return hold(runner)
