"""Triton kernels of attention over rings that stay where they are; imported only where Triton is.

Two launches a layer: `rotate_and_write` turns queries and keys and puts keys and values into the ring, `attend` lets
each query look at as much of its slot's ring as is written. The numbers are those of `transformer.Attention` with the
scores kept in f32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moshi_server.model.ring_attention import Ring

LOG2_E = 1.4426950408889634
_FEW_PROGRAMS = 128  # fewer than there are processors: each is to have all its loads under way


@triton.jit
def _write_kernel(
    qkv, turn, q_out, ring, scales, slots, start, row_stride, ring_stride, scale_stride, context,
    STEPS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    GROUP: tl.constexpr, ROPE: tl.constexpr, EIGHT_BIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # of B * STEPS
    stream = row // STEPS
    slot = tl.load(slots + stream)
    entry = ((tl.load(start + stream) + row % STEPS) % context).to(tl.int32)
    head = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    lane = tl.arange(0, 2 * HALF)
    there = (head < HEADS + 2 * KV_HEADS)[:, None] & (lane < WIDTH)[None, :]
    x = tl.load(qkv + row * row_stride + head[:, None] * WIDTH + lane[None, :], mask=there, other=0.0)
    if ROPE:
        even, odd = tl.split(tl.reshape(x.to(tl.float32), (GROUP, HALF, 2)))
        pair = tl.arange(0, HALF)
        turns = (head < HEADS + KV_HEADS)[:, None] & (pair < WIDTH // 2)[None, :]
        cos = tl.load(turn + row * WIDTH + 2 * pair[None, :] + tl.zeros_like(head)[:, None], mask=turns, other=1.0)
        sin = tl.load(turn + row * WIDTH + 2 * pair[None, :] + 1 + tl.zeros_like(head)[:, None], mask=turns, other=0.0)
        x = tl.interleave(even * cos - odd * sin, even * sin + odd * cos).to(qkv.dtype.element_ty)
    query = there & (head < HEADS)[:, None]
    tl.store(q_out + (row * HEADS + head[:, None]) * WIDTH + lane[None, :], x, mask=query)
    kept = there & (head >= HEADS)[:, None]
    vector = (head - HEADS) * context + entry  # of the slot's 2 * KV_HEADS * context
    place = ring + slot * ring_stride + vector[:, None] * WIDTH + lane[None, :]
    if EIGHT_BIT:
        x = x.to(tl.float32)
        scale = (tl.max(tl.abs(x), axis=1) / 127).to(tl.float16)
        inverse = tl.where(scale > 0, 1 / scale.to(tl.float32), 0.0)
        codes = tl.floor(x * inverse[:, None] + 0.5)
        codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
        tl.store(place, codes.to(tl.int8), mask=kept)
        scaled = (head >= HEADS) & (head < HEADS + 2 * KV_HEADS)
        tl.store(scales + slot * scale_stride + vector, scale, mask=scaled)
    else:
        tl.store(place, x.to(ring.dtype.element_ty), mask=kept)


@triton.jit
def _attend_kernel(
    q, ring, scales, out, slots, start, ring_stride, scale_stride, context, factor,
    STEPS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, EIGHT_BIT: tl.constexpr,
):  # fmt: skip
    # Positions of one query follow each other, so that those who read the same keys run at about the same time.
    program = tl.program_id(0)
    step = program % STEPS
    head = program // STEPS % HEADS
    stream = (program // (STEPS * HEADS)).to(tl.int64)
    slot = tl.load(slots + stream)
    last = (tl.load(start + stream) + STEPS - 1).to(tl.int32)
    count = tl.minimum(last + 1, context)
    lane = tl.arange(0, LANES)
    inside = lane < WIDTH
    row = (stream * STEPS + step) * HEADS + head
    query = tl.load(q + row * WIDTH + lane, mask=inside, other=0.0).to(tl.float32) * factor
    kv_head = head // (HEADS // KV_HEADS)
    keys = ring + slot * ring_stride + kv_head * context * WIDTH
    values = keys + KV_HEADS * context * WIDTH
    key_scales = scales + slot * scale_stride + kv_head * context
    value_scales = key_scales + KV_HEADS * context
    # Each of BLOCK lanes keeps a softmax of its own over the entries it sees: nothing crosses lanes before the end.
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, LANES), tl.float32)
    for first in tl.range(0, count, BLOCK, num_stages=STAGES):
        entry = first + tl.arange(0, BLOCK)
        seen = entry < count
        if STEPS > 1:
            seen = seen & ((last - entry) % context >= STEPS - 1 - step)
        there = seen[:, None] & inside[None, :]
        offset = entry[:, None] * WIDTH + lane[None, :]
        key = tl.load(keys + offset, mask=there, other=0).to(tl.float32)
        value = tl.load(values + offset, mask=there, other=0).to(tl.float32)
        score = tl.sum(key * query[None, :], axis=1)
        if EIGHT_BIT:
            score = score * tl.load(key_scales + entry, mask=seen, other=0).to(tl.float32)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, score)
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        fade = tl.exp2(top - finite)
        weight = tl.exp2(score - finite)
        total = total * fade + weight
        if EIGHT_BIT:
            weight = weight * tl.load(value_scales + entry, mask=seen, other=0).to(tl.float32)
        mixed = mixed * fade[:, None] + weight[:, None] * value
        top = higher
    share = tl.exp2(top - tl.max(top, axis=0))
    y = tl.sum(mixed * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(out + row * WIDTH + lane, y.to(out.dtype.element_ty), mask=inside)


def rotate_and_write(qkv: Tensor, turn: Tensor | None, ring: Ring, slots: Tensor, start: Tensor, heads: int) -> Tensor:
    """Turn queries and keys, put keys and values into the ring.

    Args:
        qkv: (B, T, (H + 2 H_kv) * D), contiguous: a layer's projection.
        turn: (B, T, 1, D/2) complex64 (`transformer.rotation`), or None.
        ring: of ``qkv``'s type, or in 8 bits.
        slots: (B,) int64.
        start: (B,) int64, each stream's next position.
        heads: H.

    Returns:
        the queries (B, T, H, D).
    """
    batch, steps, _ = qkv.shape
    _, _, kv_heads, context, width = ring.values.shape
    q = torch.empty(batch, steps, heads, width, device=qkv.device, dtype=qkv.dtype)
    group = 16 if heads + 2 * kv_heads > 8 else 8
    grid = (batch * steps, triton.cdiv(heads + 2 * kv_heads, group))
    _write_kernel[grid](
        qkv, qkv if turn is None else torch.view_as_real(turn), q, *_pointers(ring),
        slots, start, qkv.stride(1), *_strides(ring), context,
        STEPS=steps, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, HALF=triton.next_power_of_2(width // 2),
        GROUP=group, ROPE=turn is not None, EIGHT_BIT=ring.scales is not None, num_warps=4,
    )  # fmt: skip
    return q


def attend(
    q: Tensor, ring: Ring, slots: Tensor, start: Tensor, *, block: int = 0, warps: int = 0, stages: int = 0
) -> Tensor:
    """Queries (B, T, H, D) over what is written of their slots' rings, the T newest included -> (B, T, H, D).

    Arguments as for `rotate_and_write`; ``block``, ``warps`` and ``stages`` shape the kernel, not its result.
    """
    if not block:
        block, warps, stages = _shape(q, ring)
    batch, steps, heads, width = q.shape
    _, _, kv_heads, context, _ = ring.values.shape
    out = torch.empty_like(q)
    _attend_kernel[(batch * heads * steps,)](
        q, *_pointers(ring), out, slots, start, *_strides(ring), context, LOG2_E * width**-0.5,
        STEPS=steps, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, LANES=triton.next_power_of_2(width),
        BLOCK=block, STAGES=stages, EIGHT_BIT=ring.scales is not None, num_warps=warps,
    )  # fmt: skip
    return out


def _shape(q: Tensor, ring: Ring) -> tuple[int, int, int]:
    """The fastest of the entries at once, warps and stages that were tried on an H100."""
    if q.shape[0] * q.shape[2] <= _FEW_PROGRAMS:
        return 64, 8, 3
    if ring.values.element_size() == 4:
        return 16, 2, 2
    return (32, 4, 3) if ring.scales is not None else (64, 4, 3)


def _pointers(ring: Ring) -> tuple[Tensor, Tensor]:
    return ring.values, ring.values if ring.scales is None else ring.scales


def _strides(ring: Ring) -> tuple[int, int]:
    return ring.values.stride(0), 0 if ring.scales is None else ring.scales.stride(0)
