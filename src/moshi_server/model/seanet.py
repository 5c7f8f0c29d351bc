"""SEANet: the convolutional encoder from waveform to latent frames and its mirror; shapes are (B, channels, time)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.conv import CausalConv1d, CausalConvTranspose1d
from moshi_server.model.streaming import State, StreamingModule, branch

_LARGE = 6000
"""Elements from which the calls cost less than the library's slower function."""


@dataclass(frozen=True)
class SeanetSpec:
    """Sizes of a SEANet; the defaults are Kyutai's Mimi v0.1.

    ``ratios`` are the decoder's upsampling factors in order; the encoder divides by them in reverse.
    Every level doubles the width, beginning with ``filters`` next to the waveform, and ends in ``dimension``.
    """

    dimension: int = 512
    filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    residual_layers: int = 1
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    dilation_base: int = 2
    compress: int = 2

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.ratios)


_CONVOLUTIONS = (CausalConv1d, CausalConvTranspose1d)


class Elu(nn.Module):
    """The exponential linear unit: x where it is positive, exp(x) - 1 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if x.requires_grad or not x.is_cpu or x.dtype is not torch.float32 or x.numel() < _LARGE:
            return functional.elu(x)
        # The library takes expm1, which costs more than these four passes. They differ by no more than f32's 6e-8.
        y = x.clamp_max(0).exp_().sub_(1)
        return torch.maximum(x, y, out=y)


class Chain(StreamingModule):
    """Layers one after another, streaming ones and pointwise ones. State names are the layers' positions."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run every layer over the whole sequence."""
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, x: Tensor, state: State, slots: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Run every layer over the next piece of each slot; the last, a convolution, adds ``residual``."""
        inner = branch(state, "layers")
        last = len(self.layers) - 1
        elu = False
        for position, layer in enumerate(self.layers):
            here = branch(inner, str(position))
            if isinstance(layer, CausalConv1d):
                x = layer.step(x, here, slots, elu=elu, residual=residual if position == last else None)
                elu = False
            elif isinstance(layer, CausalConvTranspose1d):
                x = layer.step(x, here, slots, elu=elu)
                elu = False
            elif isinstance(layer, StreamingModule):
                x = layer.step(x, here, slots)
            elif x.is_cuda and position < last and isinstance(self.layers[position + 1], _CONVOLUTIONS):
                elu = True  # one kernel does both
            else:
                x = layer(x)
        return x


class ResidualBlock(StreamingModule):
    """x + a narrow two-convolution branch of it: one wide in time, one pointwise."""

    def __init__(self, width: int, spec: SeanetSpec, depth: int) -> None:
        super().__init__()
        hidden = width // spec.compress
        dilation = spec.dilation_base**depth
        self.block = Chain(
            [
                Elu(),
                CausalConv1d(width, hidden, spec.residual_kernel_size, dilation=dilation),
                Elu(),
                CausalConv1d(hidden, width, 1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, T) -> the same shape."""
        y: Tensor = x + self.block(x)
        return y

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """(B, width, T) -> the same shape."""
        return self.block.step(x, branch(state, "block"), slots, residual=x)


class SeanetEncoder(Chain):
    """Waveform (B, 1, hop * T) -> latent frames (B, dimension, T)."""

    def __init__(self, spec: SeanetSpec) -> None:
        width = spec.filters
        layers: list[nn.Module] = [CausalConv1d(1, width, spec.kernel_size)]
        for ratio in reversed(spec.ratios):
            layers += [ResidualBlock(width, spec, depth) for depth in range(spec.residual_layers)]
            layers += [Elu(), CausalConv1d(width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        layers += [Elu(), CausalConv1d(width, spec.dimension, spec.last_kernel_size)]
        super().__init__(layers)


class SeanetDecoder(Chain):
    """Latent frames (B, dimension, T) -> waveform (B, 1, hop * T)."""

    def __init__(self, spec: SeanetSpec) -> None:
        width = spec.filters * 2 ** len(spec.ratios)
        layers: list[nn.Module] = [CausalConv1d(spec.dimension, width, spec.kernel_size)]
        for ratio in spec.ratios:
            layers += [Elu(), CausalConvTranspose1d(width, width // 2, 2 * ratio, stride=ratio)]
            width //= 2
            layers += [ResidualBlock(width, spec, depth) for depth in range(spec.residual_layers)]
        layers += [Elu(), CausalConv1d(width, 1, spec.last_kernel_size)]
        super().__init__(layers)
