"""A streaming convolution as one Triton kernel, for a GPU; imported only where Triton is, and knows no layer.

With the channels side by side, (B, time, channels), a window is one run of numbers, part of it in the slot's past. The
kernel multiplies windows with split weights (`moshi_server.model.split`), in f32 made of three f16 products: on an H100
the library's f32 convolutions, which may not use its matrix units, take several times as long. Windows of a few numbers
are multiplied as they are, by three TF32 products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moshi_server.model.split import REST, SplitWeight

_REST = tl.constexpr(REST)
_MOST = tl.constexpr(65504.0)  # of f16; what is larger counts as that


@triton.jit
def _split_kernel(
    x, past, high, low, bias, residual, out, slots, rows, count, time, unit,
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
    place = x + stream.to(tl.int64) * (time * INPUTS) + begin
    if BEFORE > 0:
        place_before = past + tl.load(slots + stream, mask=inside, other=0) * BEFORE + begin + BEFORE
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, WINDOW, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = inside[:, None] & (k < WINDOW)[None, :]
        if BEFORE > 0:
            new = (begin[:, None] + k[None, :]) >= 0
            a = tl.load(tl.where(new, place[:, None], place_before[:, None]) + k[None, :], mask=there, other=0.0)
            if ELU:  # what is kept of the past has been through it
                a = tl.where(new & (a < 0), tl.exp(a) - 1, a)
        else:
            a = tl.load(place[:, None] + k[None, :], mask=there, other=0.0)
            if ELU:
                a = tl.where(a < 0, tl.exp(a) - 1, a)
        a = tl.minimum(tl.maximum(a, -_MOST), _MOST)
        a_high = a.to(tl.float16)
        a_low = ((a - a_high.to(tl.float32)) * _REST).to(tl.float16)
        at = k[:, None] * OUTPUTS + column[None, :]
        if WINDOW % BLOCK_K == 0 and OUTPUTS % BLOCK_N == 0:
            w_high = tl.load(high + at)
            w_low = tl.load(low + at)
        else:
            known = (k < WINDOW)[:, None] & wanted[None, :]
            w_high = tl.load(high + at, mask=known, other=0.0)
            w_low = tl.load(low + at, mask=known, other=0.0)
        # The matrix units cut off what does not fit a sum, so that long sums drift: these are short.
        part = tl.dot(a_low, w_high, tl.dot(a_high, w_low))
        sums += tl.dot(a_high, w_high, part * (1 / _REST))
    sums = sums * unit
    if BIAS:
        sums += tl.load(bias + column, mask=wanted, other=0.0)[None, :]
    where = row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
    kept = inside[:, None] & wanted[None, :]
    if RESIDUAL:
        sums += tl.load(residual + where, mask=kept, other=0.0)
    tl.store(out + where, sums, mask=kept)


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
    weight: Tensor | SplitWeight,
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
        weight: (kernel * in, out), contiguous: for each sample of the window, for each channel; as it is, or split.
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
    window, outputs = (weight.high if isinstance(weight, SplitWeight) else weight).shape
    before = 0 if past is None else past.shape[1] * inputs
    count = (time + before // inputs - window // inputs) // stride + 1
    rows = batch * count
    out = torch.empty(batch, count, outputs, device=x.device, dtype=x.dtype)
    block_m, block_n, block_k, warps, stages = shape or _shape(rows, outputs, window, isinstance(weight, SplitWeight))
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(outputs, block_n),)
    others = (
        x if bias is None else bias, x if residual is None else residual, out, x if slots is None else slots,
        rows, count, time,
    )  # fmt: skip
    shapes = {
        "INPUTS": inputs, "OUTPUTS": outputs, "WINDOW": window, "HOP": stride * inputs, "BEFORE": before,
        "ELU": elu, "BIAS": bias is not None, "RESIDUAL": residual is not None,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages,
    }  # fmt: skip
    earlier = x if past is None else past
    if isinstance(weight, SplitWeight):
        _split_kernel[grid](x, earlier, weight.high, weight.low, *others, weight.unit, **shapes)
    else:
        _conv_kernel[grid](x, earlier, weight, *others, **shapes)
    if past is not None and before:
        _keep_kernel[(batch, triton.cdiv(before, 1024))](
            x, past, slots, time * inputs, BEFORE=before, ELU=elu, BLOCK=1024
        )
    return out


def _shape(rows: int, outputs: int, window: int, halves: bool) -> tuple[int, int, int, int, int]:
    """The fastest of the rows, outputs and numbers at once, warps and stages that were tried on an H100."""
    if halves:
        return split_shape(rows, outputs, window)
    if window <= 16:
        return 32, 64, 16, 2, 4
    if outputs <= 32:
        return 64, 32, 32, 4, 3
    if window > 6144:
        return (32, 64, 64, 4, 3) if rows <= 512 else (32, 64, 32, 2, 4)
    if rows <= 512:
        return 16, 64, 64, 4, 4
    return 64, 64, 16, 2, 4


def split_shape(rows: int, outputs: int, window: int) -> tuple[int, int, int, int, int]:
    """As `_shape`, for split weights: large tiles where there are enough of them for the whole card."""
    if outputs <= 16:
        return (64, 16, 32, 4, 4) if rows > 4096 else (64, 16, 64, 4, 3)
    if outputs <= 32:
        return (64, 32, 32, 4, 3) if rows > 8192 else (16, 32, 64, 4, 4)
    if triton.cdiv(rows, 64) * triton.cdiv(outputs, 128) >= 96:
        return (64, 64, 32, 4, 4) if outputs <= 64 or window <= 128 else (64, 128, 32, 4, 3)
    programs = triton.cdiv(rows, 16) * triton.cdiv(outputs, 64)
    return (16, 32, 128, 4, 3) if programs <= 64 and outputs >= 512 else (16, 64, 64, 4, 3)
