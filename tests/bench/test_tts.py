"""Virtual listeners of text to speech, on a server whose voice is a tone."""

from __future__ import annotations

import time

from moshi_server.bench.crowd import Plan
from moshi_server.bench.run import TtsBench

from ..app.server import KEY, Server
from ..app.test_speech import PATH, speaking
from ..speech_fakes import ToneRunner

TEXTS = ["one two three", "four"]


def bench(server: Server, **options: float) -> TtsBench:
    return TtsBench(server.ws(PATH, "?format=PcmMessagePack"), KEY, TEXTS, **options)  # type: ignore[arg-type]


async def test_speech_after_speech_is_heard() -> None:
    async with speaking() as server:
        trial = await bench(server, limit=1.0).attempt(Plan(2, 1.5, join_seconds=0.1))
    assert trial.held, trial.why
    assert trial.measure == "first audio"
    assert trial.delays is not None
    assert trial.counts["speeches"] > 2, "each user heard more than one"
    assert trial.counts["audio_seconds"] > 0
    assert trial.counts["words"] >= trial.counts["speeches"]
    assert trial.counts["real_time_factor_p50"] > 1
    assert trial.others["gap"] is not None
    assert trial.others["gap"].max < 1000


async def test_a_voice_slower_than_speech_has_gaps() -> None:
    runner = ToneRunner(1)
    runner.before_step = lambda: time.sleep(0.3)
    async with speaking(runner) as server:
        trial = await bench(server, limit=0.1).attempt(Plan(1, 3.0, join_seconds=0.0))
    assert not trial.held
    assert "gaps" in trial.why


async def test_a_refusal_is_told() -> None:
    async with speaking() as server:
        url = server.ws(PATH, "?format=PcmMessagePack&voice=nobody")
        trial = await TtsBench(url, KEY, TEXTS).attempt(Plan(1, 0.5, join_seconds=0.0))
    assert not trial.held
    assert "nobody" in trial.why
