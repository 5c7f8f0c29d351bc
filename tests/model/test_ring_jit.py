"""Attention that reads rings of 16 bits where they lie: near to the plain one, and each stream for itself."""

from __future__ import annotations

import pytest
import torch

from moshi_server.model import jit, ring_jit
from moshi_server.model.streaming import State, leaf
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs llvmlite and a CPU with AVX512-VNNI")

SPEC = TransformerSpec(128, 4, 2, 256, context=37, gating="silu", max_period=1000.0)


def model(spec: TransformerSpec) -> StreamingTransformer:
    torch.manual_seed(0)
    return StreamingTransformer(spec).eval()


def run(lm: StreamingTransformer, x: torch.Tensor, slots: list[int], state: State) -> torch.Tensor:
    """(B, T, D), a position at a time."""
    where = torch.tensor(slots)
    return torch.cat([lm.step(x[:, n : n + 1], state, where) for n in range(x.shape[1])], dim=1)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        TransformerSpec(128, 4, 1, 256, context=50, kv_repeat=2),
        TransformerSpec(64, 4, 1, 256, context=20, positional_embedding="none"),
    ],
)
def test_outputs_are_those_of_a_ring_in_f32_before_and_after_it_is_full(spec: TransformerSpec) -> None:
    lm, x = model(spec), 2 * torch.randn(2, 90, spec.d_model)
    exact = lm.init_state(4)
    halved = lm.init_state(4, dtype=ring_jit.DTYPE)
    expected, found = run(lm, x, [3, 0], exact), run(lm, x, [3, 0], halved)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    kept = leaf(halved, "ring.0").float()
    assert (kept - leaf(exact, "ring.0")).norm() < 1e-3 * kept.norm()
    assert kept[1:3].count_nonzero() == 0


def test_a_stream_does_not_change_anothers_numbers_by_a_bit() -> None:
    lm, x = model(SPEC), torch.randn(3, 40, SPEC.d_model)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        qkv, turn = torch.randn(3, 3 * 128), torch.polar(torch.ones(3, 16), torch.randn(3, 16))
        state = lm.init_state(3, dtype=ring_jit.DTYPE)
        run(lm, x, [0, 1, 2], state)
        ring, start = leaf(state, "ring.1"), torch.tensor([40, 7, 99])
        together = ring_jit.step(qkv, turn, ring.clone(), torch.tensor([1, 2, 0]), start, 4)
        torch.set_num_threads(1)
        for row, slot in enumerate((1, 2, 0)):
            part = slice(row, row + 1)
            alone = ring_jit.step(qkv[part], turn[part], ring.clone(), torch.tensor([slot]), start[part], 4)
            assert torch.equal(together[part], alone)
    finally:
        torch.set_num_threads(before)


def test_scores_far_apart_are_no_matter() -> None:
    """The largest takes all, however far below it the others are."""
    ring = torch.zeros(1, 2, 1, 8, 32, dtype=ring_jit.DTYPE)
    ring[0, 0, 0, 2], ring[0, 1, 0, 2] = 100, 5
    qkv = torch.cat((torch.full((1, 32), 50.0), torch.zeros(1, 64)), dim=1)
    out = ring_jit.step(qkv, None, ring, torch.tensor([0]), torch.tensor([5]), 1)
    assert torch.equal(out, torch.full((1, 32), 5.0))


def test_several_positions_at_once_are_attended_to_as_ever() -> None:
    lm, x = model(SPEC), torch.randn(1, 12, SPEC.d_model)
    one, all_ = lm.init_state(1, dtype=ring_jit.DTYPE), lm.init_state(1, dtype=ring_jit.DTYPE)
    expected = run(lm, x, [0], one)
    assert (lm.step(x, all_, torch.tensor([0])) - expected).norm() < 5e-3 * expected.norm()


def test_wide_heads_and_other_types_are_left_to_others() -> None:
    cpu = torch.device("cpu")
    assert ring_jit.takes(128, ring_jit.DTYPE, cpu)
    assert not ring_jit.takes(128, torch.float32, cpu)
    assert not ring_jit.takes(256, ring_jit.DTYPE, cpu)
    assert not ring_jit.takes(24, ring_jit.DTYPE, cpu)
    assert not ring_jit.takes(128, ring_jit.DTYPE, torch.device("cuda"))
