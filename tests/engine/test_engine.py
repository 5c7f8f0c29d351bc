"""Slots, batching, backpressure, failure and the end, with no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from moshi_server.engine.asr import AsrStream
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.session import Session
from moshi_server.engine.worker import Engine, EngineLimits
from moshi_server.errors import (
    EngineFailedError,
    GoingAwayError,
    InvalidMessageError,
    NoFreeSlotError,
    SessionLimitError,
)
from moshi_server.events import Audio, EndWord, Flush, Init, Marker, Ready, Step, Word

from ..fakes import FakeRunner, say, spell


@asynccontextmanager
async def serving(
    runner: FakeRunner, limits: EngineLimits | None = None, hooks: EngineHooks | None = None
) -> AsyncIterator[Engine]:
    engine = Engine("asr", "BatchedAsr", runner, lambda: AsrStream(runner.delay, spell), limits=limits, hooks=hooks)
    engine.start()
    await engine.wait_ready()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


async def until(session: Session, *kinds: type) -> list[object]:
    """Everything up to the first event of one of these kinds."""
    events: list[object] = []
    async with asyncio.timeout(10):
        while not any(isinstance(event, kinds) for event in events):
            got = await session.receive()
            assert got, "the session was closed"
            events += got
    return events


def words(events: list[object]) -> list[str]:
    return [event.text for event in events if isinstance(event, Word)]


async def test_ready_comes_first_then_a_step_for_each_frame() -> None:
    async with serving(FakeRunner(2)) as engine:
        session = await engine.open()
        assert await session.receive() == [Ready()]
        await session.send(Audio(say(999, 11, 3)[:-5]))
        await session.send(Flush())
        events = await until(session, Flush)
        steps = [event for event in events if isinstance(event, Step)]
        assert [step.step_idx for step in steps] == [1, 2, 3]
        assert words(events) == ["<11>"]
        assert events[-1] == Flush()


async def test_flush_answers_at_once_and_the_silence_it_feeds_takes_no_time() -> None:
    runner = FakeRunner(1)
    async with serving(runner) as engine:
        session = await engine.open()
        events = []
        for token in (11, 12):
            await session.send(Audio(say(999, token, 3, 999)))
            await session.send(Flush())
            events += await until(session, Flush)
        assert [event for event in events if isinstance(event, Word | EndWord)] == [
            Word("<11>", 0.0),
            EndWord(3 / 12.5),
            Word("<12>", 4 / 12.5),
            EndWord(7 / 12.5),
        ]


async def test_a_marker_is_answered_though_nothing_more_is_sent() -> None:
    async with serving(FakeRunner(1)) as engine:
        session = await engine.open()
        await session.send(Audio(say(999, 11)))
        await session.send(Marker(7))
        events = await until(session, Marker)
        assert words(events) == ["<11>"]
        assert events[-1] == Marker(7)


async def test_a_marker_counts_its_own_streams_steps_not_the_others() -> None:
    runner = FakeRunner(2)
    async with serving(runner) as engine:
        busy, quiet = await engine.open(), await engine.open()
        await quiet.send(Audio(say(999, 11, 3)))
        await quiet.send(Marker(1))
        await busy.send(Audio(say(*[3] * 50)))
        events = await until(quiet, Marker)
        assert words(events) == ["<11>"]


async def test_markers_in_live_audio_wait_for_the_audio_before_them() -> None:
    async with serving(FakeRunner(1, delay=3)) as engine:
        session = await engine.open()
        await session.send(Audio(say(999, 11, 3, 3)))
        await session.send(Marker(1))
        await session.send(Audio(say(999, 12, 3, 3, 3, 3, 3, 3)))
        await session.send(Marker(2))
        events = await until(session, Marker)
        if Marker(2) not in events:
            events += await until(session, Marker)
        order = [event for event in events if isinstance(event, Word | Marker)]
        assert order == [Word("<11>", 0.0), Marker(1), Word("<12>", 4 / 12.5), Marker(2)]


async def test_init_begins_again() -> None:
    async with serving(FakeRunner(1)) as engine:
        session = await engine.open()
        await session.send(Audio(say(999, 11, 3, 3, 3, 3)))
        await session.send(Init())
        await session.send(Audio(say(999, 12, 3)))
        await session.send(Flush())
        events = await until(session, Flush)
        assert sum(event == Ready() for event in events) == 2
        assert [event for event in events if isinstance(event, Word)][-1] == Word("<12>", 0.0)


async def test_streams_that_come_and_go_do_not_disturb_one_another() -> None:
    """A stream's words are the same alone and among others in every slot."""

    async def speak(engine: Engine, seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        session = await engine.open(wait_seconds=30)
        for _ in range(30):
            audio = say(999, *rng.integers(10, 900, rng.integers(1, 4)), 3)
            cut = int(rng.integers(0, len(audio)))
            for part in (audio[:cut], audio[cut:]):
                await session.send(Audio(part))
                if rng.random() < 0.3:
                    await asyncio.sleep(0.001)
        await session.send(Flush())
        events = await until(session, Flush)
        session.close()
        return [event for event in events if isinstance(event, Word | EndWord)]

    async with serving(FakeRunner(1)) as engine:
        alone = [await speak(engine, seed) for seed in range(12)]
    runner = FakeRunner(4)
    async with serving(runner) as engine:
        together = await asyncio.gather(*(speak(engine, seed) for seed in range(12)))
        assert engine.slots_used == 0
    assert together == alone
    assert max(len(batch) for batch in runner.batches) > 1


async def test_a_full_engine_refuses_then_serves_whoever_waits_in_order() -> None:
    async with serving(FakeRunner(2)) as engine:
        first, second = await engine.open(), await engine.open()
        with pytest.raises(NoFreeSlotError, match="no free channels"):
            await engine.open()
        order: list[int] = []

        async def wait(number: int) -> Session:
            session = await engine.open(wait_seconds=10)
            order.append(number)
            return session

        tasks = [asyncio.create_task(wait(number)) for number in range(2)]
        await asyncio.sleep(0.05)
        assert engine.slots_waiting == 2
        first.close()
        first.close()
        second.close()
        sessions = await asyncio.gather(*tasks)
        assert order == [0, 1]
        with pytest.raises(NoFreeSlotError):
            await engine.open(wait_seconds=0.01)
        for session in sessions:
            session.close()
        assert engine.slots_used == 0


async def test_waiting_that_is_cancelled_leaks_no_slot() -> None:
    async with serving(FakeRunner(1)) as engine:
        for _ in range(50):
            held = await engine.open()
            task = asyncio.create_task(engine.open(wait_seconds=10))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held.close()
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(result, Session):
                result.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert engine.slots_used == 0


async def test_a_fast_sender_waits_and_loses_nothing() -> None:
    runner = FakeRunner(1)
    gate = threading.Event()
    runner.before_step = lambda: gate.wait(10) and None
    async with serving(runner, EngineLimits(queue_seconds=1.0)) as engine:
        session = await engine.open()

        async def feed() -> None:
            for number in range(100):
                await session.send(Audio(say(999, 10 + number, 3)))
            await session.send(Flush())

        task = asyncio.create_task(feed())
        await asyncio.sleep(0.1)
        assert not task.done()
        assert session.buffered_samples < 24000 + 3 * 1920 + 1
        gate.set()
        events = await until(session, Flush)
        await task
        assert words(events) == [f"<{10 + number}>" for number in range(100)]


async def test_many_tiny_messages_pass() -> None:
    async with serving(FakeRunner(1)) as engine:
        session = await engine.open()
        for sample in np.split(say(999, 11, 3, 3, 3), 9600):
            await session.send(Audio(sample))
        await session.send(Flush())
        assert words(await until(session, Flush)) == ["<11>"]


async def test_a_client_that_does_not_read_is_not_stepped_and_others_go_on() -> None:
    runner = FakeRunner(2)
    async with serving(runner, EngineLimits(queue_seconds=1e6)) as engine:
        deaf, other = await engine.open(), await engine.open()
        await deaf.send(Audio(np.zeros(1920 * 5000, np.float32)))
        while deaf.steps < 2048:
            await asyncio.sleep(0.01)
        await other.send(Audio(say(999, 11, 3)))
        await other.send(Flush())
        assert words(await until(other, Flush)) == ["<11>"]
        assert deaf.steps < 2200
        steps = 0
        while steps < 5000:
            steps += sum(isinstance(event, Step) for event in await deaf.receive())
        assert deaf.steps == 5000


async def test_a_step_that_raises_once_costs_only_its_own_batch() -> None:
    runner = FakeRunner(2)
    async with serving(runner) as engine:
        unlucky, other = await engine.open(), await engine.open()

        def fail_once() -> None:
            runner.before_step = lambda: None
            raise RuntimeError("boom")

        runner.before_step = fail_once
        await unlucky.send(Audio(say(3)))
        with pytest.raises(EngineFailedError):
            while True:
                await unlucky.receive()
        await other.send(Audio(say(999, 11, 3)))
        await other.send(Flush())
        assert words(await until(other, Flush)) == ["<11>"]
        assert engine.status == "ready"
        assert engine.slots_used == 1


async def test_a_model_that_keeps_failing_stops_the_engine_and_hangs_nobody() -> None:
    runner = FakeRunner(2)
    failures: list[BaseException] = []
    async with serving(runner, hooks=EngineHooks(on_failure=failures.append)) as engine:
        idle = await engine.open()

        def fail() -> None:
            raise RuntimeError("boom")

        runner.before_step = fail
        for _ in range(3):
            session = await engine.open()
            await session.send(Audio(say(3)))
            with pytest.raises(EngineFailedError):
                while True:
                    await session.receive()
        with pytest.raises(EngineFailedError):
            while True:
                await idle.receive()
        assert engine.status == "failed"
        assert len(failures) == 1
        with pytest.raises(EngineFailedError):
            await engine.open()
        assert engine.slots_used == 0


async def test_a_warm_up_that_fails_says_so() -> None:
    runner = FakeRunner(1)

    def fail() -> None:
        raise RuntimeError("boom")

    runner.warmup = fail  # type: ignore[method-assign]
    outcomes: list[bool] = []
    engine = Engine(
        "asr",
        "BatchedAsr",
        runner,
        lambda: AsrStream(3, spell),
        hooks=EngineHooks(on_warmup=lambda _, ok: outcomes.append(ok)),
    )
    engine.start()
    with pytest.raises(EngineFailedError, match="boom"):
        await engine.wait_ready()
    assert outcomes == [False]


async def test_one_streams_error_is_its_own() -> None:
    async with serving(FakeRunner(2)) as engine:
        bad, good = await engine.open(), await engine.open()
        await bad.send("what is this")
        with pytest.raises(InvalidMessageError):
            while True:
                await bad.receive()
        with pytest.raises(InvalidMessageError):
            await bad.send(Flush())
        await good.send(Audio(say(999, 11, 3)))
        await good.send(Flush())
        assert words(await until(good, Flush)) == ["<11>"]
        assert engine.slots_used == 1


async def test_a_flood_of_markers_is_refused() -> None:
    async with serving(FakeRunner(1)) as engine:
        session = await engine.open()
        with pytest.raises(InvalidMessageError, match="markers"):
            for number in range(100_000):
                await session.send(Marker(number))


async def test_the_session_limit_ends_a_stream() -> None:
    async with serving(FakeRunner(1), EngineLimits(session_seconds=0.05)) as engine:
        session = await engine.open()
        with pytest.raises(SessionLimitError):
            while True:
                await session.receive()
        assert engine.slots_used == 0


async def test_drain_lets_running_streams_end_and_refuses_new_ones() -> None:
    async with serving(FakeRunner(2)) as engine:
        session, stubborn = await engine.open(), await engine.open()
        task = asyncio.create_task(engine.drain(0.5))
        await asyncio.sleep(0.01)
        with pytest.raises(GoingAwayError):
            await engine.open()
        await session.send(Audio(say(999, 11, 3)))
        await session.send(Flush())
        assert words(await until(session, Flush)) == ["<11>"]
        session.close()
        with pytest.raises(GoingAwayError):
            while True:
                await stubborn.receive()
        await task
        assert engine.slots_used == 0


async def test_hooks_count_what_happens() -> None:
    opened: list[int] = []
    closed: list[int] = []
    active: list[int] = []
    hooks = EngineHooks(
        on_open=lambda: opened.append(1), on_close=closed.append, on_step=lambda _, count: active.append(count)
    )
    async with serving(FakeRunner(2), hooks=hooks) as engine:
        session = await engine.open()
        await session.send(Audio(say(3, 3, 3)))
        steps = 0
        while steps < 3:
            steps += sum(isinstance(event, Step) for event in await session.receive())
        session.close()
    assert (opened, closed, active) == ([1], [3], [1, 1, 1])


async def test_a_recogniser_that_falls_silent_in_speech_is_reset_and_the_clock_goes_on() -> None:
    runner = FakeRunner(1)
    deaf = 40

    def say_nothing() -> None:
        if not runner.resets[1:] and len(runner.batches) > 2:
            runner.history[0] = [3] * len(runner.history[0])

    runner.before_step = say_nothing
    speaking = (0.1, 0.1, 0.1, 0.1)
    hear = runner._hear
    runner._hear = lambda slot, frame: hear(slot, frame)._replace(prs=speaking)  # type: ignore[method-assign]
    engine = Engine("asr", "BatchedAsr", runner, lambda: AsrStream(runner.delay, spell, watchdog_seconds=2.0))
    engine.start()
    await engine.wait_ready()
    session = await engine.open()
    await session.send(Audio(say(*[50] * deaf, 3, 3, 999, 60, 3, 999)))
    await session.send(Flush())
    events = await until(session, Flush)
    await asyncio.to_thread(engine.stop)
    assert len(runner.resets) == 2, "one reset at the start of the stream, one by the watchdog"
    assert Word("<60>", (deaf + 2) / 12.5) in events
