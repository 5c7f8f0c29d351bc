"""One position of attention over rings that stay where they are, on a CPU; it knows no layer's weights.

One call a layer: queries and keys are turned, keys and values put into the ring, and each query looks at as much of its
slot's ring as is written. The ring is f16, half of what a step reads of it in f32, and sums are f32. The numbers are
those of `transformer.Attention`, each stream's own whatever others run beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from moshi_server.model import jit
from moshi_server.model.jit import LANES, Code, Compiled

DTYPE: Final = torch.float16
"""The ring's type."""
WIDEST: Final = 128
"""Of a head: sums over its width are kept in registers."""
_AHEAD: Final = 4096
"""Bytes from where keys and values are read to where they are asked for already."""
_UNSEEN: Final = -3e38
"""The score of a key that a query must not see."""


def takes(head_dim: int, ring: torch.dtype, device: torch.device) -> bool:
    """Whether there is code here for heads of this width over a ring of this type."""
    fits = head_dim % LANES == 0 and head_dim <= WIDEST and ring is DTYPE
    return fits and device.type == "cpu" and jit.available()


def step(qkv: Tensor, turn: Tensor | None, ring: Tensor, slots: Tensor, start: Tensor, heads: int) -> Tensor:
    """The new position of each stream: (B, (H + 2 H_kv) * D) f32 -> (B, H * D) f32; ``ring`` takes keys and values.

    ``turn`` (B, D / 2) complex64, ``slots`` and ``start`` (B,) int64; ``ring`` (slots, 2, H_kv, context, D) f16.
    """
    _, _, kv_heads, context, width = ring.shape
    qkv = qkv.contiguous()
    turn = None if turn is None else turn.contiguous()
    batch, threads = len(qkv), torch.get_num_threads()
    out = torch.empty(batch, heads * width)
    room = scratch_bytes(heads, kv_heads, width, context)
    scratch = torch.empty(threads, room, dtype=torch.uint8)
    _attend(heads // kv_heads, width, turn is not None)(
        qkv.data_ptr(),
        0 if turn is None else turn.data_ptr(),
        ring.data_ptr(),
        slots.data_ptr(),
        start.data_ptr(),
        out.data_ptr(),
        scratch.data_ptr(),
        room,
        batch,
        kv_heads,
        context,
    )
    return out


@cache
def _attend(group: int, width: int, turned: bool) -> Compiled:
    name = f"attend_{group}_{width}_{int(turned)}"
    return Compiled(name, lambda code, block: _write(code, block, group, width, turned))


def _write(c: Code, block: Any, group: int, width: int, turned: bool) -> None:
    pointers = [c.load(c.pointer, block, 8 * n) for n in range(7)]
    qkv, turn, ring, slots, start, out, scratch = pointers
    room, batch, kv_heads, context = (c.load(c.i64, block, 8 * n) for n in range(7, 11))
    ours = Heads(group, width, kv_heads, context)
    scratch = c.at(scratch, c.b.mul(c.thread(), room))
    first, last = c.share(c.b.mul(batch, kv_heads))
    with c.loop(first, last) as unit:
        stream, head = c.b.sdiv(unit, kv_heads), c.b.srem(unit, kv_heads)
        turns = [c.at(turn, c.b.mul(stream, c.size(4 * width)))] if turned else None
        attend(c, ours, stream, head, qkv, turns, ring, slots, start, out, scratch)


@dataclass(frozen=True)
class Heads:
    """How a layer attends: ``kv_heads`` and ``context`` are i64, the others are known when code is written.

    Attributes:
        group: heads of queries that look at one head of keys and values.
        half: whether the ring is f16, else f32.
    """

    group: int
    width: int
    kv_heads: Any
    context: Any
    half: bool = True

    @property
    def entry(self) -> int:
        """Bytes of a key or a value in the ring."""
        return self.width * (2 if self.half else 4)


