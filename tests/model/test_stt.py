"""Speech to text against the ``moshi`` package (see tests/golden/lm.py), and each stream against itself alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moshi_server.model import transformer
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.mimi import Mimi
from moshi_server.model.streaming import State, leaf, leaves, reset_state
from moshi_server.model.stt import SttModel
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi

from ..golden import lm_spec, mimi_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "lm.npz"
SLOTS = lm_spec.STREAMS


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Any]:
    return dict(np.load(GOLDEN))


def load(folder: Path, spec: LmSpec, naming: Any = "candle") -> LmModel:
    path = folder / f"{naming}.safetensors"
    write_lm(path, spec, seed=lm_spec.SEED, naming=naming, dtype=torch.float32)
    return load_lm(path, spec, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stt")


@pytest.fixture(scope="module")
def lm(folder: Path) -> LmModel:
    return load(folder, lm_spec.SMALL)


def mimi_for(lm: LmModel, folder: Path) -> Mimi:
    path, codebooks = folder / "mimi.safetensors", lm.spec.audio_codebooks
    quantizer = dataclasses.replace(mimi_spec.SMALL.quantizer, codebooks=8, bins=lm.spec.audio_vocab_size - 1)
    write_mimi(path, dataclasses.replace(mimi_spec.SMALL, quantizer=quantizer), seed=1)
    return load_mimi(path, num_codebooks=codebooks, decoder=False)


@pytest.fixture(scope="module")
def stt(lm: LmModel, folder: Path) -> SttModel:
    return SttModel(mimi_for(lm, folder), lm)


def codes(spec: LmSpec, stream: int, steps: int) -> Tensor:
    return torch.from_numpy(lm_spec.codes(spec, stream, steps))


def one_by_one(stt: SttModel, inputs: Tensor, slot: int = 0, slots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (T,), heads (T, H) and logits (T, V) of codes (T, K)."""
    state, index = stt.init_state(slots), torch.tensor([slot])
    steps = [stt.step_codes(frame[None], state, index) for frame in inputs]
    tokens, heads, logits = (torch.cat(parts) for parts in zip(*steps, strict=True))
    return tokens, heads, logits


