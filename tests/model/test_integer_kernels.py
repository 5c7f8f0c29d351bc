"""Products made while the program runs: near to exact, whatever the sizes and however many threads and rows."""

from __future__ import annotations

import pytest
import torch

from moshi_server.model import jit
from moshi_server.model.integer_kernels import MOST_ROWS, Vnni, packed_int4, packed_int8
from moshi_server.model.quantize import Quantize, best_kernel, quantize

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs llvmlite and a CPU with AVX512-VNNI")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "rows"), [("int8", 77), ("int4", 80)])
def test_only_the_weights_are_rounded(kind: Quantize, rows: int) -> None:
    """One large activation takes nothing from the small ones but the last of 15 bits."""
    weight = quantize(normal(rows, 352), kind)
    x = normal(MOST_ROWS + 2, 352, seed=1)
    x[1, 5] = 30
    expected = x @ weight.dequantized().t()
    error = (Vnni(weight)(x) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 5e-4
    assert error[0] < 1e-4


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_is_the_same_on_any_number_of_threads(kind: Quantize) -> None:
    kernel, x = Vnni(quantize(normal(112, 64), kind)), normal(3, 64, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernel(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_is_not_a_number_stays_so_in_its_own_row(kind: Quantize) -> None:
    x = normal(2, 64)
    x[1, 3] = torch.nan
    y = Vnni(quantize(normal(32, 64), kind))(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_weights_lie_in_the_order_in_which_they_are_read() -> None:
    values = torch.arange(16 * 32, dtype=torch.int16).to(torch.int8).view(16, 32)
    assert packed_int8(values)[0, 3, 5].tolist() == [int(value) + 128 for value in values[5, 12:16]]
    codes = quantize(normal(16, 64), "int4")
    packed = packed_int4(codes.values, codes.scales)
    whole = torch.stack((codes.values & 15, codes.values >> 4), -1).flatten(1)
    assert torch.equal(packed[0, 1, 1 + 2, 7] & 15, whole[7, 32 + 8 : 32 + 12])
    assert torch.equal(packed[0, 1, 1 + 2, 7] >> 4, whole[7, 48 + 8 : 48 + 12])
    assert packed[0, 1, 0, 7].view(torch.bfloat16).equal(codes.scales[7, 1])


def test_rows_that_do_not_fill_a_register_are_for_another_kernel() -> None:
    assert best_kernel("int8") is Vnni
    assert best_kernel("int8", 40) is not Vnni
