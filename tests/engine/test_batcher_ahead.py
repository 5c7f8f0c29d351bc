"""A runner whose device works by itself: what the model thread does meanwhile, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from moshi_server.engine.asr import AsrOutput, AsrStream
from moshi_server.engine.batcher import Batcher
from moshi_server.engine.frames import Frame
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.session import Session
from moshi_server.errors import EngineFailedError
from moshi_server.events import Audio, Word

from ..fakes import FakeRunner, say, spell

Log = list[tuple[str, list[int]]]


class LaunchingRunner(FakeRunner):
    """Answers when it is asked to finish; until then no other step may begin."""

    def __init__(self, slots: int, log: Log) -> None:
        super().__init__(slots)
        self.log = log
        self.launched: Callable[[], None] = lambda: None
        self.fails = False
        self._flying = False

    def launch(self, slots: Sequence[int], inputs: Sequence[Frame]) -> Callable[[], list[AsrOutput]]:
        assert not self._flying
        self._flying = True
        self.log.append(("launch", list(slots)))
        self.launched()

        def finish() -> list[AsrOutput]:
            self._flying = False
            self.log.append(("finish", list(slots)))
            if self.fails:
                raise RuntimeError("the device is gone")
            return self.step(slots, inputs)

        return finish

    def reset(self, slots: Sequence[int]) -> None:
        assert not self._flying
        super().reset(slots)


class Logged(AsrStream):
    """Says when it is asked and told."""

    def __init__(self, slot: int, log: Log) -> None:
        super().__init__(3, spell)
        self.slot, self.log = slot, log

    def take(self, now: float) -> Any:
        frame = super().take(now)
        if frame is not None:
            self.log.append(("take", [self.slot]))
        return frame

    def accept(self, output: AsrOutput) -> list[Any]:
        self.log.append(("accept", [self.slot]))
        return super().accept(output)


def crowd(count: int) -> tuple[Batcher, LaunchingRunner, list[Session], Log]:
    log: Log = []
    runner = LaunchingRunner(count, log)
    batcher = Batcher(runner, EngineHooks())
    sessions = []
    for slot in range(count):
        session = Session(
            slot, slot, Logged(slot, log), queue_samples=10**6, on_close=batcher.discard, wake=batcher.wake
        )
        batcher.add(session)
        sessions.append(session)
    return batcher, runner, sessions, log


def frames(count: int) -> Audio:
    return Audio(np.zeros(1920 * count, np.float32))


def arriving(*sessions: Session | None) -> Callable[[], None]:
    """One frame of the next of these at each call, then none."""
    left = list(sessions)

    def arrive() -> None:
        session = left.pop(0) if left else None
        if session is not None:
            assert session.offer(frames(1))

    return arrive


async def test_a_lone_stream_is_told_at_once() -> None:
    batcher, _, (session,), log = crowd(1)
    await session.send(frames(2))
    assert batcher.tick()
    assert log == [("take", [0]), ("launch", [0]), ("finish", [0]), ("accept", [0])]


async def test_the_next_batch_is_made_up_and_the_last_one_told_while_the_device_works() -> None:
    batcher, runner, (one, other), log = crowd(2)
    await one.send(frames(2))
    runner.launched = arriving(other)
    while batcher.tick():
        pass
    assert log == [
        ("take", [0]),
        ("launch", [0]),
        ("take", [1]),  # it came while the device worked
        ("finish", [0]),
        ("launch", [1]),  # whoever waits comes first
        ("accept", [0]),
        ("take", [0]),  # it had to be told before it was asked again
        ("finish", [1]),
        ("launch", [0]),
        ("accept", [1]),
        ("finish", [0]),
        ("accept", [0]),
    ]
    assert (one.steps, other.steps) == (2, 1)


async def test_what_is_heard_is_the_same_whoever_comes_when() -> None:
    said = [11, 12, 13, 14, 15, 16, 17]
    told: list[list[str]] = []
    for launching in (False, True):
        batcher, runner, sessions, _ = crowd(5)
        if not launching:
            runner.launch = None  # type: ignore[method-assign, assignment]
        generator = np.random.default_rng(3)
        left = {session: list(said) for session in sessions}

        def arrive(left: dict[Session, list[int]] = left, generator: np.random.Generator = generator) -> None:
            for session, tokens in left.items():
                if tokens and generator.random() < 0.4:
                    session.offer(Audio(say(tokens.pop(0))))

        runner.launched = arrive
        while any(left.values()):
            arrive()
            batcher.tick()
        for session in sessions:
            session.offer(Audio(say(*[3] * 4)))
        while batcher.tick():
            pass
        await asyncio.sleep(0)
        assert [session.steps for session in sessions] == [len(said) + 4] * 5
        events = [await session.receive() for session in sessions]
        told.append([event.text for some in events for event in some if isinstance(event, Word)])
    assert told[0] == told[1]
    assert len(told[0]) >= 5


async def test_one_that_left_while_it_waited_is_not_stepped() -> None:
    batcher, runner, (one, other), log = crowd(2)
    await one.send(frames(1))
    runner.launched = arriving(other)
    assert batcher.tick()
    other.close()
    assert not batcher.tick()
    assert ("launch", [1]) not in log
    assert log[-1] == ("accept", [0])


async def test_a_device_that_fails_ends_its_batch_and_not_those_that_wait() -> None:
    batcher, runner, (one, other), log = crowd(2)
    await one.send(frames(1))
    runner.launched = arriving(other)
    runner.fails = True
    batcher.tick()
    runner.fails = False
    batcher.tick()
    await asyncio.sleep(0)
    with pytest.raises(EngineFailedError):
        while await one.receive():
            pass
    assert log[-1] == ("accept", [1])
    assert other.steps == 1
