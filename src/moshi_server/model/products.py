"""A causal convolution as matrix products, for a CPU; it knows no stream and no state.

With the channels side by side, (B, time, channels), the samples under a window lie in one piece, and so do several
windows. The library's convolution is two to ten times slower at the sizes of one 80 ms frame: it rearranges weights
and samples at each call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.few_rows import MOST_ROWS, FewRows

_NARROW = 16
"""Layers no wider make two outputs in one row of the product: half of a vector register would stay empty."""
_MANY = 16
"""From so many rows on, a few products over blocks of samples cost less than one over copied windows."""
_WIDE = 32
"""So many channels make a product of each sample of the window worth its call."""
_LARGE = 1 << 20
"""So many weights are read from memory at each call, by a product of few rows: fastest output by output."""


class ConvProducts:
    """The weights of ``conv`` as matrices. Make it anew after they change; its ``dilation`` is 1.

    Where it can, ``conv.weight`` becomes a view of the same memory.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        self.kernel, self.stride, self.outputs = kernel, stride, conv.out_channels
        self.bias = None if conv.bias is None else conv.bias.detach()
        if conv.weight.numel() >= _LARGE:
            laid = conv.weight.detach().permute(0, 2, 1).contiguous()  # (out, kernel, in)
            conv.weight.data = laid.permute(0, 2, 1)
            weight = laid.permute(1, 2, 0)
        else:
            weight = conv.weight.detach().permute(2, 1, 0).contiguous()  # (kernel, in, out)
            conv.weight.data = weight.permute(2, 1, 0)
        self.few: FewRows | None = None
        if conv.weight.numel() >= _LARGE and FewRows.takes(weight.flatten(0, 1).t()):
            self.few = FewRows(weight.flatten(0, 1).t(), self.bias)
        self.by_sample = weight
        self.weight = weight.flatten(0, 1)
        self.pack = 1
        if stride == 1 and kernel > 1:
            self.pack = 4 if conv.in_channels == 1 else 2 if self.outputs <= _NARROW else 1
        self.packed = _pack(weight, stride, self.pack) if self.pack > 1 else self.weight
        self.packed_bias = None if self.bias is None else self.bias.repeat(self.pack)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, time, in) contiguous, history first -> (B, (time - kernel) / stride + 1, out)."""
        batch, time, _ = x.shape
        count = (time - self.kernel) // self.stride + 1
        pack = self.pack if count % self.pack == 0 else 1
        weight, bias = (self.packed, self.packed_bias) if pack > 1 else (self.weight, self.bias)
        rows, block = count // pack, pack * self.stride
        if self.few is not None and batch * rows <= MOST_ROWS:
            return self.few(_windows(x, rows, block, self.kernel)).view(batch, count, -1)
        if pack == self.stride == 1 < self.kernel and x.shape[2] >= _WIDE and batch * rows >= _MANY:
            return _shifted_products(x, count, self.by_sample, bias)
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


def _shifted_products(x: Tensor, count: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product for each sample of the window, over all streams at once: the rows between two streams are left out."""
    batch, time, channels = x.shape
    y = x.new_empty(batch * time, weight.shape[2])
    flat, rows = x.view(-1, channels), batch * time - len(weight) + 1
    first = y[:rows]
    torch.mm(flat[:rows], weight[0], out=first) if bias is None else torch.addmm(
        bias, flat[:rows], weight[0], out=first
    )
    for index in range(1, len(weight)):
        first.addmm_(flat[index : index + rows], weight[index])
    return y.view(batch, time, -1)[:, :count]


def _one_product(x: Tensor, rows: int, block: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A row for each window, which starts ``block`` samples after the last."""
    return functional.linear(_windows(x, rows, block, len(weight) // x.shape[2]), weight.t(), bias)


def _windows(x: Tensor, rows: int, block: int, kernel: int) -> Tensor:
    """The samples under every window side by side, (B * rows, kernel * in)."""
    batch, time, channels = x.shape
    windows = x.as_strided((batch, rows, kernel * channels), (time * channels, block * channels, 1))
    # Copied here: products of rows that overlap copy them too, but up to forty times slower.
    return windows.clone(memory_format=torch.contiguous_format).view(batch * rows, -1)


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
