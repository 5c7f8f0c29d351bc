"""The nearest centroid to each row as two Triton kernels, for a GPU; imported only where Triton is.

Distances are products with split weights (`moshi_server.model.split`), and are never written: each program keeps the
least of its own, and the second kernel takes the least of those and what the row has left over.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moshi_server.model.split import REST, SplitWeight

_REST = tl.constexpr(REST)
_MOST = tl.constexpr(65504.0)


@triton.jit
def _distance_kernel(
    x, high, low, half_norms, least, nearest, rows, unit,
    BINS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(BINS, BLOCK_N)
    program = tl.program_id(0)
    row = (program // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = program % tiles
    centroid = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    known = centroid < BINS
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + row[:, None] * WIDTH + k[None, :], mask=inside[:, None] & (k < WIDTH)[None, :], other=0.0)
        a = tl.minimum(tl.maximum(a, -_MOST), _MOST)
        a_high = a.to(tl.float16)
        a_low = ((a - a_high.to(tl.float32)) * _REST).to(tl.float16)
        at = k[:, None] * BINS + centroid[None, :]
        w_there = (k < WIDTH)[:, None] & known[None, :]
        w_high = tl.load(high + at, mask=w_there, other=0.0)
        w_low = tl.load(low + at, mask=w_there, other=0.0)
        part = tl.dot(a_low, w_high, tl.dot(a_high, w_low))  # short sums, as in `conv_kernels`
        sums += tl.dot(a_high, w_high, part * (1 / _REST))
    norms = tl.load(half_norms + centroid, mask=known, other=float("inf"))
    distance = norms[None, :] - sums * unit
    shortest = tl.min(distance, axis=1)
    first = tl.min(tl.where(distance == shortest[:, None], centroid[None, :], BINS), axis=1)
    tl.store(least + row * tiles + tile, shortest, mask=inside)
    tl.store(nearest + row * tiles + tile, tl.minimum(first, BINS - 1), mask=inside)


@triton.jit
def _take_kernel(
    least, nearest, x, centroids, codes, codes_stride,
    BINS: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, LANES)
    there = tile < TILES
    distance = tl.load(least + row * TILES + tile, mask=there, other=float("inf"))
    index = tl.load(nearest + row * TILES + tile, mask=there, other=BINS)
    code = tl.min(tl.where(there & (distance == tl.min(distance, axis=0)), index, BINS), axis=0)
    code = tl.minimum(code, BINS - 1)
    tl.store(codes + row * codes_stride, code.to(tl.int64))
    lane = tl.arange(0, WIDE)
    inside = lane < WIDTH
    value = tl.load(x + row * WIDTH + lane, mask=inside, other=0.0)
    taken = tl.load(centroids + code.to(tl.int64) * WIDTH + lane, mask=inside, other=0.0)
    tl.store(x + row * WIDTH + lane, value - taken, mask=inside)


def nearest(
    x: Tensor,
    centroids: Tensor,
    turned: SplitWeight,
    half_norms: Tensor,
    codes: Tensor,
    *,
    shape: tuple[int, int, int, int, int] | None = None,
) -> None:
    """Find each row's nearest centroid, the first of equals, and take it away from the row.

    Args:
        x: (N, D) f32, contiguous; becomes what is left over.
        centroids: (bins, D) f32, contiguous.
        turned: they again, (D, bins), split.
        half_norms: (bins,) f32, half their squared lengths.
        codes: (N,) int64 that are written, at any stride.
        shape: as `conv_kernels.convolve`'s.
    """
    rows, width = x.shape
    bins = len(centroids)
    block_m, block_n, block_k, warps, stages = shape or _shape(rows)
    tiles = triton.cdiv(bins, block_n)
    least = torch.empty(rows, tiles, device=x.device, dtype=torch.float32)
    index = torch.empty(rows, tiles, device=x.device, dtype=torch.int32)
    _distance_kernel[(triton.cdiv(rows, block_m) * tiles,)](
        x, turned.high, turned.low, half_norms, least, index, rows, turned.unit,
        BINS=bins, WIDTH=width, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    _take_kernel[(rows,)](
        least, index, x, centroids, codes, codes.stride(0),
        BINS=bins, TILES=tiles, LANES=triton.next_power_of_2(tiles), WIDTH=width, WIDE=triton.next_power_of_2(width),
        num_warps=1,
    )  # fmt: skip


def _shape(rows: int) -> tuple[int, int, int, int, int]:
    """The fastest that were tried on an H100."""
    return (16, 64, 64, 4, 3) if rows <= 256 else (64, 128, 32, 4, 3)
