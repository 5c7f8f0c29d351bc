"""A step that does not come back is noticed; one that is slow, or a watcher that stood still, is not taken for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from moshi_server.engine.asr import AsrStream
from moshi_server.engine.hanging import HangWatch
from moshi_server.engine.worker import Engine
from moshi_server.errors import EngineFailedError
from moshi_server.events import Audio

from ..fakes import FakeRunner, say, spell


async def stuck() -> tuple[Engine, threading.Event]:
    runner, go = FakeRunner(1), threading.Event()
    runner.before_step = go.wait  # type: ignore[assignment]
    engine = Engine("asr", "BatchedAsr", runner, lambda: AsrStream(3, spell))
    engine.start()
    await engine.wait_ready()
    return engine, go


async def test_a_step_that_hangs_fails_its_module_and_ends_its_streams() -> None:
    engine, go = await stuck()
    watch = HangWatch(engine, 3.0)
    session = await engine.open()
    await session.send(Audio(say(61)))
    while engine.step_in_flight is None:
        await asyncio.sleep(0.01)
    for now in (10.0, 11.0, 12.0, 12.9):
        watch.look(now)
    assert engine.status == "ready"
    watch.look(13.1)
    assert engine.status == "failed"
    await session.receive()  # Ready
    with pytest.raises(EngineFailedError, match="has not come back for 3 s"):
        await session.receive()
    assert engine.slots_used == 0
    watch.look(20.0)  # once is enough
    go.set()
    engine.stop()
    assert engine.status == "failed"


async def test_a_machine_that_slept_has_not_hung_and_each_step_counts_for_itself() -> None:
    engine, go = await stuck()
    watch, never = HangWatch(engine, 3.0), HangWatch(engine, 0.0)
    session = await engine.open()
    await session.send(Audio(say(61)))
    while engine.step_in_flight is None:
        await asyncio.sleep(0.01)
    for now in (10.0, 11.0, 1000.0):
        watch.look(now)
        never.look(now)
    go.set()
    while engine.step_in_flight is not None:
        await asyncio.sleep(0.01)
    go.clear()
    await session.send(Audio(say(62)))
    while engine.step_in_flight is None:
        await asyncio.sleep(0.01)
    for now in (1001.0, 1002.0, 1003.0):
        watch.look(now)
    for now in range(1001, 1100):
        never.look(float(now))
    assert engine.status == "ready"
    go.set()
    session.close()
    engine.stop()
