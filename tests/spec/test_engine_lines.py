"""What the engine says in the log and in the metrics when something goes wrong on its own thread."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog

from moshi_server import log
from moshi_server.app.factory import hooks_for
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.worker import Engine
from moshi_server.errors import EngineFailedError
from moshi_server.events import Audio
from moshi_server.metrics import Metrics

from ..fakes import FakeRunner, say, spell


def engine(runner: FakeRunner, metrics: Metrics) -> Engine:
    counted = hooks_for(metrics.module("BatchedAsr"))
    return Engine("talk", "BatchedAsr", runner, lambda: AsrStream(3, spell), hooks=counted)


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    output = log.setup_logging("info", tmp_path, "test", silent=True)

    def read() -> list[str]:
        output.close()
        return [line for line in output.path.read_text().splitlines() if not line.startswith("    ")]

    yield read
    output.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = True
    structlog.reset_defaults()


async def test_6_what_the_model_thread_logs_names_its_module_and_session(lines: Any) -> None:
    runner = FakeRunner(2)
    running = engine(runner, Metrics())
    running.start()
    await running.wait_ready()
    first, second = await running.open(), await running.open()

    def break_once() -> None:
        runner.before_step = lambda: None
        raise RuntimeError("a bad frame")

    runner.before_step = break_once
    await second.send(Audio(say(5)))
    with pytest.raises(EngineFailedError):
        async with asyncio.timeout(10):
            while await second.receive():
                pass
    first.close()
    await asyncio.to_thread(running.stop)
    said = lines()
    assert all(" module=talk" in line for line in said)
    (failed,) = (line for line in said if "a model step failed" in line)
    assert " ERROR " in failed
    assert [line for line in said if f"session={second.id}" in line and "the stream ends" in line]
    assert not [line for line in said if f"session={first.id}" in line]


async def test_7_a_warmup_that_fails_is_counted(lines: Any) -> None:
    runner, metrics = FakeRunner(1), Metrics()

    def fail() -> None:
        raise MemoryError

    runner.warmup = fail  # type: ignore[method-assign]
    broken = engine(runner, metrics)
    broken.start()
    with pytest.raises(EngineFailedError, match="the warmup failed: MemoryError") as caught:
        await broken.wait_ready()
    assert "lower the module's batch_size" in caught.value.hint
    text = metrics.render().decode()
    assert "\nwarmup_failure_total 1.0\n" in text
    assert "\nwarmup_success_total 0.0\n" in text
    assert "\nwarmup_duration_seconds_count 1.0\n" in text
    errors = [line for line in lines() if " ERROR " in line]
    assert len(errors) == 1
    assert "hint=" in errors[0]
