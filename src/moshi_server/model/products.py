"""A causal convolution as matrix products, for a CPU; it knows no stream and no state.

With the channels side by side, (B, time, channels), the samples under a window lie in one piece, and so do several
windows. The library's convolution is two to ten times slower at the sizes of one 80 ms frame: it rearranges weights
and samples at each call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NARROW = 16
"""Layers no wider make two outputs in one row of the product: half of a vector register would stay empty."""
_MANY = 16
"""From so many rows on, two products over blocks of samples cost less than one over copied windows."""


class ConvProducts:
    """The weights of ``conv`` as matrices. Make it anew after they change; its ``dilation`` is 1.

    Where it can, ``conv.weight`` becomes a view of the same memory.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        self.kernel, self.stride, self.outputs = kernel, stride, conv.out_channels
        weight = conv.weight.detach().permute(2, 1, 0).contiguous()  # (kernel, in, out)
        self.weight = weight.view(-1, self.outputs)
        self.bias = None if conv.bias is None else conv.bias.detach()
        conv.weight.data = weight.permute(2, 1, 0)
        self.pack = 1
        if stride == 1 and kernel > 1:
            self.pack = 4 if conv.in_channels == 1 else 2 if self.outputs <= _NARROW else 1
        self.packed = _pack(weight, stride, self.pack)
        self.packed_bias = None if self.bias is None else self.bias.repeat(self.pack)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, time, in) contiguous, history first -> (B, (time - kernel) / stride + 1, out) contiguous."""
        batch, time, _ = x.shape
        count = (time - self.kernel) // self.stride + 1
        pack = self.pack if count % self.pack == 0 else 1
        weight, bias = (self.packed, self.packed_bias) if pack > 1 else (self.weight, self.bias)
        rows, block = count // pack, pack * self.stride
        if self.kernel > 1 and rows >= _MANY and time == (rows + 1) * block:
            y = _two_products(x.view(batch, rows + 1, -1), weight, bias)
        else:
            y = _one_product(x, rows, block, weight, bias)
        return y.view(batch, count, self.outputs)


def _pack(weight: Tensor, stride: int, pack: int) -> Tensor:
    """(kernel, in, out) -> a matrix for ``pack`` windows at once, ((kernel + (pack - 1) * stride) * in, pack * out)."""
    kernel, inputs, outputs = weight.shape
    packed = weight.new_zeros(kernel + (pack - 1) * stride, inputs, pack, outputs)
    for index in range(pack):
        packed[index * stride : index * stride + kernel, :, index] = weight
    return packed.view(-1, pack * outputs)


def _one_product(x: Tensor, rows: int, block: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A row for each window, which starts ``block`` samples after the last."""
    batch, time, channels = x.shape
    windows = x.as_strided((batch, rows, len(weight)), (time * channels, block * channels, 1))
    flat = windows.reshape(batch * rows, len(weight))
    return torch.mm(flat, weight) if bias is None else torch.addmm(bias, flat, weight)


def _two_products(blocks: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Windows of two blocks each, (B, rows + 1, block): a product with the earlier ones and one with the later."""
    earlier, later = blocks[:, :-1], blocks[:, 1:]
    half = blocks.shape[2]
    before, after = weight[:half], weight[half:]
    if len(blocks) == 1:
        y = torch.mm(later[0], after) if bias is None else torch.addmm(bias, later[0], after)
        return y.addmm_(earlier[0], before)
    shape = (len(blocks), -1, -1)
    after = after.expand(shape)
    y = torch.bmm(later, after) if bias is None else torch.baddbmm(bias, later, after)
    return y.baddbmm_(earlier, before.expand(shape))
