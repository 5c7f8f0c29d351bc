"""A user's script in the engine: its contract step by step, and every way to break it, each with its line."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.post import LENGTH, PostStream, ScriptPostRunner, ten_seconds
from moshi_server.engine.script import Script
from moshi_server.engine.script_asr import ScriptAsrRunner, ScriptAsrStream
from moshi_server.engine.worker import Engine
from moshi_server.errors import EngineFailedError, InvalidMessageError, ScriptError, SessionError
from moshi_server.events import Audio, Flush, Marker, Step, Voice, Word

from ..fakes import say, spell

RECORDER = """
    import numpy as np

    class Recorder:
        def __init__(self, batch_size, config):
            self.calls = []
            self.batch_size = batch_size
            self.config = config

        def step(self, pcm, flags_out, tokens_out, extra_heads, updates):
            assert pcm.shape == (self.batch_size * 1920,) and pcm.dtype == np.float32
            assert flags_out.shape == (self.batch_size,) and flags_out.dtype == np.uint8
            assert tokens_out.shape == (self.batch_size,) and tokens_out.dtype == np.uint32
            assert extra_heads.shape == (self.batch_size, 4) and extra_heads.dtype == np.float32
            assert type(updates) is list and len(updates) == self.batch_size
            self.calls.append(list(updates))
            for slot, update in enumerate(updates):
                if update > 0:
                    flags_out[slot] = 2
                elif update:
                    flags_out[slot] = 1
                    tokens_out[slot] = round(float(pcm[slot * 1920:(slot + 1) * 1920].max()) * 1000) or 3
                    extra_heads[slot] = [0.1, 0.2, 0.3, 0.4]

    def init(batch_size, config):
        return Recorder(batch_size, config)
"""


def script(tmp_path: Path, text: str, seconds: float = 5.0, method: str = "step") -> Script:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text).lstrip())
    return Script(path, "test", seconds=seconds, methods=(method,))


@asynccontextmanager
async def serving(loaded: Script, slots: int = 3, *, warmup: bool = False) -> AsyncIterator[Engine]:
    runner = ScriptAsrRunner(loaded, slots, 1000, {"a": 1})
    engine = start(loaded, runner, lambda: ScriptAsrStream(2, spell), warmup)
    try:
        await engine.wait_ready()
        yield engine
    finally:
        engine.stop()
        loaded.close()


def start(loaded: Script, runner: Any, make_stream: Callable[[], Any], warmup: bool = False) -> Engine:
    hooks = EngineHooks()
    engine = Engine("m", "Py", runner, make_stream, hooks=hooks, warmup=warmup, prepare=runner.prepare, isolated=True)
    loaded.on_hang = engine.abandon
    engine.start()
    return engine


async def talk(engine: Engine, *sent: Any, until: type) -> list[Any]:
    session = await engine.open()
    try:
        for event in sent:
            await session.send(event)
        got: list[Any] = []
        async with asyncio.timeout(10):
            while not any(isinstance(event, until) for event in got):
                events = await session.receive()
                if not events:
                    break
                got += events
        return got
    finally:
        session.close()


async def test_words_of_a_script_are_words_and_its_arrays_are_upstreams(tmp_path: Path) -> None:
    loaded = script(tmp_path, RECORDER)
    async with serving(loaded, warmup=True) as engine:
        got = await talk(engine, Audio(say(3, 11, 12, 3, 3)), Flush(), until=Flush)
        assert [event.text for event in got if isinstance(event, Word)] == ["<11><12>"]
        steps = [event for event in got if isinstance(event, Step)]
        assert steps[0].prs == pytest.approx((0.1, 0.2, 0.3, 0.4))
        service = loaded._object
        assert service.config == {"a": 1}
        assert service.calls[:2] == [[-2, -2, -2], [-1, -1, -1]]  # the warm-up
        assert service.calls[2] == [-2, 0, 0]  # a new stream's first frame
        assert service.calls[3] == [-1, 0, 0]


async def test_a_marker_is_told_between_frames_and_answered_whatever_the_script_does(tmp_path: Path) -> None:
    loaded = script(tmp_path, RECORDER)
    async with serving(loaded) as engine:
        got = await talk(engine, Audio(say(3, 5, 6, 7)), Marker(9), until=Marker)
        assert [event.text for event in got if isinstance(event, Word)] == ["<5><6><7>"]
        calls = loaded._object.calls
        marker = next(index for index, call in enumerate(calls) if call[0] > 0)
        assert calls[marker - 1] == [0, 0, 0]
        assert calls[marker + 1][0] in (-1, -2)


async def test_a_second_stream_in_the_slot_is_a_reset(tmp_path: Path) -> None:
    loaded = script(tmp_path, RECORDER)
    async with serving(loaded, slots=1) as engine:
        for _ in range(2):
            await talk(engine, Audio(say(4, 5)), Flush(), until=Flush)
        assert [call[0] for call in loaded._object.calls].count(-2) == 2


async def test_frames_that_a_script_passes_over_are_padding(tmp_path: Path) -> None:
    loaded = script(tmp_path, RECORDER.replace("flags_out[slot] = 1", "flags_out[slot] = 0"))
    async with serving(loaded) as engine:
        got = await talk(engine, Audio(say(4, 5)), Flush(), until=Flush)
        assert not [event for event in got if isinstance(event, Word | Step)]


BROKEN_AT_START = {
    "import nothing_of_this_name": r"mine\.py, line 1: .*ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "def init(:": r"mine\.py, line 1: .*SyntaxError",
    "x = 1": r"mine\.py: it has no function init",
    "init = 3": r"mine\.py: it has no function init",
    "def init(batch_size, config):\n    return 3": r"mine\.py: init returned a int without step",
    "def init(batch_size, config):\n    x = 1\n    raise ValueError('no weights')": (
        r"mine\.py, line 3: .*ValueError: no weights"
    ),
    "def init(config):\n    pass": r"mine\.py: .*TypeError: init\(\) takes 1 positional argument",
    "import sys\nsys.exit('bye')": r"mine\.py, line 2: .*SystemExit: bye",
}


@pytest.mark.parametrize(("text", "reason"), BROKEN_AT_START.items())
async def test_a_script_that_does_not_start_says_why_and_where(tmp_path: Path, text: str, reason: str) -> None:
    loaded = script(tmp_path, text)
    with pytest.raises(EngineFailedError, match=reason):
        async with serving(loaded):
            pass


async def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    loaded = Script(tmp_path / "none.py", "test", seconds=5, methods=("step",))
    with pytest.raises(EngineFailedError, match=r"none\.py: it is not there"):
        async with serving(loaded):
            pass


STEP = """
    import time
    class Service:
        def step(self, pcm, flags_out, tokens_out, extra_heads, updates):
            flags_out[:] = 1
            {body}
    def init(batch_size, config):
        return Service()
