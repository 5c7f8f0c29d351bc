"""Turns of a recording with pauses, from the embedded model's own heads, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from moshi_server import hub
from moshi_server.app.factory import hooks_for
from moshi_server.app.serve import served
from moshi_server.audio import SAMPLE_RATE, read_audio
from moshi_server.cli.configs import locate
from moshi_server.client import AsrClient
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.events import Flush, Turn, Word
from moshi_server.metrics import Metrics

from ..app.server import KEY, Server, running

SPEECH = read_audio(hub.resolve("demo://samples") / "alice.flac")
PAUSE = np.zeros(4 * SAMPLE_RATE, np.float32)


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    settings: dict[str, float] = getattr(request, "param", {})
    metrics = Metrics()
    config = load_config(locate(Path("demo")))
    config = config.model_copy(
        update={"modules": {k: v.model_copy(update=settings) for k, v in config.modules.items()}}
    )
    built = build_engines(config, device="cpu", hooks_for=lambda _, kind: hooks_for(metrics.module(kind)))
    async with running([served(module, metrics) for module in built], metrics=metrics) as server:
        yield server


async def turns_of(server: Server, pcm: np.ndarray, *, asked: bool = True) -> tuple[list[Turn], list[Word]]:
    turns: list[Turn] = []
    words: list[Word] = []
    async with AsrClient.connect(server.ws("", ""), api_key=KEY, turns=asked) as client:
        for at in range(0, len(pcm), SAMPLE_RATE):
            await client.send_audio(pcm[at : at + SAMPLE_RATE])
        await client.flush()
        async for event in client:
            match event:
                case Turn():
                    turns.append(event)
                case Word():
                    words.append(event)
                case Flush():
                    break
    return turns, words


async def test_turn_events_are_sent_only_if_asked_with_times_in_the_clients_audio(server: Server) -> None:
    pcm = np.concatenate([SPEECH, PAUSE, SPEECH, PAUSE])
    turns, words = await turns_of(server, pcm)
    assert [turn.kind for turn in turns] == ["start", "end", "start", "end"]
    spoken = len(SPEECH) / SAMPLE_RATE
    again = spoken + len(PAUSE) / SAMPLE_RATE
    first, first_end, second, second_end = (turn.time for turn in turns)
    assert 0 < first < words[0].start_time + 1.5
    assert spoken + 1 < first_end < spoken + 3, "a pause of 2 s is noticed when it is 2 s long"
    assert again < second < again + 1.5
    assert again + spoken + 1 < second_end < again + spoken + 3
    assert (await turns_of(server, pcm, asked=False))[0] == []


@pytest.mark.parametrize("server", [{"turn_head": 0}], indirect=True)
async def test_hysteresis_and_thresholds_are_settings_a_shorter_pause_ends_a_turn_sooner(server: Server) -> None:
    turns, words = await turns_of(server, np.concatenate([SPEECH, PAUSE]))
    assert [turn.kind for turn in turns] == ["start", "end"]
    assert 0.5 <= turns[1].time - words[-1].start_time < 1.6, "a pause of half a second, after a word of a moment"
