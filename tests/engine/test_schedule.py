"""Turns on a device: least recently served first, one step each; nobody starves, and nobody waits for a hang."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.engine.asr import AsrStream
from moshi_server.engine.schedule import Schedule, Seat, seats
from moshi_server.engine.worker import Engine
from moshi_server.events import Audio, Flush

from ..fakes import FakeRunner, say, spell


class Workers:
    """Modules that always have work, each with steps of a length of its own, for a while."""

    def __init__(self, schedule: Schedule, steps: dict[str, float], pause: float = 0.0) -> None:
        self.seats = {name: schedule.seat(name) for name in steps}
        self.waits: dict[str, list[float]] = {name: [] for name in steps}
        self.spent: Counter[str] = Counter()
        self._pause = pause
        self._steps = steps

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(name, end)) for name in self._steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 10)

    def _work(self, name: str, end: float) -> None:
        while (asked := time.monotonic()) < end:
            with self.seats[name]:
                begun = time.monotonic()
                self.waits[name].append(begun - asked)
                time.sleep(self._steps[name])
                self.spent[name] += time.monotonic() - begun  # type: ignore[assignment]
            time.sleep(self._pause)


def test_time_is_shared_not_steps() -> None:
    workers = Workers(Schedule("test", patience=60, return_seconds=0.01), {"short": 0.004, "long": 0.04}, pause=0.001)
    workers.run(1.5)
    assert 0.35 < workers.spent["short"] / sum(workers.spent.values()) < 0.65
    assert workers.seats["short"].turns > 4 * workers.seats["long"].turns


def test_nobody_waits_for_more_than_the_others_are_owed() -> None:
    workers = Workers(Schedule("test", patience=60), {"a": 0.005, "b": 0.01, "c": 0.02})
    workers.run(1.0)
    longest = 0.02
    # One step of the longest that was under way, then at most as much for each other as makes up for it.
    assert sorted(workers.waits["a"])[int(len(workers.waits["a"]) * 0.9)] < 4 * longest
    assert all(seat.turns > 5 for seat in workers.seats.values())


def test_who_was_idle_has_no_claim_on_the_past() -> None:
    schedule = Schedule("test", patience=60)
    busy, idle = schedule.seat("busy"), schedule.seat("idle")
    for _ in range(5):
        with busy:
            time.sleep(0.01)
    with idle:
        pass
    assert idle.tag >= busy.tag - 0.02  # it begins where the device is, not at zero


def test_a_module_that_is_behind_may_come_back_before_one_that_is_ahead_goes() -> None:
    schedule = Schedule("test", patience=60, return_seconds=0.5)
    behind, ahead = schedule.seat("behind"), schedule.seat("ahead")
    with ahead:
        time.sleep(0.05)
    order: list[str] = []

    def go() -> None:
        with ahead:
            order.append("ahead")

    with behind:
        thread = threading.Thread(target=go)
        thread.start()
        while ahead not in schedule._waiting:
            time.sleep(0.001)
    time.sleep(0.02)  # it hands out what it made
    with behind:
        order.append("behind")
        time.sleep(0.1)  # now it has had more
    thread.join(5)
    assert order == ["behind", "ahead"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_never_more_than_the_lanes_and_everyone_is_served(lanes: int, loads: list[int]) -> None:
    schedule = Schedule("test", lanes, patience=60)
    lock, running, most, served = threading.Lock(), 0, 0, Counter[int]()

    def work(number: int, load: int) -> None:
        nonlocal running, most
        seat = schedule.seat(str(number))
        for _ in range(10):
            with seat:
                with lock:
                    running += 1
                    most = max(most, running)
                time.sleep(load * 1e-4)
                with lock:
                    running -= 1
            served[number] += 1

    threads = [threading.Thread(target=work, args=each) for each in enumerate(loads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most <= lanes
    assert all(served[number] == 10 for number in range(len(loads)))
    assert schedule._running == schedule._waiting == []


def test_a_step_that_does_not_end_holds_the_others_up_once(caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule("cuda:0", patience=0.2)
    stuck, well = schedule.seat("stuck"), schedule.seat("well")
    stuck.__enter__()
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        for _ in range(20):
            with well:
                pass
        assert 0.15 < time.monotonic() - start < 1
    assert [record.message for record in caplog.records] == [
        "a step of module stuck takes more than 0.2 s: other modules on cuda:0 do not wait for it"
    ]
    stuck.__exit__(None, None, None)
    assert schedule._running == []
    with stuck:  # it is counted again
        assert schedule._running == [stuck]


def test_a_failing_step_gives_its_turn_back() -> None:
    schedule = Schedule("test", patience=60)
    seat = schedule.seat("a")
    with pytest.raises(ValueError, match="boom"), seat:
        raise ValueError("boom")
    with schedule.seat("b"):
        pass


def test_seats_are_given_only_where_a_device_is_shared() -> None:
    given_out = seats({"stt": "cuda:0", "tts": "cuda:0", "lm": "cuda:1"})
    assert sorted(given_out) == ["stt", "tts"]
    assert given_out["stt"]._schedule is given_out["tts"]._schedule


async def test_engines_on_one_device_step_one_after_the_other() -> None:
    schedule = Schedule("test")
    active, overlaps = threading.Lock(), 0

    def step() -> None:
        nonlocal overlaps
        if not active.acquire(blocking=False):
            overlaps += 1
            return
        time.sleep(0.002)
        active.release()

    async def transcribe(engine: Engine) -> int:
        session = await engine.open()
        await session.send(Audio(np.tile(say(5, 3), 20)))
        await session.send(Flush())
        async with asyncio.timeout(10):
            while Flush() not in await session.receive():
                pass
        session.close()
        return session.steps

    engines: list[tuple[Engine, Seat]] = []
    for name in "ab":
        runner = FakeRunner(2, 3)
        runner.before_step = step
        engine = Engine(name, "BatchedAsr", runner, lambda: AsrStream(3, spell))
        seat = schedule.seat(name)
        engine.take_turns(seat)
        engine.start()
        engines.append((engine, seat))
    try:
        for engine, _ in engines:
            await engine.wait_ready()
        steps = await asyncio.gather(*(transcribe(engine) for engine, _ in engines for _ in range(2)))
    finally:
        for engine, _ in engines:
            engine.stop()
    assert min(steps) >= 40
    assert overlaps == 0
    assert all(seat.turns >= 40 for _, seat in engines)
