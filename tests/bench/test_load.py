"""Virtual users against a real server: what they see, what they say of themselves, and when it does not hold."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from moshi_server.bench.crowd import Plan
from moshi_server.bench.report import Generator, as_json, most_held
from moshi_server.bench.run import Glance, SttBench
from moshi_server.bench.stt import frames_of
from moshi_server.engine.worker import EngineLimits

from ..app.server import KEY, Server, serve, until
from ..fakes import FakeRunner, say

FRAMES = frames_of(say(3, 11, 12, 999, 3, 3))


def bench(server: Server, **options: float) -> SttBench:
    return SttBench(server.ws(query=""), KEY, FRAMES, **options)  # type: ignore[arg-type]


async def test_users_in_real_time_are_answered_frame_by_frame():
    glances: list[Glance] = []
    async with serve(FakeRunner(4)) as server:
        trial = await bench(server, limit=1.0).attempt(Plan(3, 1.5, join_seconds=0.3), glances.append)
        await until(lambda: server.engines[0].slots_used == 0)  # the users have left
    assert trial.held, trial.why
    assert trial.measure == "step"
    assert trial.delays is not None
    frames = 3 * 1.5 * 12.5
    assert frames * 0.8 <= trial.counts["frames"] <= frames + 3, "12.5 frames a second, no more"
    assert trial.delays.count == trial.counts["frames"]
    assert trial.counts["unanswered"] == 0
    assert trial.others["first word"] is not None
    assert max(glance.here for glance in glances) == 3
    assert glances[-1].done == 1.0
    # This process is the server too, and is found by its port.
    assert trial.server is not None
    assert trial.server.memory_mb > 10


async def test_a_full_server_is_said_to_be_full():
    async with serve(FakeRunner(2)) as server:
        trial = await bench(server).attempt(Plan(3, 1.0, join_seconds=0.1))
    assert not trial.held
    assert trial.errors == {"no free channels": 1}
    assert "no free channels" in trial.why


async def test_with_the_first_failure_a_run_may_end():
    async with serve(FakeRunner(1)) as server:
        start = time.monotonic()
        trial = await bench(server).attempt(Plan(2, 30.0, join_seconds=0.1, stop_on_error=True))
    assert not trial.held
    assert time.monotonic() - start < 15


async def test_a_slow_model_does_not_hold_and_its_delay_shows():
    runner = FakeRunner(1)
    runner.before_step = lambda: time.sleep(0.12)
    async with serve(runner) as server:
        trial = await bench(server, limit=0.16).attempt(Plan(1, 2.0, join_seconds=0.0))
    assert not trial.held
    assert trial.delays is not None
    assert trial.delays.max > 300, "8 frames a second of 12.5: half a second late after two"
    assert trial.moments[-1].p50 > trial.moments[0].p50


async def test_without_steps_the_words_tell():
    async with serve(FakeRunner(2, heads=False)) as server:
        trial = await bench(server, limit=1.0).attempt(Plan(2, 2.0, join_seconds=0.1))
    assert trial.held, trial.why
    assert trial.measure == "word"
    assert trial.delays is not None
    assert trial.delays.p50 > 80, "the model's own delay is part of it"


async def test_a_server_that_says_nothing_is_not_held():
    silence = frames_of(np.zeros(1920, np.float32))
    async with serve(FakeRunner(1, heads=False)) as server:
        trial = await SttBench(server.ws(query=""), KEY, silence).attempt(Plan(1, 0.5, join_seconds=0.0))
    assert not trial.held
    assert trial.measure == "nothing"


async def test_users_come_and_go_and_their_number_stays():
    async with serve(FakeRunner(3)) as server:
        trial = await bench(server, limit=1.0).attempt(Plan(2, 2.5, join_seconds=0.2, stay_seconds=0.5))
    assert trial.held, trial.why
    assert trial.others["ready"] is not None
    assert trial.others["ready"].count > 2, "more than two have been there"


async def test_a_stream_that_the_server_ends_is_an_error():
    async with serve(FakeRunner(1), engine_limits=EngineLimits(session_seconds=0.5)) as server:
        trial = await bench(server).attempt(Plan(1, 2.0, join_seconds=0.0))
    assert "limit of 0.5 s" in trial.why


@pytest.mark.parametrize(("key", "path", "why"), [("wrong", "", "key"), (KEY, "/nowhere", "nothing answers")])
async def test_refusals_are_told(key: str, path: str, why: str):
    async with serve() as server:
        url = server.ws(path or "/api/asr-streaming", "")
        trial = await SttBench(url, key, FRAMES).attempt(Plan(1, 0.5, join_seconds=0.0))
    assert why in trial.why


async def test_no_server_is_told_and_its_process_is_unknown():
    trial = await SttBench("ws://127.0.0.1:9/", None, FRAMES).attempt(Plan(1, 0.2, join_seconds=0.0))
    assert "no server answers" in trial.why
    assert trial.server is None


async def test_a_generator_that_is_late_says_so():
    async with serve(FakeRunner(2)) as server:
        hindered = asyncio.create_task(_hinder())
        trial = await bench(server, limit=1.0).attempt(Plan(2, 1.5, join_seconds=0.1))
        hindered.cancel()
    assert trial.generator.lateness is not None
    assert trial.generator.lateness.p99 > 20
    assert "late" in trial.generator.complaint
    assert Generator(None, 0.1).complaint == ""
    assert "bottleneck" in Generator(None, 0.97).complaint


async def _hinder() -> None:
    while True:
        time.sleep(0.15)  # noqa: ASYNC251
        await asyncio.sleep(0.05)


async def test_the_file_has_everything():
    async with serve(FakeRunner(1)) as server:
        plan = Plan(1, 0.5, join_seconds=0.0)
        trial = await bench(server, limit=1.0).attempt(plan)
    record = as_json("ws://host/", plan, [trial], 0.16)
    assert record["most_streams_held"] == most_held([trial]) == 1
    assert record["trials"][0]["delays"]["count"] == trial.delays.count
    assert record["limit_ms"] == 160