def scratch_bytes(heads: int, kv_heads: int, width: int, context: int) -> int:
    """What one thread needs to `attend`."""
    return 4 * (context + LANES + (heads // kv_heads + 1) * width)


def attend(
    c: Code,
    heads: Heads,
    stream: Any,
    head: Any,
    qkv: Any,
    turns: list[Any] | None,
    ring: Any,
    slots: Any,
    start: Any,
    out: Any,
    scratch: Any,
    positions: int = 1,
) -> None:
    """One head of one stream: its keys and values go into the ring, then its queries look at what is there.

    Of several ``positions``, next to each other in ``qkv`` and ``out``, all keys are there before the first one looks,
    which does not see those after it. ``turns`` is where each position's are.
    """
    width, group = heads.width, heads.group
    query, key = scratch, c.at(scratch, 4 * group * width)
    scores = c.at(key, 4 * width)
    bytes_of_head = c.b.mul(heads.context, c.size(heads.entry))
    queries = c.b.mul(heads.kv_heads, c.size(group))
    every = c.b.mul(heads.kv_heads, c.size((group + 2) * 4 * width))
    begun = c.load(c.i64, start, c.b.mul(stream, c.size(8)))
    of_slot = c.b.mul(c.load(c.i64, slots, c.b.mul(stream, c.size(8))), c.b.mul(heads.kv_heads, c.size(2)))
    keys = c.at(ring, c.b.mul(c.b.add(of_slot, head), bytes_of_head))
    values = c.at(keys, c.b.mul(heads.kv_heads, bytes_of_head))
    line = c.b.mul(stream, c.size(positions))  # of qkv and out
    rows = [c.at(qkv, c.b.mul(c.b.add(line, c.size(n)), every)) for n in range(positions)]
    entries = [c.b.srem(c.b.add(begun, c.size(n)), heads.context) for n in range(positions)]
    place = c.b.mul(c.b.add(queries, head), c.size(4 * width))
    for n, (row, entry) in enumerate(zip(rows, entries, strict=True)):
        entry = c.b.mul(entry, c.size(heads.entry))
        _turned(c, c.at(row, place), None if turns is None else turns[n], key, width)
        _kept(c, key, c.at(keys, entry), heads)
        _kept(c, c.at(row, c.b.add(place, c.b.mul(heads.kv_heads, c.size(4 * width)))), c.at(values, entry), heads)
    for n, row in enumerate(rows):
        count = c.b.add(begun, c.size(n + 1))
        count = c.b.select(c.b.icmp_signed("<", count, heads.context), count, heads.context)
        for member in range(group):
            own = c.b.add(c.b.mul(head, c.size(group)), c.size(member))
            _turned(c, c.at(row, c.b.mul(own, c.size(4 * width))), None if turns is None else turns[n], query, width)
            largest = _scores(c, query, keys, count, scores, heads)
            for later in entries[n + 1 :]:  # lies beyond ``count`` unless the ring is full
                c.store(c.ir.Constant(c.f32, _UNSEEN), scores, c.b.mul(later, c.size(4)))
            total = _exponentials(c, scores, count, largest)
            line_of_out = c.b.mul(c.b.add(line, c.size(n)), queries)
            target = c.at(out, c.b.mul(c.b.add(line_of_out, own), c.size(4 * width)))
            _mixed(c, scores, values, count, total, target, heads)


def _turned(c: Code, source: Any, turns: Any, target: Any, width: int) -> None:
    """Turn a head by unit complex numbers, even and odd channels as pairs."""
    kind = c.vector(c.f32)
    for n in range(0, width, LANES):
        x = c.load(kind, source, 4 * n)
        if turns is not None:
            turn = c.load(kind, turns, 4 * n)
            cosine, sine = _shuffled(c, turn, "even"), _shuffled(c, turn, "odd")
            signs = c.ir.Constant(kind, [c.ir.Constant(c.f32, (-1.0) ** (lane + 1)) for lane in range(LANES)])
            other = c.b.fmul(c.b.fmul(_shuffled(c, x, "swapped"), sine), signs)
            x = c.fma(x, cosine, other)
        c.store(x, target, 4 * n)


def _shuffled(c: Code, x: Any, how: str) -> Any:
    lanes = [{"even": n & ~1, "odd": n | 1, "swapped": n ^ 1}[how] for n in range(LANES)]
    indices = c.ir.Constant(c.vector(c.i32), [c.ir.Constant(c.i32, lane) for lane in lanes])
    return c.b.shuffle_vector(x, x, indices)


def _kept(c: Code, source: Any, target: Any, heads: Heads) -> None:
    """Write a vector as the ring has them."""
    for n in range(0, heads.width, LANES):
        x = c.load(c.vector(c.f32), source, 4 * n)
        if heads.half:
            c.store(c.b.fptrunc(x, c.vector(c.f16)), target, 2 * n)
        else:
            c.store(x, target, 4 * n)


def _widened(c: Code, source: Any, number: int, heads: Heads) -> Any:
    """Numbers of a key or value, from ``number`` on, as f32."""
    if not heads.half:
        return c.load(c.vector(c.f32), source, 4 * number)
    return c.b.fpext(c.load(c.vector(c.f16), source, 2 * number), c.vector(c.f32))


def _scores(c: Code, query: Any, keys: Any, count: Any, scores: Any, heads: Heads) -> Any:
    """Write the scaled products of the query with ``count`` keys; returns the largest."""
    width = heads.width
    kind = c.vector(c.f32)
    factor = c.all(kind, float(torch.tensor(width**-0.5)))
    parts = [c.b.fmul(c.load(kind, query, 4 * n), factor) for n in range(0, width, LANES)]
    largest = c.variable(c.ir.Constant(c.f32, _UNSEEN))
    with c.loop(0, count) as n:
        key = c.at(keys, c.b.mul(n, c.size(heads.entry)))
        for line in range(0, heads.entry, 64):
            c.prefetch(key, _AHEAD + line)
        sums = [c.b.fmul(part, _widened(c, key, LANES * index, heads)) for index, part in enumerate(parts[:2])]
        for index, part in enumerate(parts[2:], 2):
            sums[index % 2] = c.fma(part, _widened(c, key, LANES * index, heads), sums[index % 2])
        score = c.total(sums[0] if len(sums) == 1 else c.b.fadd(*sums))
        c.store(score, scores, c.b.mul(n, c.size(4)))
        c.b.store(c.call("llvm.maximum.f32", c.f32, c.value(largest), score), largest)
    return c.value(largest)


def _exponentials(c: Code, scores: Any, count: Any, largest: Any) -> Any:
    """Write exp(score - largest) over the scores, with zeros up to a whole register; returns their sum."""
    kind = c.vector(c.f32)
    total = c.variable(c.all(kind, 0.0))
    lanes = c.ir.Constant(c.vector(c.i64), [c.ir.Constant(c.i64, n) for n in range(LANES)])
    with c.loop(0, count, LANES) as n:
        place = c.b.mul(n, c.size(4))
        there = c.b.icmp_signed("<", c.b.add(c.spread(n), lanes), c.spread(count))
        x = exponential(c, c.b.fsub(c.load(kind, scores, place), c.spread(largest)))
        x = c.b.select(there, x, c.all(kind, 0.0))
        c.store(x, scores, place)
        c.b.store(c.b.fadd(c.value(total), x), total)
    return c.total(c.value(total))


def exponential(c: Code, x: Any) -> Any:
    """E to the ``x`` <= 0, of which less than -87 counts as -87.

    It is two to a whole number times a polynomial: e^r for |r| <= ln 2 / 2, to f32's last bits.
    """
    kind = x.type
    x = c.call(f"llvm.maximum.v{kind.count}f32", kind, x, c.all(kind, -87.0))
    whole = c.call(f"llvm.rint.v{kind.count}f32", kind, c.b.fmul(x, c.all(kind, 1.4426950216293335)))
    rest = c.fma(whole, c.all(kind, -0.693359375), x)
    rest = c.fma(whole, c.all(kind, 2.1219444170128554e-4), rest)
    result = c.all(kind, float(torch.tensor(1 / 5040)))
    for divisor in (720, 120, 24, 6, 2, 1, 1):
        result = c.fma(result, rest, c.all(kind, float(torch.tensor(1 / divisor))))
    ints = c.vector(c.i32, kind.count)
    power = c.b.shl(c.b.add(c.b.fptosi(whole, ints), c.all(ints, 127)), c.all(ints, 23))
    return c.b.fmul(result, c.b.bitcast(power, kind))


def _mixed(c: Code, scores: Any, values: Any, count: Any, total: Any, target: Any, heads: Heads) -> None:
    """Write the sum of ``count`` values, each times its weight, over ``total``."""
    kind = c.vector(c.f32)
    sums = [c.variable(c.all(kind, 0.0)) for _ in range(0, heads.width, LANES)]
    with c.loop(0, count) as n:
        weight = c.spread(c.load(c.f32, scores, c.b.mul(n, c.size(4))))
        value = c.at(values, c.b.mul(n, c.size(heads.entry)))
        for line in range(0, heads.entry, 64):
            c.prefetch(value, _AHEAD + line)
        for index, sum_ in enumerate(sums):
            c.b.store(c.fma(weight, _widened(c, value, LANES * index, heads), c.value(sum_)), sum_)
    inverse = c.spread(c.b.fdiv(c.ir.Constant(c.f32, 1.0), total))
    for index, sum_ in enumerate(sums):
        c.store(c.b.fmul(c.value(sum_), inverse), target, 4 * LANES * index)
