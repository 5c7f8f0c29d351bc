"""Products with weights of 8 and 4 bits for CPUs that multiply 8-bit integers (AVX512-VNNI); it knows no layer.

A row of activations is quantized to two rows of 8 bits, of which the second holds what the first leaves over: 15 bits
together. Sums are of integers, over the whole row in 8 bits and over 32 weights in 4, and follow one order whatever
other rows there are: no stream changes another's numbers by a bit. Weights are read once, in the order in which they
lie: 16 rows at a time, four columns of each in one register.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from moshi_server.model import jit
from moshi_server.model.jit import LANES, Code, Compiled

if TYPE_CHECKING:
    from moshi_server.model.quantize import Quantize, QuantizedWeight

GROUP: Final = 32
"""Weights of one row that share a scale in 4 bits."""
MOST_ROWS: Final = 8
"""Rows of activations in one pass over the weights."""

_LARGEST: Final = 127.0
_FINER_BITS: Final = 7
_FINER: Final = float(1 << _FINER_BITS)
"""Steps of the second row of activations in one step of the first."""
_BYTE: Final = 4  # columns that one lane multiplies and adds at once
_AHEAD: Final = 4096
"""Bytes from where weights are read to where they are asked for already."""
INT4_BLOCK: Final = LANES * _BYTE + LANES * GROUP // 2
"""Bytes of 16 rows times a group: scales and centres, then codes."""


def packed_int8(values: Tensor) -> Tensor:
    """(N, K) int8 -> (blocks, K / 4, 16, 4) uint8, each 128 more; rows are filled up with zeros. 4 divides K."""
    rows, columns = values.shape
    blocks, steps = -(-rows // LANES), columns // _BYTE
    packed = torch.full((blocks, steps, LANES, _BYTE), 128, dtype=torch.uint8)
    for block in range(blocks):  # little at a time, since all of a model is packed when it is loaded
        part = values[block * LANES : (block + 1) * LANES].view(torch.uint8) ^ 128
        packed[block].view(torch.int32).squeeze(-1)[:, : len(part)] = part.view(torch.int32).t()
    return packed


def packed_int4(values: Tensor, scales: Tensor) -> Tensor:
    """(N, K / 2) uint8 and (N, K / 32, 2) bf16 as stored -> (N / 16, K / 32, 5, 16, 4) uint8.

    Of each 16 x 32: scale and centre of each row, then four times 64 bytes, of which each holds a code in its lower
    bits and the one 16 columns further on in its upper bits.
    """
    rows, groups = len(values), scales.shape[1]
    packed = torch.empty(rows // LANES, groups, 5, LANES, dtype=torch.int32)
    heads = scales.contiguous().view(torch.int32).view(-1, LANES, groups)
    for block, start in enumerate(range(0, rows, LANES)):
        pairs = values[start : start + LANES].view(LANES, groups, 2, 8)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        even, odd = (low & 15) | (high << 4), (low >> 4) | (high & 240)
        both = torch.stack((even, odd), dim=-1).view(LANES, groups, LANES).view(torch.int32)
        packed[block, :, 0] = heads[block].t()
        packed[block, :, 1:] = both.permute(1, 2, 0)
    return packed.view(torch.uint8).view(rows // LANES, groups, 5, LANES, _BYTE)


class Vnni:
    """A weight laid out for these kernels."""

    name: Final = "vnni"

    def __init__(self, weight: QuantizedWeight) -> None:
        if not jit.available():
            raise NotImplementedError("needs llvmlite and a CPU with AVX512-VNNI")
        rows, columns = weight.shape
        if columns % LANES:
            raise NotImplementedError(f"rows of {columns} weights are not whole sixteens")
        self._kind: Quantize = weight.kind
        self._rows, self._columns = rows, columns
        self._blocks = -(-rows // LANES)
        if weight.kind == "int8":
            self._steps = columns // _BYTE
            self.weight = packed_int8(weight.values)
            self.scales = torch.nn.functional.pad(weight.scales.float(), (0, self._blocks * LANES - rows))
        else:
            self._steps = columns // GROUP
            self.weight = packed_int4(weight.values, weight.scales)
            self.scales = weight.scales.new_empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, N) f32."""
        x = x.float().contiguous()
        out = torch.empty(len(x), self._blocks * LANES)
        threads = torch.get_num_threads()
        for start in range(0, len(x), MOST_ROWS):
            count = min(MOST_ROWS, len(x) - start)
            # Of each thread: both rows of activations, then their sums (and in 4 bits, those of each group).
            size = count * (2 * self._columns + 4 * self._columns // GROUP + 128)
            scratch = torch.empty(threads, size, dtype=torch.uint8)
            product(self._kind, count)(
                x.data_ptr() + 4 * start * self._columns,
                self.weight.data_ptr(),
                self.scales.data_ptr(),
                out.data_ptr() + 4 * start * out.shape[1],
                scratch.data_ptr(),
                size,
                self._columns,
                self._blocks,
                self._steps,
            )
        return out[:, : self._rows]


@cache
def product(kind: Quantize, rows: int) -> Compiled:
    """The product for so many rows of activations, made when it is first wanted."""
    return Compiled(f"product_{kind}_{rows}", lambda code, block: _product(code, block, kind, rows))


def _product(c: Code, block: Any, kind: Quantize, rows: int) -> None:
    pointers = [c.load(c.pointer, block, 8 * n) for n in range(5)]
    x, weight, scales, out, scratch = pointers
    size, columns, blocks, steps = (c.load(c.i64, block, 8 * n) for n in range(5, 9))
    scratch = c.at(scratch, c.b.mul(c.thread(), size))
    groups = c.b.sdiv(columns, c.size(GROUP))
    coarse, fine, sums, steps_of_x = [], [], [], []
    row_bytes = c.b.add(c.b.mul(columns, c.size(2)), c.b.add(c.b.mul(groups, c.size(4)), c.size(64)))
    for row in range(rows):
        own = c.at(scratch, c.b.mul(row_bytes, c.size(row)))
        coarse.append(own)
        fine.append(c.at(own, columns))
        sums.append(c.at(own, c.b.mul(columns, c.size(2))))
        source = c.at(x, c.b.mul(columns, c.size(4 * row)))
        steps_of_x.append(quantize_row(c, source, columns, coarse[row], fine[row], sums[row], kind))
    first, last = c.share(blocks)
    bytes_of_block = c.b.mul(steps, c.size(LANES * _BYTE if kind == "int8" else INT4_BLOCK))
    with c.loop(first, last) as index:
        start = c.at(weight, c.b.mul(index, bytes_of_block))
        if kind == "int8":
            found = block_int8(c, start, steps, coarse, fine, sums)
            scale = c.load(c.vector(c.f32), scales, c.b.mul(index, c.size(4 * LANES)))
            found = [c.b.fmul(value, scale) for value in found]
        else:
            found = block_int4(c, start, steps, coarse, fine, sums)
        for row, value in enumerate(found):
            place = c.b.add(c.b.mul(blocks, c.size(4 * LANES * row)), c.b.mul(index, c.size(4 * LANES)))
            c.store(c.b.fmul(value, c.spread(steps_of_x[row])), out, place)


def quantize_row(c: Code, x: Any, columns: Any, coarse: Any, fine: Any, sums: Any, kind: Quantize) -> Any:
    """Write a row as two of 8 bits, and their sums; returns one step of the second, f32."""
    floats, ints = c.vector(c.f32), c.vector(c.i32)
    most = c.variable(c.all(floats, torch.finfo(torch.float32).tiny * 2.0**32))
    with c.loop(0, columns, LANES) as n:
        here = c.call("llvm.fabs.v16f32", floats, c.load(floats, x, c.b.mul(n, c.size(4))))
        c.b.store(c.call("llvm.maximum.v16f32", floats, c.value(most), here), most)
    largest = c.largest(c.value(most))
    inverse = c.spread(c.b.fdiv(c.ir.Constant(c.f32, _LARGEST), largest))
    whole = c.variable(c.all(ints, 0))

    def write(n: Any) -> Any:
        scaled = c.b.fmul(c.load(floats, x, c.b.mul(n, c.size(4))), inverse)
        first = c.call("llvm.rint.v16f32", floats, scaled)
        rest = c.b.fmul(c.b.fsub(scaled, first), c.all(floats, _FINER))
        second = c.call("llvm.rint.v16f32", floats, rest)
        high, low = c.b.fptosi(first, ints), c.b.fptosi(second, ints)
        c.store(c.b.trunc(high, c.vector(c.i8)), coarse, n)
        c.store(c.b.trunc(low, c.vector(c.i8)), fine, n)
        return c.b.add(c.b.shl(high, c.all(ints, _FINER_BITS)), low)

    if kind == "int8":
        with c.loop(0, columns, LANES) as n:
            c.b.store(c.b.add(c.value(whole), write(n)), whole)
        c.store(c.total(c.value(whole)), sums)
    else:
        with c.loop(0, columns, GROUP) as n:
            both = c.b.add(write(n), write(c.b.add(n, c.size(LANES))))
            c.store(c.total(both), sums, c.b.mul(c.b.sdiv(n, c.size(GROUP)), c.size(4)))
    return c.b.fdiv(largest, c.ir.Constant(c.f32, _LARGEST * _FINER))


def _dot(c: Code, total: Any, weights: Any, four: Any) -> Any:
    """``total`` (16 i32) and in each lane four unsigned times four signed bytes."""
    return c.call("llvm.x86.avx512.vpdpbusd.512", total.type, total, weights, c.spread(four))


def _joined(c: Code, coarse: Any, fine: Any, offset: Any) -> Any:
    """Sums over both rows of activations as one, less ``offset`` (an i32), as f32."""
    ints = c.vector(c.i32)
    both = c.b.add(c.b.shl(coarse, c.all(ints, _FINER_BITS)), fine)
    return c.b.sitofp(c.b.sub(both, c.spread(offset)), c.vector(c.f32))


def block_int8(c: Code, start: Any, steps: Any, coarse: list[Any], fine: list[Any], sums: list[Any]) -> list[Any]:
    """16 outputs of each row, f32, before the scales of the weights and the size of a row's fine step.

    ``start`` is where their weights are, ``steps`` a quarter of the columns; of each row, where `quantize_row` wrote.
    """
    ints = c.vector(c.i32)
    totals = [(c.variable(c.all(ints, 0)), c.variable(c.all(ints, 0))) for _ in coarse]
    with c.loop(0, steps) as step:
        here = c.at(start, c.b.mul(step, c.size(4 * LANES)))
        c.prefetch(here, _AHEAD)
        weights = c.load(ints, here)
        place = c.b.mul(step, c.size(4))
        for (high, low), first, second in zip(totals, coarse, fine, strict=True):
            c.b.store(_dot(c, c.value(high), weights, c.load(c.i32, first, place)), high)
            c.b.store(_dot(c, c.value(low), weights, c.load(c.i32, second, place)), low)
    found = []
    for (high, low), total in zip(totals, sums, strict=True):
        offset = c.b.shl(c.load(c.i32, total), c.ir.Constant(c.i32, 7))  # 128 times
        found.append(_joined(c, c.value(high), c.value(low), offset))
    return found


def block_int4(c: Code, start: Any, groups: Any, coarse: list[Any], fine: list[Any], sums: list[Any]) -> list[Any]:
    """As `block_int8`, with the scales that lie between the weights; ``groups`` is a 32nd of the columns."""
    ints, floats = c.vector(c.i32), c.vector(c.f32)
    totals = [c.variable(c.all(floats, 0.0)) for _ in coarse]
    low_bits = c.all(ints, 0x0F0F0F0F)
    with c.loop(0, groups) as group:
        here = c.at(start, c.b.mul(group, c.size(INT4_BLOCK)))
        for line in range(0, INT4_BLOCK, 4 * LANES):
            c.prefetch(here, _AHEAD + line)
        head = c.load(ints, here)
        scale = c.b.bitcast(c.b.shl(head, c.all(ints, 16)), floats)
        centre = c.b.bitcast(c.b.and_(head, c.all(ints, -65536)), floats)
        packed = [c.load(ints, here, 4 * LANES * (1 + n)) for n in range(4)]
        weights = [c.b.and_(part, low_bits) for part in packed]
        weights += [c.b.and_(c.b.lshr(part, c.all(ints, 4)), low_bits) for part in packed]
        place = c.b.mul(group, c.size(GROUP))
        for total, first, second, sum_ in zip(totals, coarse, fine, sums, strict=True):
            high = low = c.all(ints, 0)
            for n, part in enumerate(weights):
                high = _dot(c, high, part, c.load(c.i32, first, c.b.add(place, c.size(4 * n))))
                low = _dot(c, low, part, c.load(c.i32, second, c.b.add(place, c.size(4 * n))))
            mine = c.load(c.i32, sum_, c.b.mul(group, c.size(4)))
            joined = _joined(c, high, low, c.b.shl(mine, c.ir.Constant(c.i32, 3)))
            weighted = c.fma(scale, joined, c.value(total))
            c.b.store(c.fma(centre, c.spread(c.b.sitofp(mine, c.f32)), weighted), total)
    return [c.value(total) for total in totals]
