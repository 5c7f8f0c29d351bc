"""Encoding ahead of the language model: the same words as frame by frame, whatever is queued, reset or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moshi_server import hub
from moshi_server.audio import FRAME_SIZE, read_audio
from moshi_server.cli.configs import locate
from moshi_server.config import BatchedAsrConfig, load_config
from moshi_server.engine.ahead import AHEAD_FRAMES, AheadRunner, AheadStream, suits
from moshi_server.engine.asr import AsrOutput, SttRunner
from moshi_server.engine.specs import lm_spec
from moshi_server.events import Audio, Init
from moshi_server.model.mimi import MimiSpec
from moshi_server.model.stt import SttModel
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi

CPU = torch.device("cpu")
Frames = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> SttModel:
    module = load_config(locate(Path("demo"))).modules["asr"]
    assert isinstance(module, BatchedAsrConfig)
    lm = load_lm(hub.resolve(module.lm_model_file), lm_spec(module.model), dtype=torch.float32)
    codec = hub.resolve(module.audio_tokenizer_file)
    return SttModel(load_mimi(codec, num_codebooks=lm.spec.audio_codebooks, decoder=False), lm)


@pytest.fixture(scope="module")
def frames() -> Frames:
    samples = sorted(hub.resolve("demo://samples").glob("*.flac"))
    pcm = np.concatenate([read_audio(sample) for sample in samples])[: 90 * FRAME_SIZE]
    return pcm.reshape(-1, FRAME_SIZE)


def frame_by_frame(model: SttModel, frames: Frames) -> list[AsrOutput]:
    runner = SttRunner(model, 1, CPU)
    return [runner.step([0], [frame])[0] for frame in frames]


def step(runner: AheadRunner, streams: dict[int, AheadStream]) -> dict[int, AsrOutput]:
    """One tick of these slots, those that have no frame left out."""
    taken = {slot: frame for slot, stream in streams.items() if (frame := stream.take(0.0)) is not None}
    resets = [slot for slot in taken if streams[slot].needs_reset]
    if resets:
        runner.reset(resets)
    for slot in resets:
        streams[slot].needs_reset = False
    return dict(zip(taken, runner.step(list(taken), list(taken.values())), strict=True))


def stream() -> AheadStream:
    return AheadStream(6, lambda tokens: "")


def same(got: list[AsrOutput], want: list[AsrOutput]) -> None:
    assert [output.token for output in got] == [output.token for output in want]
    np.testing.assert_allclose([output.prs for output in got], [output.prs for output in want], atol=1e-4)


def test_a_queue_gives_what_frame_by_frame_gives(model: SttModel, frames: Frames) -> None:
    runner, one = AheadRunner(model, 2, CPU), stream()
    one.put(Audio(frames.reshape(-1)[: 50 * FRAME_SIZE + 7]), 0.0)  # in two pieces that end within a frame
    one.put(Audio(frames.reshape(-1)[50 * FRAME_SIZE + 7 :]), 0.0)
    got = []
    for _ in frames:
        consumed = one.consumed
        got.append(step(runner, {1: one})[1])
        assert one.consumed == consumed + FRAME_SIZE  # looking ahead takes nothing
    same(got, frame_by_frame(model, frames))
    assert one.take(0.0) is None


def test_a_live_stream_gets_its_frame_at_each_tick_beside_a_queue(model: SttModel, frames: Frames) -> None:
    runner, queued, live = AheadRunner(model, 4, CPU), stream(), stream()
    queued.put(Audio(frames.reshape(-1)), 0.0)
    got: dict[int, list[AsrOutput]] = {3: [], 0: []}
    for tick, frame in enumerate(frames):
        if tick >= 5:
            live.put(Audio(frame), 0.0)
        for slot, output in step(runner, {3: queued, 0: live}).items():
            got[slot].append(output)
    same(got[3], frame_by_frame(model, frames))
    same(got[0], frame_by_frame(model, frames[5:]))


def test_a_reset_drops_what_is_ahead(model: SttModel, frames: Frames) -> None:
    runner, one = AheadRunner(model, 1, CPU), stream()
    one.put(Audio(frames.reshape(-1)), 0.0)
    for _ in range(3):
        step(runner, {0: one})
    one.needs_reset = True  # as the watchdog does: the audio goes on, the model begins anew
    got = [step(runner, {0: one})[0] for _ in range(20)]
    same(got, frame_by_frame(model, frames[3:23]))
    one.put(Init(), 0.0)  # as a client does: what was queued is gone
    one.put(Audio(frames[40:60].reshape(-1)), 0.0)
    got = [step(runner, {0: one})[0] for _ in range(20)]
    same(got, frame_by_frame(model, frames[40:60]))


def test_all_streams_together_encode_no_more_than_the_bound(model: SttModel, frames: Frames) -> None:
    runner = AheadRunner(model, 4, CPU)
    sizes: list[int] = []
    encode = model.encode_frames

    def counting(pcm: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(pcm.numel() // FRAME_SIZE)
        return encode(pcm, *rest)

    streams = {slot: stream() for slot in range(3)}
    for each in streams.values():
        each.put(Audio(frames.reshape(-1)), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "encode_frames", counting)
        step(runner, streams)
    assert sizes == [6]
    assert sum(sizes) <= AHEAD_FRAMES


def test_warmup_leaves_nothing_behind(model: SttModel, frames: Frames) -> None:
    runner, one = AheadRunner(model, 2, CPU), stream()
    runner.warmup()
    one.needs_reset = False
    one.put(Audio(frames[:10].reshape(-1)), 0.0)
    same([step(runner, {0: one})[0] for _ in range(10)], frame_by_frame(model, frames[:10]))


def test_only_small_codecs_on_a_cpu_encode_ahead(model: SttModel) -> None:
    assert suits(model.mimi.spec, CPU)
    assert not suits(model.mimi.spec, torch.device("cuda"))
    assert not suits(MimiSpec(), CPU)