"""
BROKEN_STEPS = {
    "raise ValueError('boom')": r"script mine\.py, line 5: step failed: ValueError: boom",
    "tokens_out[:] = [1, 2]": r"script mine\.py, line 5: step failed: ValueError: could not broadcast",
    "tokens_out[:] = 5000": r"script mine\.py: step wrote 5000 into tokens_out\[0\]; the tokenizer has 0 to 999",
    "extra_heads[:] = float('nan')": r"script mine\.py: step wrote \[nan.*: no probabilities",
    "raise SystemExit": r"script mine\.py, line 5: step failed: SystemExit",
}


@pytest.mark.parametrize(("body", "reason"), BROKEN_STEPS.items())
async def test_a_step_that_fails_ends_its_streams_with_the_line(tmp_path: Path, body: str, reason: str) -> None:
    async with serving(script(tmp_path, STEP.format(body=body))) as engine:
        with pytest.raises(ScriptError, match=reason):
            await talk(engine, Audio(say(4)), Flush(), until=Flush)
        assert engine.slots_used == 0
        assert engine.status == "ready"
        for _ in range(2):
            with pytest.raises(SessionError):
                await talk(engine, Audio(say(4)), Flush(), until=Flush)
        with pytest.raises(EngineFailedError, match="3 times in a row"):
            await engine.open()


async def test_a_script_that_hangs_is_given_up_and_its_thread_left_behind(tmp_path: Path) -> None:
    body = "while not extra_heads.any(): time.sleep(0.01)"
    loaded = script(tmp_path, STEP.format(body=body), seconds=0.4)
    async with serving(loaded) as engine:
        waiting = await engine.open()
        with pytest.raises(ScriptError, match=r"mine\.py, line 5: step has not come back for 0\.4 s"):
            await talk(engine, Audio(say(4)), Flush(), until=Flush)
        with pytest.raises(ScriptError):  # streams that were not in that step, too
            while True:
                await waiting.receive()
        assert engine.status == "failed"
        assert engine.slots_used == 0
        with pytest.raises(EngineFailedError, match="has not come back"):
            await engine.open()
        engine._runner._heads[:] = 1  # let the thread go: what comes of the step harms nobody
        engine._thread.join(5)
        assert not engine._thread.is_alive()
        assert engine.status == "failed"


POST = """
    import numpy as np
    class Service:
        def run_one(self, pcm):
            return {value}
    def init(config):
        return Service()
"""


async def embed(loaded: Script, pcm: np.ndarray) -> np.ndarray:
    runner = ScriptPostRunner(loaded, {})
    engine = start(loaded, runner, PostStream)
    try:
        await engine.wait_ready()
        (voice,) = [event for event in await talk(engine, Audio(pcm), until=Voice) if isinstance(event, Voice)]
        return voice.embedding
    finally:
        engine.stop()
        loaded.close()


async def test_one_recording_gives_one_array(tmp_path: Path) -> None:
    loaded = script(tmp_path, POST.format(value="pcm.reshape(2, 3, -1) * 2"), method="run_one")
    pcm = ten_seconds(np.ones(5, np.float32))
    assert pcm.shape == (LENGTH,)
    assert pcm.sum() == 5
    got = await embed(loaded, pcm)
    assert got.shape == (2, 3, LENGTH // 6)
    assert got.sum() == 10


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[1.0]", "run_one returned list"),
        ("pcm.astype(np.float64)", "an array of float64; float32 is needed"),
        ("pcm[:0]", r"an array of shape \(0,\)"),
        ("pcm.reshape(1, 1, 1, -1)", "1 to 3 dimensions"),
        ("pcm * np.float32('nan')", "not finite"),
        ("pcm[1:, 3]", "line 4: run_one failed: IndexError"),
    ],
)
async def test_an_array_of_another_kind_is_said_to_be_so(tmp_path: Path, value: str, reason: str) -> None:
    loaded = script(tmp_path, POST.format(value=value), method="run_one")
    with pytest.raises(ScriptError, match=reason):
        await embed(loaded, np.zeros(LENGTH, np.float32))


def test_a_recording_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidMessageError, match="240000 samples"):
        PostStream().put(Audio(np.zeros(5, np.float32)), 0.0)
