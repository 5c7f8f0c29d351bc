"""The residual search for the nearest centroids as one kernel for CPUs that multiply 8-bit integers; it knows no layer.

Centroids are held in 8 bits beside f32, and a level reads the 8 bits: they tell a score up to a bound. Only centroids
whose score may be the least are looked at in f32, with sums in f64. So a code is the nearest centroid's, the first
of equals, exactly, for a quarter of the reading. Every stream is searched by itself, on one thread: 31 levels would
be as many times for two threads to wait for each other.

The score of c for a residual r is |c|^2 / 2 - r.c, which is least where c is nearest. With r' and c' in 8 bits,
|r.c - r'.c'| <= |r| |c - c'| + |r - r'| |c'|, by the triangle inequality and Cauchy-Schwarz. What rounding adds to
that in f32 is at most some units of 2^-24 of |r| |c| and of |c|^2 / 2; `_SLACK` is eight times as much.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from moshi_server.model import jit
from moshi_server.model.jit import LANES, Code, Compiled

_LARGEST: Final = 127.0
_SLACK: Final = 4e-6
_WIDER: Final = 1.001
"""By how much norms that bounds are made of are taken larger, since they are rounded too."""
_AHEAD: Final = 4096
"""Bytes from where numbers are read to where they are asked for already."""
_LEAST: Final = 1 << 17
"""Numbers of a codebook from which this is worth compiling."""
_BYTES: Final = 4


class Search:
    """Codebooks (levels, bins, dim), f32, laid out for the kernel. They must stay where they are."""

    def __init__(self, codebooks: Tensor) -> None:
        self.levels, self.bins, self.width = codebooks.shape
        self._codebooks = codebooks
        self._packed = torch.empty(self.levels, self.bins * self.width, dtype=torch.uint8)
        self._terms = torch.empty(self.levels, self.bins * 4)
        for centroids, packed, terms in zip(codebooks, self._packed, self._terms, strict=True):
            _pack(centroids, packed, terms)

    @staticmethod
    def takes(codebooks: Tensor) -> bool:
        """Whether the kernel can search these codebooks, on this machine."""
        _, bins, width = codebooks.shape
        fits = codebooks.is_cpu and codebooks.dtype is torch.float32 and codebooks.is_contiguous()
        whole = bins % LANES == 0 and width % LANES == 0 and width <= 1024  # so that integers are f32 exactly
        return fits and whole and len(codebooks) > 0 and bins * width >= _LEAST and jit.available()

    def __call__(self, residual: Tensor) -> Tensor:
        """(N, dim) f32 -> codes (N, levels) int64."""
        residual = residual.clone(memory_format=torch.contiguous_format)
        rows = len(residual)
        codes = torch.empty(rows, self.levels, dtype=torch.int64)
        size = self.width + self.bins * _BYTES
        scratch = torch.empty(torch.get_num_threads(), size, dtype=torch.uint8)
        tensors = (residual, self._packed, self._codebooks, self._terms, codes, scratch)
        kernel = _kernel(self.bins, self.width)
        run = kernel if rows > 1 else kernel.alone
        run(*(x.data_ptr() for x in tensors), size, rows, self.levels)
        return codes


def _pack(centroids: Tensor, packed: Tensor, terms: Tensor) -> None:
    """Write (bins, dim) in 8 bits as the kernel reads them, and for each 16 their scales, half norms and bounds."""
    scales = (centroids.abs().amax(1, keepdim=True) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    values = (centroids / scales).round_().clamp_(-_LARGEST, _LARGEST)
    near = values * scales
    norms = torch.linalg.vector_norm(centroids, dim=1)
    off = torch.linalg.vector_norm(centroids - near, dim=1) * _WIDER + norms * _SLACK
    near_norms = torch.linalg.vector_norm(near, dim=1) * _WIDER
    both = torch.stack((scales[:, 0], norms.square() / 2, near_norms, off))
    terms.view(-1, 4, LANES).copy_(both.view(4, -1, LANES).transpose(0, 1))
    shifted = values.to(torch.int8).view(torch.uint8).bitwise_xor(128)
    fours = shifted.view(torch.int32).view(-1, LANES, centroids.shape[1] // 4)
    packed.view(torch.int32).view(len(fours), -1, LANES).copy_(fours.transpose(1, 2))


@cache
def _kernel(bins: int, width: int) -> Compiled:
    return Compiled("search", lambda code, block: _Writer(code, block, bins, width).write())


class _Writer:
    """What the kernel does, written down."""

    def __init__(self, c: Code, block: Any, bins: int, width: int) -> None:
        self.c, self.bins, self.width = c, bins, width
        self.residuals, self.packed, self.centroids, self.terms, self.codes, scratch = (
            c.load(c.pointer, block, 8 * n) for n in range(6)
        )
        size, self.rows, self.levels = (c.load(c.i64, block, 8 * n) for n in range(6, 9))
        self.small = c.at(scratch, c.b.mul(c.thread(), size))
        self.lower = c.at(self.small, width)
        self.floats, self.ints = c.vector(c.f32), c.vector(c.i32)
        self.f64 = c.ir.DoubleType()

    def write(self) -> None:
        c = self.c
        first, last = c.share(self.rows)
        with c.loop(0, self.levels) as level, c.loop(first, last) as row:
            centroids = c.at(self.centroids, c.b.mul(level, c.size(self.bins * self.width * _BYTES)))
            residual = c.at(self.residuals, c.b.mul(row, c.size(self.width * _BYTES)))
            limit = self._search(level, residual)
            code = self._verify(residual, centroids, limit)
            c.store(code, self.codes, c.b.mul(c.b.add(c.b.mul(row, self.levels), level), c.size(8)))
            centroid = c.at(centroids, c.b.mul(code, c.size(self.width * _BYTES)))
            with c.loop(0, self.width, LANES) as n:
                place = c.b.mul(n, c.size(_BYTES))
                rest = c.b.fsub(c.load(self.floats, residual, place), c.load(self.floats, centroid, place))
                c.store(rest, residual, place)

    def _search(self, level: Any, residual: Any) -> Any:
        """Write the lower bounds of all scores; returns the least of the upper bounds."""
        c = self.c
        step, total, norm, off = self._quantize(residual)
        packed = c.at(self.packed, c.b.mul(level, c.size(self.bins * self.width)))
        terms = c.at(self.terms, c.b.mul(level, c.size(self.bins * 4 * _BYTES)))
        upper = c.variable(c.all(self.floats, float("inf")))
        with c.loop(0, self.bins // LANES) as block:
            start = c.at(packed, c.b.mul(block, c.size(self.width * LANES)))
            sums = c.variable(c.all(self.ints, 0))
            with c.loop(0, self.width // 4) as n:
                here = c.at(start, c.b.mul(n, c.size(4 * LANES)))
                c.prefetch(here, _AHEAD, near=3)
                four = c.load(c.i32, self.small, c.b.mul(n, c.size(4)))
                c.b.store(self._dot(c.value(sums), c.load(self.ints, here), four), sums)
            product = c.b.sitofp(c.b.sub(c.value(sums), c.spread(total)), self.floats)
            these = c.at(terms, c.b.mul(block, c.size(4 * LANES * _BYTES)))
            scale, half, near, far = (c.load(self.floats, these, n * LANES * _BYTES) for n in range(4))
            score = c.b.fsub(half, c.b.fmul(product, c.b.fmul(scale, c.spread(step))))
            bound = c.fma(c.spread(off), near, c.b.fmul(c.spread(norm), far))
            bound = c.fma(half, c.all(self.floats, _SLACK), bound)
            c.store(c.b.fsub(score, bound), self.lower, c.b.mul(block, c.size(LANES * _BYTES)))
            least = c.call("llvm.minnum.v16f32", self.floats, c.value(upper), c.b.fadd(score, bound))
            c.b.store(least, upper)
        return c.b.fneg(c.largest(c.b.fneg(c.value(upper))))

    def _quantize(self, residual: Any) -> tuple[Any, Any, Any, Any]:
        """Write a residual in 8 bits. Returns a step, 128 times the sum, the norm, and the norm of what is lost."""
        c = self.c
        most = c.variable(c.all(self.floats, torch.finfo(torch.float32).tiny * 2.0**32))
        with c.loop(0, self.width, LANES) as n:
            here = c.call("llvm.fabs.v16f32", self.floats, c.load(self.floats, residual, c.b.mul(n, c.size(_BYTES))))
            c.b.store(c.call("llvm.maxnum.v16f32", self.floats, c.value(most), here), most)
        largest = c.largest(c.value(most))
        step = c.b.fdiv(largest, c.ir.Constant(c.f32, _LARGEST))
        inverse = c.spread(c.b.fdiv(c.ir.Constant(c.f32, _LARGEST), largest))
        total = c.variable(c.all(self.ints, 0))
        square, lost = c.variable(c.all(self.floats, 0.0)), c.variable(c.all(self.floats, 0.0))
        with c.loop(0, self.width, LANES) as n:
            here = c.load(self.floats, residual, c.b.mul(n, c.size(_BYTES)))
            whole = c.call("llvm.rint.v16f32", self.floats, c.b.fmul(here, inverse))
            # Also of what is no number: decisions follow from it.
            digits = c.call("llvm.fptosi.sat.v16i32.v16f32", self.ints, whole)
            c.store(c.b.trunc(digits, c.vector(c.i8)), self.small, n)
            c.b.store(c.b.add(c.value(total), digits), total)
            c.b.store(c.fma(here, here, c.value(square)), square)
            rest = c.fma(c.b.fneg(whole), c.spread(step), here)
            c.b.store(c.fma(rest, rest, c.value(lost)), lost)
        norm, off = (
            c.b.fmul(c.call("llvm.sqrt.f32", c.f32, c.total(c.value(sums))), c.ir.Constant(c.f32, _WIDER))
            for sums in (square, lost)
        )
        return step, c.b.shl(c.total(c.value(total)), c.ir.Constant(c.i32, 7)), norm, off

    def _dot(self, total: Any, weights: Any, four: Any) -> Any:
        c = self.c
        parts = [c.b.bitcast(part, c.vector(c.i8, 4 * LANES)) for part in (weights, c.spread(four))]
        return c.call("llvm.x86.avx512.vpdpbusd.512", total.type, total, *parts)

    def _verify(self, residual: Any, centroids: Any, limit: Any) -> Any:
        """Of the centroids whose bound does not exceed ``limit``, the first with the least score; else 0."""
        c = self.c
        i16 = c.i16
        least, index = c.variable(c.ir.Constant(self.f64, float("inf"))), c.variable(c.size(0))
        with c.loop(0, self.bins // LANES) as block:
            lower = c.load(self.floats, self.lower, c.b.mul(block, c.size(LANES * _BYTES)))
            bits = c.variable(c.b.bitcast(c.b.fcmp_ordered("<=", lower, c.spread(limit)), i16))
            head, body, end = (c.b.append_basic_block(name) for name in ("any", "one", "none"))
            c.b.branch(head)
            c.b.position_at_end(head)
            left = c.value(bits)
            c.b.cbranch(c.b.icmp_signed("!=", left, c.ir.Constant(i16, 0)), body, end)
            c.b.position_at_end(body)
            lane = c.call("llvm.cttz.i16", i16, left, c.ir.Constant(c.ir.IntType(1), 0))
            c.b.store(c.b.and_(left, c.b.sub(left, c.ir.Constant(i16, 1))), bits)
            here = c.b.add(c.b.mul(block, c.size(LANES)), c.b.zext(lane, c.i64))
            score = self._score(residual, c.at(centroids, c.b.mul(here, c.size(self.width * _BYTES))))
            less = c.b.fcmp_ordered("<", score, c.value(least))
            c.b.store(c.b.select(less, score, c.value(least)), least)
            c.b.store(c.b.select(less, here, c.value(index)), index)
            c.b.branch(head)
            c.b.position_at_end(end)
        return c.value(index)

    def _score(self, residual: Any, centroid: Any) -> Any:
        """The sum of c * (c / 2 - r), f64."""
        c = self.c
        doubles = c.vector(self.f64)
        total = c.variable(c.all(doubles, 0.0))
        with c.loop(0, self.width, LANES) as n:
            place = c.b.mul(n, c.size(_BYTES))
            r, here = (c.b.fpext(c.load(self.floats, base, place), doubles) for base in (residual, centroid))
            part = c.b.fmul(here, c.b.fsub(c.b.fmul(here, c.all(doubles, 0.5)), r))
            c.b.store(c.b.fadd(c.value(total), part), total)
        return c.total(c.value(total))
