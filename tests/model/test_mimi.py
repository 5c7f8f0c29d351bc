"""Mimi against the ``moshi`` package (see tests/golden/mimi.py), and each stream against itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sphn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moshi_server.errors import CheckpointError
from moshi_server.model.mimi import Mimi, MimiSpec
from moshi_server.model.streaming import State, reset_state
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.weights_mimi import load_mimi

from ..golden.mimi_spec import AUDIO, LOUDER, SEED, SMALL, STRIDE, V0_1

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Mimi:
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    write_mimi(path, SMALL, seed=SEED)
    return load_mimi(path)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """The recording as (T, frame_size)."""
    samples, _ = sphn.read(str(AUDIO))
    whole = samples.shape[-1] // SMALL.frame_size * SMALL.frame_size
    return torch.from_numpy(samples[0, :whole]).mul(LOUDER).view(-1, SMALL.frame_size)


def encode_alone(mimi: Mimi, frames: Tensor) -> Tensor:
    """(T, frame_size) -> codes (K, T), one frame at a time in slot 2 of 4."""
    state, slots = mimi.init_encoder_state(SLOTS), torch.tensor([2])
    return torch.cat([mimi.encode_step(frame[None], state, slots) for frame in frames]).t()


def encode_ahead(mimi: Mimi, frames: Tensor, sizes: list[int]) -> Tensor:
    """As ``encode_alone``, with ``sizes`` frames a call, again and again."""
    state, slots, codes = mimi.init_encoder_state(SLOTS), torch.tensor([2]), []
    while len(frames):
        for size in sizes:
            now, frames = frames[:size], frames[size:]
            if len(now):
                codes.append(mimi.encode_frames(now.reshape(1, -1), state, slots)[0])
    return torch.cat(codes).t()


def decode_alone(mimi: Mimi, codes: Tensor) -> Tensor:
    """Codes (K, T) -> (T, frame_size), one frame at a time in slot 2 of 4."""
    state, slots = mimi.init_decoder_state(SLOTS), torch.tensor([2])
    return torch.cat([mimi.decode_step(frame[None], state, slots) for frame in codes.t()])


def compare_with_golden(mimi: Mimi, frames: Tensor, golden: Path) -> None:
    with np.load(golden) as file:
        latents, codes, sound = (torch.from_numpy(file[name]) for name in ("latents", "codes", "sound"))
    with torch.no_grad():
        torch.testing.assert_close(mimi.latents(frames[:8].view(1, 1, -1))[0], latents, atol=1e-4, rtol=0)
    assert codes.shape[1] * 0.08 >= 10
    assert torch.equal(encode_alone(mimi, frames), codes.long())
    decoded = decode_alone(mimi, codes.long()).flatten()
    torch.testing.assert_close(decoded[::STRIDE], sound, atol=1e-4, rtol=0)


def test_small_mimi_is_upstream_s(mimi: Mimi, frames: Tensor) -> None:
    """Codes equal and sound within 1e-4 over 12.5 s, four times the context of its transformer."""
    compare_with_golden(mimi, frames, GOLDEN / "mimi.npz")


@pytest.mark.slow
def test_frames_encoded_ahead_are_upstream_s_too(mimi: Mimi, frames: Tensor) -> None:
    with np.load(GOLDEN / "mimi.npz") as file:
        codes = torch.from_numpy(file["codes"]).long()
    assert torch.equal(encode_ahead(mimi, frames, [1, 8, 2, 16, 4]), codes)


def test_full_size_mimi_is_upstream_s(frames: Tensor, tmp_path: Path) -> None:
    """The same with the sizes of v0.1 and all 32 codebooks; the ring wraps after 10 s."""
    write_mimi(tmp_path / "mimi.safetensors", V0_1, seed=SEED)
    compare_with_golden(load_mimi(tmp_path / "mimi.safetensors"), frames, GOLDEN / "mimi_v0_1.npz")


def test_whole_equals_frame_by_frame_within_the_context(mimi: Mimi, frames: Tensor) -> None:
    first = frames[: SMALL.transformer.context // SMALL.stride]
    codes = encode_alone(mimi, first)
    assert torch.equal(mimi.encode(first.view(1, 1, -1))[0], codes)
    torch.testing.assert_close(mimi.decode(codes[None])[0, 0], decode_alone(mimi, codes).flatten(), atol=1e-5, rtol=0)


def test_the_last_frame_is_filled_up_with_zeros(mimi: Mimi, frames: Tensor) -> None:
    pcm = frames[:3].reshape(1, 1, -1)
    cut = pcm[..., :-100]
    padded = pcm.clone()
    padded[..., -100:] = 0
    assert torch.equal(mimi.encode(cut), mimi.encode(padded))


def test_four_streams_that_start_pause_and_reset_at_different_times(mimi: Mimi, frames: Tensor) -> None:
    """Every stream, encoded and decoded in changing company, equals its own run alone."""
    encoder, decoder = mimi.init_encoder_state(SLOTS), mimi.init_decoder_state(SLOTS)
    begins = [0, 31, 62, 93]
    alone = [encode_alone(mimi, frames[begin : begin + 60]) for begin in begins]
    sounds = [decode_alone(mimi, codes) for codes in alone]
    at = [0] * SLOTS
    for tick in range(90):
        if tick in (25, 50):
            reset_state(encoder, torch.tensor([1, tick // 25 + 1]))
            reset_state(decoder, torch.tensor([1, tick // 25 + 1]))
            at[1] = at[tick // 25 + 1] = 0
        running = [s for s in (2, 0, 3, 1) if tick >= 5 * s and (tick + s) % (s + 3) and at[s] < 60]
        if not running:
            continue
        slots = torch.tensor(running)
        pcm = torch.stack([frames[begins[s] + at[s]] for s in running])
        codes = mimi.encode_step(pcm, encoder, slots)
        sound = mimi.decode_step(codes, decoder, slots)
        for row, s in enumerate(running):
            assert torch.equal(codes[row], alone[s][:, at[s]]), f"slot {s}, frame {at[s]}"
            torch.testing.assert_close(sound[row], sounds[s][at[s]], atol=1e-4, rtol=0)
            at[s] += 1
    assert min(at) > 20


Tick = tuple[frozenset[int], frozenset[int]]
subsets = st.frozensets(st.integers(0, SLOTS - 1))
few = st.one_of(st.just(frozenset[int]()), st.just(frozenset[int]()), subsets)


@given(ticks=st.lists(st.tuples(subsets, few), max_size=12))
@settings(deadline=None, max_examples=25)
def test_any_schedule_gives_what_each_stream_gives_alone(mimi: Mimi, frames: Tensor, ticks: list[Tick]) -> None:
    begins = [10, 40, 70, 100]
    alone = [encode_alone(mimi, frames[begin : begin + 12]) for begin in begins]
    state: State = mimi.init_encoder_state(SLOTS)
    at = [0] * SLOTS
    for running, resets in ticks:
        if resets:
            reset_state(state, torch.tensor(sorted(resets)))
            at = [0 if slot in resets else done for slot, done in enumerate(at)]
        if running:
            order = list(running)
            pcm = torch.stack([frames[begins[slot] + at[slot]] for slot in order])
            for slot, codes in zip(order, mimi.encode_step(pcm, state, torch.tensor(order)), strict=True):
                assert torch.equal(codes, alone[slot][:, at[slot]])
                at[slot] += 1


def test_gradients_reach_the_waveform_s_first_convolution() -> None:
    mimi = Mimi(SMALL)
    mimi.latents(torch.randn(1, 1, 3 * SMALL.frame_size)).square().sum().backward()
    first = next(mimi.encoder.seanet.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0


def test_sizes() -> None:
    assert (V0_1.frame_size, V0_1.stride, V0_1.seanet.hop) == (1920, 2, 960)
    assert MimiSpec.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(CheckpointError, match=r"d_model and seanet\.dimension differ"):
        MimiSpec.from_json(SMALL.to_json().replace('"d_model": 32', '"d_model": 64'))
    with pytest.raises(CheckpointError, match="describes no Mimi"):
        MimiSpec.from_json("[]")
