"""Linear layers with weights of 8 or 4 bits, for CPUs; it knows no model and no file.

A step for few streams takes as long as reading the weights: a byte or half a byte each, instead of four. In 8 bits a
weight's row has one scale and each row of activations one of its own, so that integer sums are exact and no stream
changes another's numbers by a bit. In 4 bits, 32 weights share a scale and a centre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, Protocol

import torch
from torch import Tensor, nn

from moshi_server.model import integer_kernels
from moshi_server.model.integer_kernels import Vnni
from moshi_server.model.jit import LANES

Quantize = Literal["int8", "int4"]

GROUP: Final = integer_kernels.GROUP
"""Weights of one row that share a scale in 4 bits."""

_LARGEST: Final = 127.0
_CENTRE_CODE: Final = 8
_MIDDLE: Final = 128
"""What unsigned activations have for zero."""
_FINER: Final = 254.0
"""Steps of the second row of activations in one step of the first."""
_BLOCK_ROWS: Final = 64
"""Rows quantized at once: few enough for the processor's cache, seven times faster than a thousand."""
_UNPACKED_ROWS: Final = 1024
"""Rows unpacked at once: what that takes beside the weights stays small."""
_INT4_ROWS: Final = 16
"""The packed form is made of whole sixteens of rows."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight (N, K) as it is stored.

    int8: ``values`` (N, K) int8 and ``scales`` (N,) f32; a weight is value * scale.
    int4: ``values`` (N, K / 2) uint8, two codes each, the even column's in the lower bits, and ``scales``
    (N, K / GROUP, 2) bf16, of each group the scale and the centre; a weight is (code - 8) * scale + centre.
    """

    kind: Quantize
    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.values.shape
        return rows, columns if self.kind == "int8" else 2 * columns

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.values.nbytes + self.scales.nbytes

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Those rows."""
        return QuantizedWeight(self.kind, self.values[start:stop], self.scales[start:stop])

    def dequantized(self) -> Tensor:
        """(N, K) f32."""
        if self.kind == "int8":
            return torch.mul(self.values.float(), self.scales[:, None])
        codes = unpacked(self.values).view(len(self.values), -1, GROUP).float()
        scale, centre = self.scales.float().unbind(-1)
        return ((codes - _CENTRE_CODE) * scale[..., None] + centre[..., None]).flatten(1)


def unpacked(values: Tensor) -> Tensor:
    """Codes (N, K) uint8 of ``values`` (N, K / 2) uint8."""
    return torch.stack((values & 15, values >> 4), dim=-1).flatten(1)


def fits(shape: tuple[int, ...], kind: Quantize) -> bool:
    """Whether a weight of ``shape`` can be held so: 4 bits need whole groups, and rows that the kernel can block."""
    if len(shape) != 2:
        return False
    return kind == "int8" or (shape[0] % _INT4_ROWS == 0 and shape[1] % GROUP == 0)


def quantize(weight: Tensor, kind: Quantize) -> QuantizedWeight:
    """``weight`` (N, K), of any floating-point type, in 8 or 4 bits; a few rows at a time are brought to f32."""
    rows, columns = weight.shape
    assert fits((rows, columns), kind), f"{rows} x {columns} cannot be held in {kind}"
    if kind == "int8":
        values = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows)
    else:
        values = torch.empty(rows, columns // 2, dtype=torch.uint8)
        scales = torch.empty(rows, columns // GROUP, 2, dtype=torch.bfloat16)
    for start in range(0, rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, rows)
        block = weight[start:stop].float()
        values[start:stop], scales[start:stop] = _in_8_bits(block) if kind == "int8" else _in_4_bits(block)
    return QuantizedWeight(kind, values, scales)


def _in_8_bits(block: Tensor) -> tuple[Tensor, Tensor]:
    scales = block.abs().amax(1) / _LARGEST
    divisors = torch.where(scales > 0, scales, 1.0)
    return (block / divisors[:, None]).round().to(torch.int8), scales


def _in_4_bits(block: Tensor) -> tuple[Tensor, Tensor]:
    groups = block.view(len(block), -1, GROUP)
    low, high = groups.aminmax(dim=-1)
    # Codes are chosen for the rounded scale and centre, which are those that the kernel multiplies by.
    scale = ((high - low) / 15).bfloat16().float()
    divisors = torch.where(scale > 0, scale, 1.0)
    centre = (low + _CENTRE_CODE * scale).bfloat16().float()
    codes = ((groups - centre[..., None]) / divisors[..., None] + _CENTRE_CODE).round().clamp(0, 15)
    even, odd = codes.to(torch.uint8).view(len(block), -1, 2).unbind(-1)
    return even | (odd << 4), torch.stack((scale, centre), dim=-1).bfloat16()


class Kernel(Protocol):
    """A weight in the form that one of torch's operators wants."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) f32 or 16 bits -> (B, N) f32 or 16 bits; each row depends on its own row of ``x`` alone."""
        ...


