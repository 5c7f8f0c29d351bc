"""Linear layers in f32 for a few rows on a CPU, as fast as their weights are read; it knows no other layer.

The library's products of two rows read memory at two thirds of its speed, and those of sixteen use half of the CPU.
Each row's sums follow one order whatever other rows there are: no stream changes another's numbers by a bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model import jit
from moshi_server.model.jit import LANES, Code, Compiled

MOST_ROWS: Final = 16
"""From more rows on the library is as fast."""
_OUTPUTS: Final = 4
"""Outputs that are summed at once."""
_GROUPS: Final = (4, 2, 1)
"""Rows that are multiplied at once."""
_LEAST: Final = 1 << 17
"""Weights from which this is worth its call."""
_BYTES: Final = 4
_AHEAD: Final = 32768
"""Bytes from where numbers are read to where they are asked for already."""


class FewRows:
    """A weight (out, in), f32, with a bias (out,) or none; both must stay where they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs, self._inputs = weight.shape
        self._weight = weight.detach()
        self._bias = weight.new_zeros(self._outputs) if bias is None else bias.detach()
        self._kernel = _kernel()

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether the kernel can multiply with this weight, on this machine."""
        fits = weight.is_cpu and weight.dtype is torch.float32 and weight.ndim == 2 and weight.is_contiguous()
        outputs, inputs = weight.shape
        whole = inputs % LANES == 0 and outputs % _OUTPUTS == 0
        return fits and whole and weight.numel() >= _LEAST and jit.available()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) f32, contiguous -> (B, out)."""
        rows = len(x)
        out = torch.empty(rows, self._outputs)
        tensors = (x, self._weight, self._bias, out)
        self._kernel(*(tensor.data_ptr() for tensor in tensors), rows, self._inputs, self._outputs)
        return out


class FewRowsLinear(nn.Module):
    """A linear layer with these parameters."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._few = FewRows(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        inputs = x.shape[-1]
        if x.numel() > MOST_ROWS * inputs or x.dtype is not torch.float32 or torch.is_grad_enabled():
            return functional.linear(x, self.weight, self.bias)
        return self._few(x.reshape(-1, inputs).contiguous()).view(*x.shape[:-1], -1)


def speed_up_linears(module: nn.Module) -> None:
    """Replace each linear layer inside ``module`` that the kernel takes; to be done again after weights were moved."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FewRowsLinear) and type(child) is not nn.Linear:
                continue
            if FewRows.takes(child.weight):
                setattr(parent, name, FewRowsLinear(child.weight, child.bias))


@cache
def _kernel() -> Compiled:
    return Compiled("few_rows", _write)


def _write(c: Code, block: Any) -> None:
    x, weight, bias, out = (c.load(c.pointer, block, 8 * n) for n in range(4))
    rows, inputs, outputs = (c.load(c.i64, block, 8 * n) for n in range(4, 7))
    first, last = c.share(c.b.sdiv(outputs, c.size(_OUTPUTS)))
    row_bytes = c.b.mul(inputs, c.size(_BYTES))
    with c.loop(first, last) as index:
        column = c.b.mul(index, c.size(_OUTPUTS * _BYTES))
        weights = [
            c.at(weight, c.b.mul(row_bytes, c.b.add(c.b.mul(index, c.size(_OUTPUTS)), c.size(n))))
            for n in range(_OUTPUTS)
        ]
        start = c.size(0)
        for group in _GROUPS:
            # The first takes as many as there are, each other one at most once.
            left = c.b.sub(rows, start)
            stop = c.b.add(start, c.b.sub(left, c.b.srem(left, c.size(group))))
            with c.loop(start, stop, group) as row:
                sums = partial_sums(c, c.at(x, c.b.mul(row, row_bytes)), weights, inputs, row_bytes, group)
                for n, found in enumerate(sums):
                    place = c.b.mul(c.b.add(row, c.size(n)), c.b.mul(outputs, c.size(_BYTES)))
                    total = c.b.fadd(four_totals(c, found), c.load(c.vector(c.f32, _OUTPUTS), bias, column))
                    c.store(total, out, c.b.add(place, column))
            start = stop


def partial_sums(c: Code, x: Any, weights: list[Any], inputs: Any, row_bytes: Any, group: int) -> list[list[Any]]:
    """For each of ``group`` rows and each output, 16 partial sums."""
    floats = c.vector(c.f32)
    sums = [[c.variable(c.all(floats, 0.0)) for _ in weights] for _ in range(group)]
    rows = [c.at(x, c.b.mul(row_bytes, c.size(n))) for n in range(group)]
    with c.loop(0, inputs, LANES) as n:
        place = c.b.mul(n, c.size(_BYTES))
        loaded = [c.load(floats, weight, place) for weight in weights]
        for weight in weights:
            c.prefetch(c.at(weight, place), _AHEAD)
        for row, totals in zip(rows, sums, strict=True):
            here = c.load(floats, row, place)
            for value, total in zip(loaded, totals, strict=True):
                c.b.store(c.fma(here, value, c.value(total)), total)
    return [[c.value(total) for total in totals] for totals in sums]


def four_totals(c: Code, partial: list[Any]) -> Any:
    """The totals of four vectors, as one vector of four."""
    kind = c.vector(c.f32, len(partial))
    found = c.ir.Constant(kind, c.ir.Undefined)
    for n, value in enumerate(partial):
        found = c.b.insert_element(found, c.total(value), c.ir.Constant(c.i32, n))
    return found
