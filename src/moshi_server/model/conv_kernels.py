"""A streaming convolution as one Triton kernel, for a GPU; imported only where Triton is, and knows no layer.

With the channels side by side, (B, time, channels), a window is one run of numbers, part of it in the slot's past. The
kernel multiplies windows with the weights as they lie, in f32 made of three TF32 products (about 22 of 24 bits): on an
H100 the library's f32 convolutions, which may not use its matrix units, take several times as long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _conv_kernel(
    x, past, weight, bias, residual, out, slots, rows, count, time,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, WINDOW: tl.constexpr, HOP: tl.constexpr, BEFORE: tl.constexpr,
    ELU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(OUTPUTS, BLOCK_N)
    program = tl.program_id(0)
    row = (program // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (program % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    wanted = column < OUTPUTS
    stream = row // count
    begin = (row % count) * HOP - BEFORE  # of the window, among the numbers that are new
    first = stream.to(tl.int64) * (time * INPUTS) + begin
    if BEFORE > 0:
        slot = tl.load(slots + stream, mask=inside, other=0)
        first_past = slot * BEFORE + begin + BEFORE
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, WINDOW, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = inside[:, None] & (k < WINDOW)[None, :]
        if BEFORE > 0:
            new = (begin[:, None] + k[None, :]) >= 0
            a = tl.load(x + first[:, None] + k[None, :], mask=there & new, other=0.0)
        else:
            a = tl.load(x + first[:, None] + k[None, :], mask=there, other=0.0)
        if ELU:
            a = tl.where(a < 0, tl.exp(a) - 1, a)
        if BEFORE > 0:  # what is kept of the past has been through all this
            a += tl.load(past + first_past[:, None] + k[None, :], mask=there & (new == 0), other=0.0)
        w = tl.load(
            weight + k[:, None] * OUTPUTS + column[None, :], mask=(k < WINDOW)[:, None] & wanted[None, :], other=0.0
        )
        sums = tl.dot(a, w, sums, input_precision="tf32x3")
    if BIAS:
        sums += tl.load(bias + column, mask=wanted, other=0.0)[None, :]
    place = row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
    kept = inside[:, None] & wanted[None, :]
    if RESIDUAL:
        sums += tl.load(residual + place, mask=kept, other=0.0)
    tl.store(out + place, sums, mask=kept)


@triton.jit
def _keep_kernel(
    x, past, slots, size, BEFORE: tl.constexpr, ELU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    stream = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = index < BEFORE
    value = tl.load(x + (stream + 1) * size - BEFORE + index, mask=kept, other=0.0)
    if ELU:
        value = tl.where(value < 0, tl.exp(value) - 1, value)
    tl.store(past + tl.load(slots + stream) * BEFORE + index, value, mask=kept)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    *,
    past: Tensor | None = None,
    slots: Tensor | None = None,
    elu: bool = False,
    residual: Tensor | None = None,
    shape: tuple[int, int, int, int, int] | None = None,
) -> Tensor:
    """Convolve the next piece of each stream, f32.

    Args:
        x: (B, time, in), contiguous.
        weight: (kernel * in, out), contiguous: for each sample of the window, for each channel.
        bias: (out,).
        stride: samples from window to window.
        past: (slots, history, in) with history <= time: what comes before ``x``; replaced for the next piece.
        slots: (B,) int64, the rows of ``past``.
        elu: put ``x`` through an exponential linear unit first.
        residual: (B, windows, out), contiguous, added to the result.
        shape: rows, outputs and numbers of a window that a program takes at once, its warps and its loads under way.

    Returns:
        (B, windows, out), contiguous.
    """
    batch, time, inputs = x.shape
    window, outputs = weight.shape
    before = 0 if past is None else past.shape[1] * inputs
    count = (time + before // inputs - window // inputs) // stride + 1
    rows = batch * count
    out = torch.empty(batch, count, outputs, device=x.device, dtype=x.dtype)
    block_m, block_n, block_k, warps, stages = shape or _shape(rows, outputs, window)
    _conv_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(outputs, block_n),)](
        x, x if past is None else past, weight, x if bias is None else bias, x if residual is None else residual, out,
        x if slots is None else slots, rows, count, time,
        INPUTS=inputs, OUTPUTS=outputs, WINDOW=window, HOP=stride * inputs, BEFORE=before,
        ELU=elu, BIAS=bias is not None, RESIDUAL=residual is not None,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if past is not None and before:
        _keep_kernel[(batch, triton.cdiv(before, 1024))](
            x, past, slots, time * inputs, BEFORE=before, ELU=elu, BLOCK=1024
        )
    return out


def _shape(rows: int, outputs: int, window: int) -> tuple[int, int, int, int, int]:
    """The fastest of the rows, outputs and numbers at once, warps and stages that were tried on an H100."""
    if window <= 16:
        return 32, 64, 16, 2, 4
    if outputs <= 32:
        return 64, 32, 32, 4, 3
    if window > 6144:
        return (32, 64, 64, 4, 3) if rows <= 512 else (32, 64, 32, 2, 4)
    if rows <= 512:
        return 16, 64, 64, 4, 4
    return 64, 64, 16, 2, 4
