"""A dialogue from a configuration: what the engine says is what the package says, for conversations side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moshi_server.engine.build import build_engines
from moshi_server.engine.build_dialogue import dialogue_settings
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.errors import CheckpointError, InvalidMessageError
from moshi_server.events import Audio, Metadata, Settings, Text

from ..dialogue_checkpoint import dialogue_config, write_dialogue
from ..golden.dialogue_spec import CONDITION, DIALOGUE, STRIDE, VALUES, sound

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dialogue.npz")
GREEDY = "text_temperature = 0.0\naudio_temperature = 0.0"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogue(tmp_path_factory.mktemp("dialogue"))


def build(folder: Path, tmp_path: Path, **options: Any) -> Engine:
    config = dialogue_config(folder, tmp_path, **options)
    (built,) = build_engines(config, device=None, hooks_for=lambda name, kind: EngineHooks())
    torch.set_num_threads(1)  # the build has chosen its own
    built.engine.start()
    return built.engine


async def converse(engine: Engine, pcm: np.ndarray, frames: int, **values: str) -> tuple[str, np.ndarray]:
    """What is said, text and sound, until so many frames have come."""
    session = await engine.open()
    text, heard = "", [np.zeros(0, np.float32)]
    try:
        await session.send(Settings(values))

        async def feed() -> None:
            for start in range(0, len(pcm), 3000):
                await session.send(Audio(pcm[start : start + 3000]))

        feeding = asyncio.create_task(feed())
        while sum(map(len, heard)) < frames * 1920:
            for event in await session.receive():
                if isinstance(event, Text):
                    text += event.text
                elif isinstance(event, Audio):
                    heard.append(event.pcm)
        await feeding
    finally:
        session.close()
    return text, np.concatenate(heard)


async def test_conversations_side_by_side_sound_as_the_package_does(folder: Path, tmp_path: Path) -> None:
    engine = build(folder, tmp_path, sampling=GREEDY)
    try:
        await engine.wait_ready()
        frames = 60
        pcm = [sound(stream)[: frames + DIALOGUE.acoustic_delay - 1].reshape(-1) for stream in range(2)]
        first = asyncio.create_task(converse(engine, pcm[0], frames))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(converse(engine, pcm[1], frames, **{CONDITION: VALUES[-2]}))
        for stream, (text, heard) in enumerate(await asyncio.gather(first, second)):
            want = GOLDEN[f"{stream}.sound"][: len(heard[::STRIDE])]
            np.testing.assert_allclose(heard[::STRIDE][: len(want)], want, atol=1e-3, rtol=0)
            assert text.strip()
    finally:
        engine.stop()


async def test_a_condition_that_the_model_does_not_know_is_refused(folder: Path, tmp_path: Path) -> None:
    engine = build(folder, tmp_path)
    try:
        await engine.wait_ready()
        session = await engine.open()
        await session.send(Settings({CONDITION: "splendid"}))
        with pytest.raises(InvalidMessageError, match="description=splendid"):
            while await session.receive():
                pass
        assert engine.slots_used == 0
        session = await engine.open()
        await session.send(Metadata())
        told = [event for _ in range(2) for event in await session.receive()][-1]
        assert isinstance(told, Metadata)
        assert told.value["conditions"] == {CONDITION: "very_good"}
        assert told.value["lm_model_file"].endswith("lm.safetensors")
    finally:
        engine.stop()


def test_what_the_configuration_says_of_drawing_reaches_the_conversation(folder: Path, tmp_path: Path) -> None:
    config = dialogue_config(folder, tmp_path, sampling="pad_mult = 1.5\ntext_topk = 9\nmax_steps = 4")
    settings = dialogue_settings(config.modules["lm"])  # type: ignore[arg-type]
    assert (settings.pad_mult, settings.text_topk, settings.max_steps, settings.audio_topk) == (1.5, 9, 4, 250)
    assert settings.conditions == {CONDITION: "very_good"}
    told = dialogue_config(folder, tmp_path, f"conditions = {{ {CONDITION} = 'bad' }}")
    assert dialogue_settings(told.modules["lm"]).conditions == {CONDITION: "bad"}  # type: ignore[arg-type]


def test_a_codec_with_too_few_codebooks_is_named(folder: Path, tmp_path: Path) -> None:
    config = dialogue_config(folder, tmp_path)
    text = (tmp_path / "config.toml").read_text()
    text = text.replace("audio_codebooks = 4", "audio_codebooks = 5").replace(
        "audio_codebooks = 8", "audio_codebooks = 10"
    )
    text = text.replace("num_slices = 4", "num_slices = 5")
    (tmp_path / "config.toml").write_text(text)
    from moshi_server.config import load_config

    config = load_config(tmp_path / "config.toml")
    with pytest.raises(CheckpointError, match=r"modules\.lm: "):
        build_engines(config, device=None, hooks_for=lambda name, kind: EngineHooks())