class OneDnnInt8:
    """8-bit integer products of oneDNN: exact sums, at nearly the speed of memory from one to eight rows.

    A row of activations is two rows of 8 bits, what the first leaves over in the second. Reading the weights takes the
    time, so the second costs little, and nothing but the weights' own rounding is lost: a few large activations among
    small ones, which 8 bits do not hold, are no matter.
    """

    name: Final = "oneDNN"

    def __init__(self, weight: QuantizedWeight) -> None:
        rows, columns = weight.shape
        # Laid out for few streams: as fast with one as the layout for one, and faster with eight.
        self._weight = torch.ops.onednn.qlinear_prepack(weight.values.contiguous(), [8, columns])
        self._scales = weight.scales / _LARGEST
        self._zeros = torch.zeros(rows, dtype=torch.int64)
        self._least = torch.finfo(torch.float32).tiny * 256

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, N) f32."""
        x = x.float()
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_min_(self._least)
        scaled = x * (_LARGEST / largest)
        coarse = scaled.round()
        fine = scaled.sub_(coarse).mul_(_FINER).round_()
        activations = torch.cat((coarse, fine)).add_(_MIDDLE).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            activations,
            1.0,
            _MIDDLE,
            self._weight,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        first, second = y.chunk(2)
        return first.add_(second, alpha=1 / _FINER).mul_(largest)


class Int8Pack:
    """Activations in bf16, weights in 8 bits: for CPUs without 8-bit products, and for ARM."""

    name: Final = "int8pack"

    def __init__(self, weight: QuantizedWeight) -> None:
        self._values = weight.values.contiguous()
        self._scales = weight.scales.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, N) bf16."""
        return torch._weight_int8pack_mm(x.bfloat16(), self._values, self._scales)


class Int4Pack:
    """Activations in bf16, weights in 4 bits."""

    name: Final = "int4pack"

    def __init__(self, weight: QuantizedWeight) -> None:
        rows, columns = weight.shape
        self._weight = torch.empty(rows, columns // 2, dtype=torch.uint8)
        for start in range(0, rows, _UNPACKED_ROWS):
            codes = unpacked(weight.values[start : start + _UNPACKED_ROWS]).int()
            self._weight[start : start + _UNPACKED_ROWS] = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._scales = weight.scales.transpose(0, 1).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, N) bf16."""
        return torch._weight_int4pack_mm_for_cpu(x.bfloat16(), self._weight, GROUP, self._scales)


class Plain:
    """Any CPU: a few rows at a time are brought to f32, so that memory is saved and no time."""

    name: Final = "plain"

    def __init__(self, weight: QuantizedWeight) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, N) f32."""
        rows = self._weight.shape[0]
        blocks = (
            self._weight.rows(start, min(start + _UNPACKED_ROWS, rows)) for start in range(0, rows, _UNPACKED_ROWS)
        )
        # One stream at a time: a product of several rows sums in another order than that of one.
        x = x.float()
        return torch.cat([torch.stack([block @ row for row in x]) for block in (b.dequantized() for b in blocks)], 1)


MakeKernel = Callable[[QuantizedWeight], Kernel]

CANDIDATES: Final[dict[Quantize, tuple[type[Vnni | OneDnnInt8 | Int8Pack | Int4Pack | Plain], ...]]] = {
    "int8": (Vnni, OneDnnInt8, Int8Pack, Plain),
    "int4": (Vnni, Int4Pack, Plain),
}
"""Kernels in the order of preference."""


@cache
def best_kernel(kind: Quantize, columns: int = LANES) -> type[Vnni | OneDnnInt8 | Int8Pack | Int4Pack | Plain]:
    """The first kernel that takes rows of ``columns`` weights, is there for this CPU, and gives right numbers on it."""
    return next(kernel for kernel in _working(kind) if kernel is not Vnni or columns % LANES == 0)


@cache
def _working(kind: Quantize) -> tuple[type[Vnni | OneDnnInt8 | Int8Pack | Int4Pack | Plain], ...]:
    return tuple(kernel for kernel in CANDIDATES[kind] if works(kernel, kind))


def works(kernel: MakeKernel, kind: Quantize) -> bool:
    """Whether ``kernel`` runs here and gives right numbers, those of the largest values included.

    Without an instruction made for it, an 8-bit product may be summed in 16 bits, which overflow.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (2 * _INT4_ROWS, 8 * GROUP), generator=generator).float()
    x = torch.randint(-127, 128, (3, 8 * GROUP), generator=generator).float()
    weight[:, 0], x[:, 0] = _LARGEST, _LARGEST
    weight[0], x[0] = _LARGEST, _LARGEST
    stored = quantize(weight, kind)
    expected = x @ stored.dequantized().t()
    try:
        found = kernel(stored)(x).float()
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return bool((found - expected).norm() <= 0.01 * expected.norm())


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is held in 8 or 4 bits; nothing to train, nothing to save."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None, kernel: MakeKernel | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kind = weight.kind
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.kernel = (kernel or best_kernel(weight.kind, self.in_features))(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) in the type of ``x``."""
        y = self.kernel(x.reshape(-1, self.in_features)).to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for printing a model."""
        return f"{self.in_features}, {self.out_features}, {self.kind}"
