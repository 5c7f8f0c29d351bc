"""Weights in two halves of 16 bits, for products in f32 on matrix units that take no f32; it knows no layer's meaning.

A number is the nearest f16 one, and 2048 times what that leaves over, again as f16: 22 of 24 bits. A product is three
of f16 numbers, and its sums are f32. Source of the idea: Ootomo and Yokota, https://arxiv.org/abs/2203.03341.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

REST = 2048.0
"""By how much what the first half leaves over is multiplied: it then has the first half's range."""
_LARGEST = 12
"""Weights are scaled to less than two to the power of this, far inside the range of f16."""


class SplitWeight(NamedTuple):
    """A matrix (K, N): ``unit * (high + low / REST)``, the halves f16, contiguous."""

    high: Tensor
    low: Tensor
    unit: float  # a power of two


def split(weight: Tensor) -> SplitWeight:
    """The halves of ``weight`` (K, N), f32."""
    peak = float(weight.abs().max()) if weight.numel() else 0.0
    unit = 2.0 ** (math.frexp(peak)[1] - _LARGEST) if peak > 0 else 1.0
    scaled = weight / unit
    high = scaled.half()
    low = ((scaled - high.float()) * REST).half()
    return SplitWeight(high.contiguous(), low.contiguous(), unit)


class SplitLinear(nn.Module):
    """A linear layer in f32 whose weights are held split; takes no more memory than it did."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        halves = split(linear.weight.detach().t())
        self.register_buffer("high", halves.high, persistent=False)
        self.register_buffer("low", halves.low, persistent=False)
        self._unit = halves.unit
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) f32 on a GPU -> (..., out)."""
        from moshi_server.model.conv_kernels import convolve

        weight = SplitWeight(self.get_buffer("high"), self.get_buffer("low"), self._unit)
        rows = x.reshape(1, -1, x.shape[-1]).contiguous()
        return convolve(rows, weight, self.bias, 1).view(*x.shape[:-1], -1)


def split_linears(module: nn.Module) -> None:
    """Replace each linear layer inside ``module``, f32 and on a GPU."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype is torch.float32:
                setattr(parent, name, SplitLinear(child))
