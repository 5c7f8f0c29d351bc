"""Products of a few rows: as near as the library's, and no row knows of another."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from moshi_server.model import jit
from moshi_server.model.few_rows import MOST_ROWS, FewRows, FewRowsLinear, speed_up_linears

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs llvmlite and AVX512-VNNI")


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 260), (2048, 64), (16, 8192)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_as_near_as_the_library_s(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.inference_mode():
        few = FewRowsLinear(linear.weight, linear.bias)
        for rows in (1, 2, 3, 7, MOST_ROWS, MOST_ROWS + 1):
            x = torch.randn(rows, inputs)
            exact = functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
            got, theirs = few(x.view(rows, 1, inputs))[:, 0], linear(x)
            assert (got - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-7


@pytest.mark.usefixtures("_threads")
def test_a_row_gets_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    few = FewRows(torch.randn(256, 512), torch.randn(256))
    x = torch.randn(MOST_ROWS, 512)
    alone = torch.cat([few(row[None]) for row in x])
    for rows in range(1, MOST_ROWS + 1):
        assert torch.equal(few(x[:rows]), alone[:rows])


def test_linears_keep_their_parameters_and_are_replaced_once_more() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 4), nn.Linear(4, 4))
    names = list(model.state_dict())
    weight = model[0].weight
    for _ in range(2):
        speed_up_linears(model)
        assert isinstance(model[0], FewRowsLinear)
        assert model[0].weight is weight
    assert isinstance(model[3], nn.Linear), "too small"
    assert list(model.state_dict()) == names
    x = torch.randn(3, 512)
    model(x).sum().backward()  # where gradients are wanted, the library's product runs
    assert weight.grad is not None
