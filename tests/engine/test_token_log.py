"""Saved tokens: upstream's names, shapes and types, what the model was fed, and nothing written on the model thread."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from moshi_server.config import load_config
from moshi_server.engine import token_log
from moshi_server.engine.build import build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.token_log import PeriodicLog, SessionLog
from moshi_server.engine.worker import Engine
from moshi_server.events import Audio, Flush
from moshi_server.hub import resolve

START = (48, 512)


def codes(*firsts: int) -> np.ndarray:
    """Rows of three codes, (n, 3)."""
    return np.array([[first, first + 1, first + 2] for first in firsts], np.int64)


def saved(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*{ending}"))


def test_a_stream_is_saved_as_the_model_was_fed(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "new", "me.1", 2, START)
    log.begin(1, "kyut*****")
    log.begin(0, "")
    log.step([1, 0], [5, 9], codes(10, 70))
    log.step([1], [6], codes(20))
    log.step([1], [7], codes(30))
    log.end(1)
    log.step([1], [8], codes(40))  # a step that was under way: nobody's any more
    log.close()
    names = saved(tmp_path / "new", ".safetensors")
    assert len(names) == 2  # the other stream was still there at the end
    assert all(re.fullmatch(r"me\.1-asr-\d+-\d+\.safetensors", name.name) for name in names)
    first = load_file(names[0])
    assert first["text"].tolist() == [[48, 5, 6]]
    assert first["text"].dtype == np.uint32
    assert first["audio"].tolist() == [[[512, 10, 20], [512, 11, 21], [512, 12, 22]]]
    assert first["audio"].dtype == np.int64
    assert json.loads(names[0].with_name(f"{names[0].name[:-12]}.json").read_text()) == {"auth_id": "kyut*****"}
    assert load_file(names[1])["text"].tolist() == [[48]]


def test_a_stream_without_a_step_is_not_saved(tmp_path: Path) -> None:
    log = SessionLog(tmp_path, "me", 1, START)
    log.begin(0, "")
    log.end(0)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_batches_are_saved_in_parts_with_a_column_for_each_step(tmp_path: Path) -> None:
    log = PeriodicLog(tmp_path, "me", 2, START, seconds=3600)
    log.begin(0, "")
    log.step([0], [5], codes(10))
    log.begin(1, "")
    log.step([0, 1], [6, 7], codes(20, 60))
    log.begin(0, "")  # another stream
    log.step([0, 1], [8, 9], codes(30, 70))
    log._save(None)
    log.step([1], [3], codes(80))
    log.close()
    names = saved(tmp_path, ".safetensors")
    assert [re.sub(r"\d{5,}", "N", name.name) for name in names] == [f"me-asr-N-N.{n}.safetensors" for n in (0, 1)]
    first, second = load_file(names[0]), load_file(names[1])
    assert first["text"].tolist() == [[48, 5, 48], [48, 48, 7]]
    assert first["text"].dtype == first["audio"].dtype == np.uint32
    assert first["audio"][:, 0].tolist() == [[512, 10, 512], [0, 512, 60]]
    assert second["text"].tolist() == [[8], [9]]
    assert second["audio"][:, 0].tolist() == [[0], [70]]


def test_a_disk_that_cannot_be_written_is_logged_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    log = SessionLog(tmp_path / "file", "me", 1, START)
    for _ in range(2):
        log.begin(0, "")
        log.step([0], [5], codes(10))
        log.end(0)
    log.close()
    assert [record.message[:27] for record in caplog.records] == ["tokens could not be written"] * 2


DEMO = resolve("demo://model.safetensors").parents[3] / "configs" / "demo.toml"
MODEL = tomllib.loads(DEMO.read_text())["modules"]["asr"]["model"]


def build(tmp_path: Path, change: Callable[[str], str]) -> Engine:
    path = tmp_path / "config.toml"
    path.write_text(change(DEMO.read_text()).replace('log_dir = "logs"', f'log_dir = "{tmp_path / "logs"}"'))
    (built,) = build_engines(load_config(path), device="cpu", hooks_for=lambda *_: EngineHooks(), env={})
    return built.engine


async def transcribe(engine: Engine, frames: int) -> None:
    engine.start()
    try:
        await engine.wait_ready()
        session = await engine.open(caller="somebody")
        noise = np.random.default_rng(3).normal(0, 0.1, frames * 1920).astype(np.float32)
        await session.send(Audio(noise))
        await session.send(Flush())
        async with asyncio.timeout(20):
            while Flush() not in await session.receive():
                pass
        session.close()
    finally:
        await asyncio.to_thread(engine.stop)


async def test_the_embedded_model_as_asr_saves_its_streams_off_the_model_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    write = token_log._write_tokens

    def watched(*arguments: object) -> None:
        threads.append(threading.current_thread().name)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(token_log, "_write_tokens", watched)
    await transcribe(build(tmp_path, lambda text: text.replace("BatchedAsr", "Asr")), frames=9)
    (name,) = saved(tmp_path / "logs", ".safetensors")
    assert name.name.startswith("demo-asr-")
    with safe_open(name, framework="np") as file:
        text, audio = file.get_tensor("text"), file.get_tensor("audio")
    assert text.shape[0] == 1
    assert text.shape[1] >= 9
    assert audio.shape == (1, MODEL["audio_codebooks"], text.shape[1])
    assert text[0, 0] == MODEL["text_out_vocab_size"]
    assert (audio[0, :, 0] == MODEL["audio_vocab_size"] - 1).all(), "the rows after the codebooks' own"
    assert len(set(audio[0, 0].tolist())) > 3
    assert threads == ["token-log"]
    (words,) = saved(tmp_path / "logs", ".json")
    assert json.loads(words.read_text()) == {"auth_id": "somebody"}


async def test_saving_may_be_turned_off_and_batches_are_saved_if_asked(tmp_path: Path) -> None:
    off = build(tmp_path, lambda text: text.replace('"BatchedAsr"', '"Asr"\nsave_tokens = false'))
    await transcribe(off, frames=3)
    assert not (tmp_path / "logs").exists()
    batches = build(tmp_path, lambda text: text.replace("batch_size = 16", "batch_size = 3\nlog_frequency_s = 3600"))
    await transcribe(batches, frames=3)
    (name,) = saved(tmp_path / "logs", ".0.safetensors")
    assert load_file(name)["audio"].shape[:2] == (3, MODEL["audio_codebooks"])
