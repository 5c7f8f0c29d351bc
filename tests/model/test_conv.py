"""Streaming convolutions: any cut of the input, in any company, gives what the whole sequence gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moshi_server.model.conv import CausalConv1d, CausalConvTranspose1d
from moshi_server.model.streaming import StreamingModule

SLOTS = 3


def run_in_pieces(layer: StreamingModule, x: Tensor, cuts: list[int], slot: int) -> Tensor:
    """Feed ``x`` (1, C, T) to one slot in pieces of the given lengths, then the rest."""
    state = layer.init_state(SLOTS)
    slots = torch.tensor([slot])
    pieces = []
    for length in [*cuts, x.shape[-1]]:
        piece, x = x[..., :length], x[..., length:]
        if piece.shape[-1]:
            pieces.append(layer.step(piece, state, slots))
    return torch.cat(pieces, dim=-1)


@given(
    kernel=st.integers(1, 8),
    stride=st.integers(1, 8),
    dilation=st.integers(1, 3),
    replicate=st.booleans(),
    cuts=st.lists(st.integers(1, 5), max_size=6),
    slot=st.integers(0, SLOTS - 1),
    prepared=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_conv_step_equals_forward(
    kernel: int, stride: int, dilation: int, replicate: bool, cuts: list[int], slot: int, prepared: bool
) -> None:
    torch.manual_seed(kernel * 100 + stride)
    stride = min(stride, (kernel - 1) * dilation + 1)
    layer = CausalConv1d(2, 3, kernel, stride=stride, dilation=dilation, replicate=replicate)
    x = torch.randn(1, 2, 12 * stride)
    with torch.no_grad():
        whole = layer(x)
        assert whole.shape == (1, 3, 12)
        if prepared:
            layer.prepare()
        torch.testing.assert_close(run_in_pieces(layer, x, [c * stride for c in cuts], slot), whole)


@given(
    kernel=st.integers(1, 12),
    stride=st.integers(1, 8),
    bias=st.booleans(),
    depthwise=st.booleans(),
    cuts=st.lists(st.integers(1, 5), max_size=6),
)
@settings(deadline=None, max_examples=60)
def test_transposed_conv_step_equals_forward(
    kernel: int, stride: int, bias: bool, depthwise: bool, cuts: list[int]
) -> None:
    torch.manual_seed(kernel * 100 + stride)
    layer = CausalConvTranspose1d(4, 4, kernel, stride=min(kernel, stride), bias=bias, depthwise=depthwise)
    x = torch.randn(1, 4, 12)
    with torch.no_grad():
        whole = layer(x)
        assert whole.shape == (1, 4, 12 * min(kernel, stride))
        torch.testing.assert_close(run_in_pieces(layer, x, cuts, 1), whole)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride"),
    [(1, 16, 7, 1), (16, 8, 3, 1), (8, 16, 1, 1), (16, 32, 8, 4), (64, 32, 3, 1), (32, 32, 4, 2)],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [1, 17, 64])
def test_prepared_layers_of_mimi_s_kinds(
    inputs: int, outputs: int, kernel: int, stride: int, bias: bool, batch: int, count: int
) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(inputs, outputs, kernel, stride=stride, bias=bias)
    x = torch.randn(batch, inputs, 2 * count * stride)
    slots = torch.tensor([2, 0, 1])[:batch]
    with torch.no_grad():
        want = layer(x)
        layer.prepare()
        torch.testing.assert_close(layer(x), want)
        state = layer.init_state(SLOTS)
        got = [layer.step(part, state, slots) for part in x.split(count * stride, dim=-1)]
    torch.testing.assert_close(torch.cat(got, dim=-1), want, atol=2e-6, rtol=1e-5)


def test_preparing_again_takes_new_weights() -> None:
    layer = CausalConv1d(2, 3, 4, stride=2)
    layer.prepare()
    with torch.no_grad():
        layer.conv.weight.mul_(2)
        layer.prepare()
        x = torch.randn(1, 2, 8)
        torch.testing.assert_close(layer.step(x, layer.init_state(1), torch.tensor([0])), layer(x))


def test_replicate_repeats_the_first_sample_into_the_past() -> None:
    layer = CausalConv1d(1, 1, 4, stride=2, bias=False, replicate=True)
    torch.nn.init.ones_(layer.conv.weight)
    state = layer.init_state(1)
    with torch.no_grad():
        assert layer.step(torch.tensor([[[5.0, 7.0]]]), state, torch.tensor([0])).item() == 5 + 5 + 5 + 7
        assert layer.step(torch.tensor([[[1.0, 2.0]]]), state, torch.tensor([0])).item() == 5 + 7 + 1 + 2


@pytest.mark.parametrize("replicate", [False, True])
def test_slots_do_not_touch_each_other(replicate: bool) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(2, 2, 5, stride=2, replicate=replicate)
    x = torch.randn(SLOTS, 2, 8)
    state = layer.init_state(SLOTS)
    with torch.no_grad():
        whole = layer(x)
        last = layer.step(x[2:, :, :4], state, torch.tensor([2]))
        both = layer.step(x[[1, 0], :, :4], state, torch.tensor([1, 0]))
        rest = layer.step(x[[0, 2, 1], :, 4:], state, torch.tensor([0, 2, 1]))
    torch.testing.assert_close(last, whole[2:, :, :2])
    torch.testing.assert_close(both, whole[[1, 0], :, :2])
    torch.testing.assert_close(rest, whole[[0, 2, 1], :, 2:])
