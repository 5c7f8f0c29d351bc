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


class Modules:
    """Threads that ask for a turn when told to, on a device whose steps end when told to."""

    def __init__(self, schedule: Schedule, names: str) -> None:
        self.seats = {name: schedule.seat(name) for name in names}
        self.order: list[str] = []
        self.running: set[str] = set()
        self.most = 0
        self._ends = {name: threading.Event() for name in names}
        self._threads: list[threading.Thread] = []

    def ask(self, name: str) -> None:
        self._ends[name].clear()
        before = self.seats[name].served
        thread = threading.Thread(target=self._step, args=(name,), daemon=True)
        thread.start()
        self._threads.append(thread)
        while self.seats[name].served == before and not self._waits(name):
            time.sleep(0.0005)

    def end(self, name: str) -> None:
        others = [each for each in self.seats if self._waits(each)]
        count = len(self.order)
        self._ends[name].set()
        while name in self.running or (others and len(self.order) == count):
            time.sleep(0.0005)

    def finish(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _waits(self, name: str) -> bool:
        return self.seats[name] in self.seats[name]._schedule._waiting

    def _step(self, name: str) -> None:
        with self.seats[name]:
            self.order.append(name)
            self.running.add(name)
            self.most = max(self.most, len(self.running))
            self._ends[name].wait(5)
            self.running.discard(name)


def test_the_one_served_longest_ago_is_next_whatever_the_order_of_asking() -> None:
    modules = Modules(Schedule("test", patience=60), "abc")
    for name in "abc":  # served in this order
        modules.ask(name)
        modules.end(name)
    modules.ask("b")
    modules.ask("c")  # asks first of those who wait, but was served last
    modules.ask("a")
    modules.end("b")
    assert modules.order[-1] == "a"
    modules.end("a")
    assert modules.order[-1] == "c"
    modules.finish()


def test_a_busy_module_gives_way_after_every_step() -> None:
    modules = Modules(Schedule("test", patience=60), "ab")
    modules.ask("a")
    for _ in range(3):
        modules.ask("b")
        modules.end("a")
        modules.ask("a")
        modules.end("b")
    modules.finish()
    assert "".join(modules.order) == "abababa"
    assert modules.most == 1


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
    assert schedule._running == 0
    assert schedule._waiting == []


def test_a_step_that_does_not_end_holds_nobody_up_for_long(caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule("cuda:0", patience=0.05)
    stuck, well = schedule.seat("stuck"), schedule.seat("well")
    stuck.__enter__()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            start = time.monotonic()
            with well:
                assert time.monotonic() - start < 1
    assert well.impatient == 3
    assert [record.message for record in caplog.records] == [
        "module well does not wait for its turn on cuda:0 any longer: another module's step takes more than 0.05 s"
    ]
    stuck.__exit__(None, None, None)
    start = time.monotonic()
    with well:
        assert time.monotonic() - start < 0.04
    assert schedule._running == 0


def test_a_failing_step_gives_its_turn_back() -> None:
    schedule = Schedule("test", patience=60)
    seat = schedule.seat("a")
    with pytest.raises(ValueError, match="boom"), seat:
        raise ValueError("boom")
    with schedule.seat("b"):
        pass


def test_seats_are_given_only_where_there_are_more_modules_than_lanes() -> None:
    modules = {"stt": "cuda:0", "tts": "cuda:0", "lm": "cuda:1", "one": "cpu", "two": "cpu"}
    given_out = seats(modules, {"cpu": 2})
    assert sorted(given_out) == ["stt", "tts"]
    assert given_out["stt"]._schedule is given_out["tts"]._schedule
    assert sorted(seats(modules, {"cpu": 1})) == ["one", "stt", "tts", "two"]


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
    assert all(seat.served for _, seat in engines)
