"""Explicit state: what a tree of modules keeps, and what a reset touches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moshi_server.model.conv import CausalConv1d
from moshi_server.model.seanet import SeanetEncoder, SeanetSpec
from moshi_server.model.streaming import branch, leaf, leaves, reset_state, state_bytes
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec

SPEC = SeanetSpec(dimension=8, filters=2, ratios=(2, 2))


def test_state_has_a_row_a_slot_and_counts_its_bytes() -> None:
    state = SeanetEncoder(SPEC).init_state(3, dtype=torch.float64)
    tensors = list(leaves(state))
    assert {tensor.shape[0] for tensor in tensors} == {3}
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert state_bytes(state) == sum(tensor.numel() for tensor in tensors) * 8
    assert not any(tensor.any() for tensor in tensors)


def test_state_follows_names_and_leaves_out_what_keeps_none() -> None:
    state = branch(SeanetEncoder(SPEC).init_state(1), "layers")
    assert list(state) == ["0", "1", "3", "4", "6", "8"], "activations keep no state"
    assert list(branch(branch(branch(state, "1"), "block"), "layers")) == ["1"], "a pointwise convolution keeps none"


def test_reset_touches_only_its_slots() -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(1, 1, 4, stride=2, bias=False, replicate=True)
    state = layer.init_state(3)
    x = torch.randn(3, 1, 4)
    everyone = torch.arange(3)
    with torch.no_grad():
        first = layer.step(x, state, everyone)
        reset_state(state, torch.tensor([0, 2]))
        assert leaf(state, "begun").flatten().tolist() == [False, True, False]
        second = layer.step(x, state, everyone)
    assert torch.equal(second[[0, 2]], first[[0, 2]])
    assert not torch.equal(second[1], first[1])


@pytest.mark.parametrize("dtype", [None, torch.int8], ids=["as is", "8 bits"])
def test_what_a_ring_held_before_is_not_seen(dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    model = StreamingTransformer(TransformerSpec(32, 4, 2, 64, context=5)).eval()
    state = model.init_state(3, dtype=dtype)
    slots = torch.tensor([2, 0])
    frames = torch.randn(9, 2, 1, 32)
    first = [model.step(x, state, slots) for x in frames]
    reset_state(state, slots, rings=False)
    assert leaf(state, "ring.0").any()
    for x, want in zip(frames, first, strict=True):
        torch.testing.assert_close(model.step(x, state, slots), want)


def test_a_module_without_parameters_has_a_state_on_the_cpu() -> None:
    class Plain(SeanetEncoder):
        def __init__(self) -> None:
            super().__init__(SPEC)
            self.layers = nn.ModuleList([nn.ELU()])

    assert Plain().init_state(2) == {}
