"""Weights in two halves: what they hold, and (marked `gpu`) that products with them are as near as f32's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moshi_server.model.split import REST, SplitLinear, SplitWeight, split, split_linears

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


def whole(halves: SplitWeight) -> Tensor:
    return halves.unit * (halves.high.double() + halves.low.double() / REST)


@given(st.floats(1e-30, 1e30), st.integers(0, 2**32 - 1))
def test_halves_hold_22_bits_of_weights_of_any_size(size: float, seed: int) -> None:
    weight = size * torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    halves = split(weight)
    assert halves.high.dtype is torch.float16
    error = (whole(halves) - weight.double()).abs()
    assert float((error / weight.double().abs().clamp(min=float(weight.abs().max()) * 1e-5)).max()) < 2.0**-21


def test_nothing_is_held_as_nothing() -> None:
    assert not whole(split(torch.zeros(3, 2))).any()


def test_only_linear_layers_in_f32_are_replaced() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2).half())
    split_linears(module)
    split_linears(module)
    assert [type(each) for each in module] == [SplitLinear, nn.Sequential, nn.Linear]
    assert isinstance(module[1], nn.Sequential)
    assert isinstance(module[1][0], SplitLinear)


@pytest.mark.parametrize(("width", "outputs"), [(192, 32), (512, 2048), (8192, 1024), (2048, 1)])
@pytest.mark.parametrize("rows", [1, 70, 3000])
@pytest.mark.parametrize("_", [pytest.param(None, marks=gpu)])
def test_products_are_as_near_as_the_librarys(width: int, outputs: int, rows: int, _: None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, outputs, device="cuda").requires_grad_(False)
    x = torch.nn.functional.elu(torch.randn(rows, width, device="cuda"))
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())

    # What is added up, whatever it comes to: one sum may be near nothing.
    size = nn.functional.linear(x.double().abs(), layer.weight.double().abs())

    def error(y: Tensor) -> float:
        return float(((y.double() - exact) / size).square().mean().sqrt())

    assert error(SplitLinear(layer)(x)) < max(3e-8, 1.5 * error(layer(x)))


@pytest.mark.parametrize("_", [pytest.param(None, marks=gpu)])
def test_the_nearest_centroid_is_the_librarys_and_the_first_of_equals(_: None) -> None:
    from moshi_server.model.nearest_kernels import nearest

    torch.manual_seed(0)
    x, centroids = torch.randn(300, 48, device="cuda"), torch.randn(500, 48, device="cuda")
    centroids[400] = centroids[7]
    x[0] = centroids[7]
    half_norms = centroids.square().sum(-1) / 2
    want = (half_norms.double() - x.double() @ centroids.double().t()).argmin(-1)
    codes, rest = torch.zeros(300, 3, dtype=torch.int64, device="cuda"), x.clone()
    nearest(rest, centroids, split(centroids.t()), half_norms, codes[:, 1])
    assert torch.equal(codes[:, 1], want)
    assert int(codes[0, 1]) == 7
    torch.testing.assert_close(rest, x - centroids[want])
