"""Whom a tick looks at: streams with news, those that wait for a time, and everybody now and then."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moshi_server.engine.asr import AsrStream
from moshi_server.engine.batcher import GATHER_SECONDS, GATHER_STREAMS, SWEEP_SECONDS, Batcher
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.session import Session
from moshi_server.events import Audio, Marker

from ..fakes import FakeRunner, say, spell


class Watched(AsrStream):
    """Counts how often it is asked for a frame."""

    asked = 0

    def take(self, now: float) -> object:
        self.asked += 1
        return super().take(now)


def sessions_of(batcher: Batcher, count: int) -> list[Session]:
    def session(slot: int) -> Session:
        stream = Watched(3, spell)
        made = Session(slot, slot, stream, queue_samples=10**6, on_close=batcher.discard, wake=batcher.wake)
        batcher.add(made)
        return made

    return [session(slot) for slot in range(count)]


async def test_idle_streams_cost_nothing_between_two_sweeps() -> None:
    batcher = Batcher(FakeRunner(50), EngineHooks())
    sessions = sessions_of(batcher, 50)
    batcher.tick()
    before = sum(session.stream.asked for session in sessions)
    begun = time.monotonic()
    for _ in range(20):
        await sessions[7].send(Audio(say(11)))
        assert batcher.tick(), "the one with news is stepped"
    if time.monotonic() - begun < SWEEP_SECONDS / 2:
        asked = [session.stream.asked for session in sessions]
        assert sum(asked) - before == 20
    assert sessions[7].steps == 20


async def test_a_stream_with_several_frames_is_stepped_until_they_are_done() -> None:
    batcher = Batcher(FakeRunner(2), EngineHooks())
    one, other = sessions_of(batcher, 2)
    await one.send(Audio(np.zeros(1920 * 5, np.float32)))
    await other.send(Audio(np.zeros(1920 * 2, np.float32)))
    ticks = 0
    while batcher.tick():
        ticks += 1
    assert (ticks, one.steps, other.steps) == (5, 5, 2)


async def test_what_waits_for_a_time_is_asked_again_without_news() -> None:
    batcher = Batcher(FakeRunner(1), EngineHooks())
    (session,) = sessions_of(batcher, 1)
    await session.send(Audio(say(11)))
    await session.send(Marker(1))
    end = time.monotonic() + 5
    while session.steps < 4 and time.monotonic() < end:  # one of audio, three of silence for the marker
        batcher.tick()
    assert session.steps == 4


@pytest.mark.parametrize("busy", [3, GATHER_STREAMS * 2])
async def test_few_frames_of_many_streams_are_gathered_and_a_full_batch_does_not_wait(busy: int) -> None:
    batcher = Batcher(FakeRunner(GATHER_STREAMS * 2), EngineHooks())
    sessions = sessions_of(batcher, GATHER_STREAMS * 2)
    begins: list[float] = []

    def running() -> bool:
        begins.append(time.monotonic())
        for session in sessions[:busy]:
            session.offer(Audio(say(11)))
        return len(begins) <= 20

    batcher.run(running)
    waited = np.median(np.diff(begins))
    assert (waited >= GATHER_SECONDS) == (busy == 3)
