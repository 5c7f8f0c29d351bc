"""Rings in 8 bits: what rounding costs, and that each stream stays itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moshi_server.model.ring_attention import LEVELS, Ring, quantize
from moshi_server.model.streaming import State, leaf, reset_state
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec

SPEC = TransformerSpec(64, 4, 3, 128, context=12, gating="silu", kv_repeat=2)


def steps(model: StreamingTransformer, x: Tensor, state: State, slots: Tensor) -> Tensor:
    return torch.cat([model.step(part, state, slots) for part in x.split(1, dim=1)], dim=1)


@pytest.fixture
def model() -> StreamingTransformer:
    torch.manual_seed(0)
    return StreamingTransformer(SPEC).eval()


def test_a_vector_comes_back_within_half_a_step_of_its_largest_part() -> None:
    x = torch.randn(7, 5, 32) * torch.logspace(-3, 3, 7)[:, None, None]
    codes, scales = quantize(x)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == LEVELS
    error = (codes * scales[..., None].float() - x).abs()
    assert bool((error <= 0.51 * x.abs().amax(-1, keepdim=True) / LEVELS + 1e-7).all())
    assert not any(bool(part.any()) for part in quantize(torch.zeros(2, 8)))


def test_eight_bits_stay_near_the_model_in_f32_past_the_context(model: StreamingTransformer) -> None:
    x, slots = torch.randn(2, 40, 64), torch.tensor([2, 0])
    want = steps(model, x, model.init_state(3), slots)
    state = model.init_state(3, dtype=torch.int8)
    got = steps(model, x, state, slots)
    error = float((got - want).norm() / want.norm())
    assert 0 < error < 0.01
    assert leaf(state, "ring.0").dtype == torch.int8
    assert not leaf(state, "ring.0")[1].any()


def test_streams_in_any_order_and_reset_are_each_as_alone(model: StreamingTransformer) -> None:
    # In f64, for in f32 some CPUs' products round one row otherwise than three, which may move a number by a level.
    model, x = model.double(), torch.randn(3, 30, 64).double()
    alone = [
        steps(model, x[row : row + 1], model.init_state(1, dtype=torch.int8), torch.tensor([0])) for row in range(3)
    ]
    state = model.init_state(4, dtype=torch.int8)
    steps(model, torch.randn(1, 9, 64).double(), state, torch.tensor([3]))
    reset_state(state, torch.tensor([3]))
    together = steps(model, x, state, torch.tensor([3, 0, 2]))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[:1], alone[1], atol=0.1)


def test_several_positions_are_written_and_read_at_once(model: StreamingTransformer) -> None:
    ring = Ring(torch.zeros(3, 2, 1, 4, 8, dtype=torch.int8), torch.zeros(3, 2, 1, 4, dtype=torch.float16))
    new = torch.randn(2, 2, 2, 1, 8)
    slots, entries = torch.tensor([2, 0]), torch.tensor([[3, 0], [1, 2]])
    ring.write(slots, entries, new)
    held = ring.gather(slots, torch.float32)
    for row in range(2):
        torch.testing.assert_close(held[row][:, :, entries[row]].permute(2, 0, 1, 3), new[row], atol=0.02, rtol=0.01)
    assert not ring.values[1].any()
