"""Linear layers in 8 and 4 bits: what they hold, what they compute, and that no stream touches another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from moshi_server.model.quantize import (
    CANDIDATES,
    GROUP,
    Int8Pack,
    Kernel,
    Plain,
    Quantize,
    QuantizedLinear,
    QuantizedWeight,
    best_kernel,
    fits,
    quantize,
    unpacked,
    works,
)

KINDS: tuple[Quantize, ...] = ("int8", "int4")
ALL = [(kind, kernel) for kind in KINDS for kernel in CANDIDATES[kind]]
HERE = [(kind, kernel) for kind, kernel in ALL if works(kernel, kind)]
LARGEST_ERROR: dict[Quantize, float] = {"int8": 0.013, "int4": 0.09}
"""Relative, of a product with normal weights and activations."""


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_8_bits_are_off_by_half_a_step_at_most() -> None:
    weight = weights(100, 96)
    stored = quantize(weight, "int8")
    assert stored.values.dtype is torch.int8
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert torch.all((stored.dequantized() - weight).abs() <= 0.5001 * steps)


def test_4_bits_are_off_by_half_a_step_of_their_group_and_its_rounding() -> None:
    weight = weights(128, 4 * GROUP)
    groups = weight.view(128, -1, GROUP)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    off = (quantize(weight, "int4").dequantized() - weight).abs().view(128, -1, GROUP)
    assert torch.all(off <= 0.55 * step[..., None] + groups.abs().amax(-1, keepdim=True) / 128)


def test_4_bits_lie_two_to_a_byte_the_even_column_low() -> None:
    codes = torch.arange(64, dtype=torch.uint8).view(2, 32) % 16
    assert torch.equal(unpacked(codes[:, ::2] | (codes[:, 1::2] << 4)), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_constant_is_held_as_it_is(kind: Quantize) -> None:
    for value in (0.0, 0.5, -2.0):
        assert torch.equal(quantize(torch.full((64, 64), value), kind).dequantized(), torch.full((64, 64), value))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_one_by_one(kind: Quantize) -> None:
    stored = quantize(weights(192, 64), kind)
    assert torch.equal(stored.rows(64, 128).dequantized(), stored.dequantized()[64:128])
    assert stored.rows(64, 128).shape == (64, 64)


def test_4_bits_do_not_fit_every_shape() -> None:
    assert fits((8000, 2048), "int4")
    assert fits((48, 32), "int4")
    assert not fits((8001, 2048), "int4")
    assert not fits((64, 40), "int4")
    assert fits((8001, 40), "int8")
    assert not fits((8001,), "int8")


def test_a_byte_or_half_a_byte_and_its_scales() -> None:
    weight = weights(64, 1024)
    assert quantize(weight, "int8").nbytes == 64 * 1024 + 64 * 4
    assert quantize(weight, "int4").nbytes == 64 * 1024 // 2 + 64 * 32 * 4


@pytest.mark.parametrize(("kind", "kernel"), HERE)
@pytest.mark.parametrize("shape", [(128, 64), (320, 2048), (64, 5632)])
def test_products_are_near_those_of_f32(kind: Quantize, kernel: type[Kernel], shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    x = torch.randn(3, 2, shape[1], generator=torch.Generator().manual_seed(1))
    y = QuantizedLinear(quantize(weight, kind), kernel=kernel)(x)
    assert y.shape == (3, 2, shape[0])
    assert y.dtype is torch.float32
    assert relative(y, x @ weight.t()) < LARGEST_ERROR[kind]


@pytest.mark.parametrize(("kind", "kernel"), HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_does_not_change_anothers_numbers_by_a_bit(
    kind: Quantize, kernel: type[Kernel], dtype: torch.dtype
) -> None:
    """Whatever the others are, and however many: very loud ones and infinite ones as well."""
    layer = QuantizedLinear(quantize(weights(192, 1024), kind), kernel=kernel)
    x = torch.randn(9, 1024, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[3] *= 1e6
    x[5, 7] = torch.inf
    x[6] = 0
    alone = torch.cat([layer(row[None]) for row in x])
    for count in (2, 4, 9):
        finite = [row for row in range(count) if row != 5]
        assert torch.equal(layer(x[:count])[finite], alone[finite])
        assert torch.equal(layer(x[:count].flip(0)).flip(0)[finite], alone[finite])


@pytest.mark.parametrize(("kind", "kernel"), HERE)
def test_silence_gives_silence(kind: Quantize, kernel: type[Kernel]) -> None:
    layer = QuantizedLinear(quantize(weights(64, 64), kind), kernel=kernel)
    assert torch.equal(layer(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_a_bias_is_added_and_the_type_is_that_of_the_input() -> None:
    bias = torch.arange(64.0)
    layer = QuantizedLinear(quantize(weights(64, 32), "int8"), bias)
    assert torch.equal(layer(torch.zeros(1, 32)), bias[None])
    assert layer(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert repr(layer) == "QuantizedLinear(32, 64, int8)"


class Saturating(Int8Pack):
    """Sums in 16 bits, as processors without an instruction for 8-bit products do."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).clamp(-(2.0**15), 2.0**15)


class Absent(Plain):
    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError("there is no such operator on this CPU")


def test_a_kernel_that_overflows_or_is_absent_is_not_taken() -> None:
    assert not works(Saturating, "int8")
    assert not works(Absent, "int8")
    assert works(Plain, "int8")
    assert works(Plain, "int4")


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="settings of x86")
@pytest.mark.parametrize(("isa", "capability"), [("AVX2", "avx2"), ("AVX512_CORE", "avx512"), ("SSE41", "default")])
def test_processors_without_8_bit_products_get_another_kernel(isa: str, capability: str) -> None:
    code = "import sys; sys.modules['llvmlite'] = None  # no kernels of our own, which ask the processor itself\n"
    code += "from moshi_server.model.quantize import best_kernel as b; print(b('int8').name, b('int4').name)"
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    eight, four = done.stdout.split()
    assert eight == "int8pack"
    assert four in ("int4pack", "plain")


def test_the_best_kernel_is_the_first_that_works_here() -> None:
    for kind in KINDS:
        assert best_kernel(kind) is next(kernel for where, kernel in HERE if where == kind)


def test_quantizing_a_16_bit_weight_is_quantizing_its_values() -> None:
    weight = weights(130, 64).bfloat16()
    a, b = quantize(weight, "int8"), quantize(weight.float(), "int8")
    assert isinstance(a, QuantizedWeight)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.scales, b.scales)