def compare(got: tuple[Tensor, Tensor, Tensor], golden: Mapping[str, Any], name: str) -> None:
    tokens, heads, logits = got
    assert tokens.tolist() == golden[f"{name}.tokens"].tolist()
    torch.testing.assert_close(logits, torch.from_numpy(golden[f"{name}.logits"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(heads, torch.from_numpy(golden[f"{name}.heads"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("naming", ["candle", "pytorch"])
def test_one_stream_is_upstreams_past_the_context(folder: Path, stt: SttModel, golden: Any, naming: str) -> None:
    model = SttModel(stt.mimi, load(folder, lm_spec.SMALL, naming))
    assert 8 * lm_spec.SMALL.transformer.context < lm_spec.STEPS
    compare(one_by_one(model, codes(lm_spec.SMALL, 0, lm_spec.STEPS), slot=2, slots=3), golden, "small.0")


@pytest.mark.parametrize("short_ring", [0, 64], ids=["stream by stream", "gathered"])
def test_four_streams_that_start_pause_and_reset_are_each_upstreams(
    stt: SttModel, golden: Any, short_ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "SHORT_RING", short_ring)
    inputs = [codes(lm_spec.SMALL, stream, lm_spec.STEPS) for stream in range(SLOTS)]
    state, generator = stt.init_state(SLOTS), torch.Generator().manual_seed(5)
    heard: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(SLOTS)]
    resets = {60: [1], 140: [1, 3], 200: [0]}
    for tick in range(2000):
        if tick in resets:
            reset_state(state, torch.tensor(resets[tick]))
            for slot in resets[tick]:
                heard[slot] = []
        order = torch.randperm(SLOTS, generator=generator).tolist()
        awake = [s for s in order if tick >= 11 * s and len(heard[s]) < lm_spec.STEPS]
        awake = [s for s in awake if float(torch.rand(1, generator=generator)) < 0.8]
        if awake:
            frames = torch.stack([inputs[s][len(heard[s])] for s in awake])
            tokens, heads, logits = stt.step_codes(frames, state, torch.tensor(awake))
            for row, slot in enumerate(awake):
                heard[slot].append((tokens[row], heads[row], logits[row]))
    for slot in range(SLOTS):
        assert len(heard[slot]) == lm_spec.STEPS
        tokens, heads, logits = (torch.stack(parts) for parts in zip(*heard[slot], strict=True))
        compare((tokens, heads, logits), golden, f"small.{slot}")


@pytest.mark.parametrize("naming", ["candle", "pytorch"])
@pytest.mark.parametrize("label", ["value", "padding"])
def test_conditions_and_grouped_heads_are_upstreams(folder: Path, golden: Any, naming: str, label: str) -> None:
    lm = load(folder, lm_spec.CONDITIONED, naming)
    provider = lm.condition_provider
    assert provider is not None
    name = lm_spec.CONDITION
    condition = provider.named(name, "bad") if label == "value" else provider.learnt_padding(name)
    model = SttModel(mimi_for(lm, folder), lm, condition=condition)
    inputs = codes(lm_spec.CONDITIONED, 0, lm_spec.CONDITIONED_STEPS)
    compare(one_by_one(model, inputs), golden, f"conditioned.{label}")


def test_sound_goes_through_mimi_and_reaches_the_model_one_step_late(stt: SttModel) -> None:
    generator = torch.Generator().manual_seed(8)
    pcm = torch.randn(2, 12, stt.frame_size, generator=generator) * 0.2
    state, slots = stt.init_state(3), torch.tensor([2, 0])
    results = [stt.step(pcm[:, t], state, slots) for t in range(12)]
    frames = stt.mimi.encode(pcm.flatten(1)[:, None])
    for row in range(2):
        tokens, heads, _ = one_by_one(stt, frames[row].T)
        assert [int(step[0][row]) for step in results] == tokens.tolist()
        torch.testing.assert_close(torch.stack([step[1][row] for step in results]), heads)
    # The first step has heard nothing yet.
    silent = stt.step(torch.zeros(1, stt.frame_size), stt.init_state(1), torch.tensor([0]))
    torch.testing.assert_close(silent[1][0], results[0][1][0])
    assert leaf(state, "steps").tolist() == [12, 0, 12]


def test_reset_begins_anew(stt: SttModel) -> None:
    state: State = stt.init_state(2)
    for frame in codes(lm_spec.SMALL, 1, 5):
        stt.step_codes(frame[None], state, torch.tensor([1]))
    reset_state(state, torch.tensor([1]))
    assert not any(bool(tensor.any()) for tensor in leaves(state))


def test_warm_streams_speak_by_their_own_seed(lm: LmModel, stt: SttModel) -> None:
    warm = SttModel(stt.mimi, lm, temperature=1.0)
    inputs = torch.stack([codes(lm_spec.SMALL, stream, 40) for stream in range(SLOTS)])
    seeds = torch.tensor([3, 0, 99, 3])

    def spoken(streams: list[int]) -> dict[int, list[int]]:
        state, slots = warm.init_state(SLOTS), torch.tensor(streams)
        leaf(state, "seed").copy_(seeds)
        steps = [warm.step_codes(inputs[slots, t], state, slots)[0] for t in range(40)]
        return {stream: [int(step[row]) for step in steps] for row, stream in enumerate(streams)}

    together = spoken([2, 0, 3, 1])
    assert all(spoken([stream])[stream] == together[stream] for stream in range(SLOTS))
    leaf_seeded = spoken([1])[1]
    seeds[1] = 7
    assert spoken([1])[1] != leaf_seeded
