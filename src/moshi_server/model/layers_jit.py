"""The next position of all layers of a transformer as one call, on a CPU; it knows no token, and samples nothing.

A layer of a step is five things that wait for each other: norm and projection, attention, its output, the feed-forward
in, and out. As operations of their own each would wake torch's threads and be waited for by the interpreter. Here the
threads go through all layers together, take pieces of work as they come to them, and meet after each of the five. Norms
and the rounding of activations, which all need whole, each thread does for itself, since that is over before they have
met. The numbers are `transformer.StreamingTransformer.step`'s up to rounding, and no stream changes another's by a bit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from moshi_server.model import jit
from moshi_server.model.few_rows import MOST_ROWS as MOST_F32_ROWS
from moshi_server.model.few_rows import four_totals, partial_sums
from moshi_server.model.integer_kernels import GROUP as QUANTIZED_GROUP
from moshi_server.model.integer_kernels import INT4_BLOCK, MOST_ROWS, Vnni, block_int4, block_int8, quantize_row
from moshi_server.model.jit import LANES, Code, Compiled
from moshi_server.model.quantize import QuantizedLinear
from moshi_server.model.ring_jit import WIDEST, Heads, attend, exponential, scratch_bytes
from moshi_server.model.streaming import State, leaf

if TYPE_CHECKING:
    from moshi_server.model.transformer import StreamingTransformer, TransformerLayer

Kind = Literal["f32", "int8", "int4"]
Use = Callable[[Any, Any, Any], None]
"""Takes the first output, a row, and the numbers of its outputs from there on."""
Multiply = Callable[[Any, Any, int], list[Any]]
"""From the first output, the first row and the number of rows: of each row, the numbers of some outputs."""

_PARTS: Final = ("qkv", "attention", "out", "in", "down")
_LINE: Final = 128
"""Bytes from one place where threads meet to the next: two lines of the cache, which come together."""
_TOGETHER: Final = 4
"""Pieces of a product that a thread takes at once."""
_GROUPS: Final = (4, 3, 2, 1)
"""Rows that are multiplied at once; a second group of rows reads weights that are near already."""
MOST_POSITIONS: Final = 2
"""Of a stream in one step: Mimi's frames have two."""
_OUTPUTS: Final = 4
"""Outputs that are summed at once in f32."""
# ln erfc(z) + z^2 - ln t as a polynomial in t = 1 / (1 + z / 2), for t from 1/6 to 1: a fit, off by 5e-8.
_ERFC: Final = (
    -1.265447974205017, 0.9986327886581421, 0.38664039969444275, 0.034602802246809006, 0.0012675834586843848,
    -0.08028042316436768, -0.6962519288063049, 1.156733751296997, -0.6808272004127502, 0.14493021368980408,
)  # fmt: skip

# Where a layer's addresses are, in its row of the table.
_NORM1, _NORM1_BIAS, _QKV, _QKV_SCALES, _OUT, _OUT_SCALES, _SCALE1 = range(7)
_NORM2, _NORM2_BIAS, _IN, _IN_SCALES, _DOWN, _DOWN_SCALES, _SCALE2 = range(7, 14)
_RING: Final = 14
_COLUMNS: Final = 16
"""Of that table."""
# Where the arguments of a call are.
_TABLE, _LAYERS, _X, _TURN, _SLOTS, _START, _WIDE, _ATTENDED, _SCRATCH, _ROOM, _MEETINGS, _STREAMS = range(12)


@dataclass(frozen=True)
class Shape:
    """All that code is written for."""

    kind: Kind
    width: int
    hidden: int
    heads: int
    kv_heads: int
    context: int
    epsilon: float
    rms: bool
    gated: bool
    scaled: bool
    """Whether each branch has a factor for each channel."""
    turned: bool
    half: bool
    """Whether rings are f16, else f32."""
    positions: int
    """Of each stream, next to each other."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def qkv(self) -> int:
        """Queries, keys and values of one position."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def widest(self) -> int:
        """The longest row that is multiplied with weights."""
        return max(self.width, self.hidden)

    @property
    def wide(self) -> int:
        """The longest row that all threads write."""
        return max(self.qkv, self.hidden)

    @property
    def quantized_row(self) -> int:
        """Bytes of a row of activations as two of 8 bits, their sums, and the size of a step."""
        return 2 * self.widest + 4 * self.widest // QUANTIZED_GROUP + 64

    @property
    def row_room(self) -> int:
        """Bytes that a thread has for a row of activations: normed, and quantized."""
        return 4 * self.width + (0 if self.kind == "f32" else self.quantized_row)

    def room(self, rows: int) -> int:
        """Bytes that a thread has for itself."""
        attention = scratch_bytes(self.heads, self.kv_heads, self.head_dim, self.context)
        return -(-max(rows * self.row_room, attention) // _LINE) * _LINE + _LINE


class Layers:
    """All layers of ``transformer``, from the weights it has now; f32 ones are used where they are."""

    def __init__(self, transformer: StreamingTransformer) -> None:
        spec = transformer.spec
        layers: list[TransformerLayer] = list(transformer.layers)  # type: ignore[arg-type]
        self._spec = spec
        self._kind = _kind(layers)
        self._epsilon: float = layers[0].norm1.EPS
        rows = [_row(layer) for layer in layers]
        self._kept = [tensor for row in rows for tensor in row]  # whose addresses are in the table
        addresses = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        self._table = torch.zeros(len(layers), _COLUMNS, dtype=torch.int64)
        self._table[:, : len(addresses[0])] = torch.tensor(addresses, dtype=torch.int64)
        self._own = _Rooms()

    @staticmethod
    def takes(transformer: StreamingTransformer) -> bool:
        """Whether there is code for its layers on this machine: on a CPU, f32 or all in the same bits, no biases."""
        spec = transformer.spec
        plain = not (spec.bias_attn or spec.bias_ff or spec.cross)
        sizes = (spec.d_model, spec.hidden, spec.head_dim)
        whole = all(size % LANES == 0 for size in sizes) and spec.head_dim <= WIDEST
        if not (plain and whole and jit.available()):
            return False
        layers: list[TransformerLayer] = list(transformer.layers)  # type: ignore[arg-type]
        if any(p.dtype is not torch.float32 or not p.is_cpu for layer in layers for p in layer.parameters()):
            return False
        weights = [linear for layer in layers for linear in _linears(layer)]
        kinds = {_kind_of(linear) for linear in weights}
        return len(kinds) == 1 and None not in kinds

    def suits(self, streams: int, positions: int, state: State) -> bool:
        """Whether a step of so many streams and positions over these rings goes this way."""
        few = streams * positions <= (MOST_F32_ROWS if self._kind == "f32" else MOST_ROWS)
        return few and positions <= MOST_POSITIONS and leaf(state, "ring.0").dtype in (torch.float16, torch.float32)

    def step(self, x: Tensor, turn: Tensor | None, state: State, slots: Tensor, start: Tensor) -> Tensor:
        """(B, T, D) f32 -> same; ``turn`` (B, T, 1, D/2) complex64, ``slots`` and ``start`` (B,) int64.

        The rings of ``state`` take the new keys and values; its positions stay as they are.
        """
        rings = [leaf(state, f"ring.{index}") for index in range(len(self._table))]
        room = self._room(len(x), x.shape[1], rings[0].dtype is torch.float16)
        addresses = [ring.data_ptr() for ring in rings]
        if addresses != room.rings:
            room.table[:, _RING] = torch.tensor(addresses, dtype=torch.int64)
            room.rings = addresses
        y = x.float().clone(memory_format=torch.contiguous_format)
        turn = None if turn is None else turn.contiguous()
        room.meetings.zero_()
        room.code(
            room.table.data_ptr(),
            len(room.table),
            y.data_ptr(),
            0 if turn is None else turn.data_ptr(),
            slots.data_ptr(),
            start.data_ptr(),
            room.wide.data_ptr(),
            room.attended.data_ptr(),
            room.scratch.data_ptr(),
            room.scratch.shape[1],
            room.meetings.data_ptr(),
            len(x),
        )
        return y

    def _room(self, streams: int, positions: int, half: bool) -> _Room:
        key = (streams, positions, torch.get_num_threads(), half)
        rooms = self._own.rooms
        if key not in rooms:
            rooms[key] = _Room(self._shape(positions, half), streams * positions, self._table)
        return rooms[key]

    def _shape(self, positions: int, half: bool) -> Shape:
        spec = self._spec
        return Shape(
            kind=self._kind,
            width=spec.d_model,
            hidden=spec.hidden,
            heads=spec.num_heads,
            kv_heads=spec.kv_heads,
            context=spec.context,
            epsilon=self._epsilon,
            rms=spec.norm == "rms_norm",
            gated=spec.gating == "silu",
            scaled=spec.layer_scale is not None,
            turned=spec.positional_embedding == "rope",
            half=half,
            positions=positions,
        )


class _Room:
    """The code for one shape, and the memory that a step of so many rows works in."""

    def __init__(self, shape: Shape, rows: int, table: Tensor) -> None:
        self.code = _compiled(shape)
        self.table = table.clone()
        self.rings: list[int] = []
        self.wide = torch.empty(rows, shape.wide)
        self.attended = torch.empty(rows, shape.width)
        self.scratch = torch.empty(torch.get_num_threads(), shape.room(rows), dtype=torch.uint8)
        self.meetings = torch.zeros(len(table) * len(_PARTS), _LINE // 8, dtype=torch.int64)


class _Rooms(threading.local):
    """A thread's own: modules that share weights step at the same time."""

    def __init__(self) -> None:
        self.rooms: dict[tuple[int, int, int, bool], _Room] = {}


def _linears(layer: TransformerLayer) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    attention, gating = layer.self_attn, layer.gating
    into, down = (layer.linear1, layer.linear2) if gating is None else (gating.linear_in, gating.linear_out)
    return attention.in_proj, attention.out_proj, into, down


def _kind_of(linear: nn.Module) -> Kind | None:
    if isinstance(linear, QuantizedLinear):
        whole = linear.bias is None and linear.out_features % LANES == 0
        return linear.kind if whole and isinstance(linear.kernel, Vnni) else None
    weight = linear.get_parameter("weight")
    return "f32" if weight.is_contiguous() and linear.bias is None else None


def _kind(layers: list[TransformerLayer]) -> Kind:
    kind = _kind_of(_linears(layers[0])[0])
    assert kind is not None
    return kind


def _row(layer: TransformerLayer) -> list[Tensor | None]:
    """The tensors of one layer in the order of the table."""

    def norm(module: nn.Module) -> list[Tensor | None]:
        if hasattr(module, "alpha"):
            return [module.get_parameter("alpha").detach(), None]
        return [module.get_parameter("weight").detach(), module.get_parameter("bias").detach()]

    def linear(module: nn.Module) -> list[Tensor | None]:
        if isinstance(module, QuantizedLinear):
            assert isinstance(module.kernel, Vnni)
            return [module.kernel.weight, module.kernel.scales]
        return [module.get_parameter("weight").detach(), None]

    def scale(module: nn.Module) -> Tensor | None:
        return None if isinstance(module, nn.Identity) else module.get_parameter("scale").detach()

    qkv, out, into, down = _linears(layer)
    row = [*norm(layer.norm1), *linear(qkv), *linear(out), scale(layer.layer_scale_1)]
    return [*row, *norm(layer.norm2), *linear(into), *linear(down), scale(layer.layer_scale_2)]


@cache
def _compiled(shape: Shape) -> Compiled:
    return Compiled("layers", lambda code, block: _Writer(code, block, shape).write())


class _Writer:
    """Writes the code of one shape."""

    def __init__(self, c: Code, block: Any, shape: Shape) -> None:
        self.c, self.shape = c, shape
        pointers = (_TABLE, _X, _TURN, _SLOTS, _START, _WIDE, _ATTENDED, _SCRATCH, _MEETINGS)
        self.arguments = {n: c.load(c.pointer, block, 8 * n) for n in pointers}
        self.layers, room, self.streams = (c.load(c.i64, block, 8 * n) for n in (_LAYERS, _ROOM, _STREAMS))
        self.rows = c.b.mul(self.streams, c.size(shape.positions))
        self.normed = c.b.mul(self.rows, c.size(4 * shape.width))  # bytes of the normed rows of a thread
        self.x, self.wide = self.arguments[_X], self.arguments[_WIDE]
        self.scratch = c.at(self.arguments[_SCRATCH], c.b.mul(c.thread(), room))
        self.threads = c.threads()
        self.row: Any = None  # of the table, of the layer that is being written

    def write(self) -> None:
        """All of it."""
        c, shape = self.c, self.shape
        with c.loop(0, self.layers) as layer:
            self.row = c.at(self.arguments[_TABLE], c.b.mul(layer, c.size(8 * _COLUMNS)))
            meetings = c.at(self.arguments[_MEETINGS], c.b.mul(layer, c.size(_LINE * len(_PARTS))))
            places = [c.at(meetings, _LINE * n) for n in range(len(_PARTS))]
            normed = self._normed(_NORM1, _NORM1_BIAS)
            self._product(places[0], normed, shape.width, shape.qkv, _QKV, self._put(shape.qkv))
            self._meet(places[0])
            self._attend(places[1])
            self._meet(places[1])
            attended = self.arguments[_ATTENDED]
            self._product(places[2], attended, shape.width, shape.width, _OUT, self._added(_SCALE1))
            self._meet(places[2])
            normed = self._normed(_NORM2, _NORM2_BIAS)
            if shape.gated:
                self._gated_product(places[3], normed)
            else:
                self._product(places[3], normed, shape.width, shape.hidden, _IN, self._put(shape.hidden, gelu=True))
            self._meet(places[3])
            self._product(places[4], self.wide, shape.hidden, shape.width, _DOWN, self._added(_SCALE2))
            self._meet(places[4])

    def _address(self, column: int) -> Any:
        return self.c.load(self.c.pointer, self.row, 8 * column)

    def _meet(self, place: Any) -> None:
        self.c.meet(self.c.at(place, _LINE // 2), self.threads)

    def _attend(self, counter: Any) -> None:
        c, shape = self.c, self.shape
        heads = Heads(
            shape.heads // shape.kv_heads, shape.head_dim, c.size(shape.kv_heads), c.size(shape.context), shape.half
        )
        bytes_of_turn = 4 * shape.head_dim
        with c.dealt(counter, c.b.mul(self.streams, heads.kv_heads)) as unit:
            stream, head = c.b.sdiv(unit, heads.kv_heads), c.b.srem(unit, heads.kv_heads)
            turns = None
            if shape.turned:
                first = c.at(self.arguments[_TURN], c.b.mul(stream, c.size(bytes_of_turn * shape.positions)))
                turns = [c.at(first, bytes_of_turn * n) for n in range(shape.positions)]
            ring, slots, start = self._address(_RING), self.arguments[_SLOTS], self.arguments[_START]
            attended = self.arguments[_ATTENDED]
            attend(
                c, heads, stream, head, self.wide, turns, ring, slots, start, attended, self.scratch, shape.positions
            )

    # Norms.

    def _normed(self, weight: int, bias: int) -> Any:
        """Where this thread has the normed rows of ``x``, for itself."""
        c, shape = self.c, self.shape
        weights = self._address(weight)
        biases = None if shape.rms else self._address(bias)
        with c.loop(0, self.rows) as row:
            place = c.b.mul(row, c.size(4 * shape.width))
            self._norm_row(c.at(self.x, place), weights, biases, c.at(self.scratch, place))
        return self.scratch

    def _norm_row(self, source: Any, weights: Any, biases: Any, target: Any) -> None:
        c, width = self.c, self.shape.width
        kind = c.vector(c.f32)
        mean = None if biases is None else c.spread(self._mean(source, None))
        square = self._mean(source, mean, squared=True)
        length = c.call("llvm.sqrt.f32", c.f32, c.b.fadd(square, c.ir.Constant(c.f32, self.shape.epsilon)))
        inverse = c.spread(c.b.fdiv(c.ir.Constant(c.f32, 1.0), length))
        with c.loop(0, width, LANES) as n:
            place = c.b.mul(n, c.size(4))
            here = c.load(kind, source, place)
            here = here if mean is None else c.b.fsub(here, mean)
            here = c.b.fmul(c.b.fmul(here, inverse), c.load(kind, weights, place))
            c.store(here if biases is None else c.b.fadd(here, c.load(kind, biases, place)), target, place)

    def _mean(self, source: Any, less: Any, *, squared: bool = False) -> Any:
        """Of a row, less a number in every lane."""
        c, width = self.c, self.shape.width
        kind = c.vector(c.f32)
        total = c.variable(c.all(kind, 0.0))
        with c.loop(0, width, LANES) as n:
            here = c.load(kind, source, c.b.mul(n, c.size(4)))
            here = here if less is None else c.b.fsub(here, less)
            c.b.store(c.fma(here, here, c.value(total)) if squared else c.b.fadd(c.value(total), here), total)
        return c.b.fmul(c.total(c.value(total)), c.ir.Constant(c.f32, 1 / width))

    # What becomes of a product.

    def _put(self, width: int, *, gelu: bool = False) -> Any:
        def put(output: Any, row: Any, value: Any) -> None:
            c = self.c
            value = _gelu(c, value) if gelu else value
            c.store(value, self.wide, c.b.mul(c.b.add(output, c.b.mul(row, c.size(width))), c.size(4)))

        return put

    def _added(self, scale: int) -> Any:
        factors = self._address(scale) if self.shape.scaled else None

        def add(output: Any, row: Any, value: Any) -> None:
            c = self.c
            if factors is not None:
                value = c.b.fmul(value, c.load(value.type, factors, c.b.mul(output, c.size(4))))
            place = c.b.mul(c.b.add(output, c.b.mul(row, c.size(self.shape.width))), c.size(4))
            c.store(c.b.fadd(c.load(value.type, self.x, place), value), self.x, place)

        return add

    # Products.

    def _each_group(self, body: Callable[[Any, int], None]) -> None:
        """``body`` gets the first row and the number of rows of each group that is multiplied at once."""
        c = self.c
        start = c.size(0)
        for group in _GROUPS:
            # The first takes as many as there are, each other one at most once.
            left = c.b.sub(self.rows, start)
            stop = c.b.add(start, c.b.sub(left, c.b.srem(left, c.size(group))))
            with c.loop(start, stop, group) as row:
                body(row, group)
            start = stop

    def _product(self, counter: Any, rows: Any, columns: int, outputs: int, weight: int, use: Use) -> None:
        """Each of the (rows, columns) f32 at ``rows`` times each output's weights; ``use`` gets what comes out."""
        c = self.c
        multiply, outputs_at_once, together = self._multiplier(rows, columns, weight)
        with c.dealt(counter, c.size(outputs // outputs_at_once), together) as piece:
            output = c.b.mul(piece, c.size(outputs_at_once))

            def one_group(row: Any, group: int) -> None:
                for n, value in enumerate(multiply(output, row, group)):
                    use(output, c.b.add(row, c.size(n)), value)

            self._each_group(one_group)

    def _gated_product(self, counter: Any, rows: Any) -> None:
        """SiLU of the first half of the outputs times the second."""
        c, shape = self.c, self.shape
        put = self._put(shape.hidden)
        multiply, outputs_at_once, together = self._multiplier(rows, shape.width, _IN)
        with c.dealt(counter, c.size(shape.hidden // outputs_at_once), together // 2) as piece:
            output = c.b.mul(piece, c.size(outputs_at_once))

            def one_group(row: Any, group: int) -> None:
                gates = multiply(output, row, group)
                values = multiply(c.b.add(output, c.size(shape.hidden)), row, group)
                for n, (gate, value) in enumerate(zip(gates, values, strict=True)):
                    put(output, c.b.add(row, c.size(n)), c.b.fmul(_silu(c, gate), value))

            self._each_group(one_group)

    def _multiplier(self, rows: Any, columns: int, weight: int) -> tuple[Multiply, int, int]:
        """What multiplies a group of rows with some outputs' weights; how many outputs, and how often in a row."""
        c, shape = self.c, self.shape
        weights = self._address(weight)
        if shape.kind == "f32":

            def multiply_f32(output: Any, row: Any, group: int) -> list[Any]:
                row_bytes = c.size(4 * columns)
                each = [c.at(weights, c.b.mul(row_bytes, c.b.add(output, c.size(n)))) for n in range(_OUTPUTS)]
                x = c.at(rows, c.b.mul(row, row_bytes))
                return [four_totals(c, sums) for sums in partial_sums(c, x, each, c.size(columns), row_bytes, group)]

            return multiply_f32, _OUTPUTS, 4 * _TOGETHER
        scales = self._address(weight + 1)
        self._quantize(rows, columns)

        def multiply(output: Any, row: Any, group: int) -> list[Any]:
            owns = [self._quantized(c.b.add(row, c.size(n))) for n in range(group)]
            coarse, fine = owns, [c.at(own, columns) for own in owns]
            sums = [c.at(own, 2 * columns) for own in owns]
            steps = [c.load(c.f32, own, shape.quantized_row - 4) for own in owns]
            if shape.kind == "int8":
                start = c.at(weights, c.b.mul(output, c.size(columns)))
                found = block_int8(c, start, c.size(columns // 4), coarse, fine, sums)
                scale = c.load(c.vector(c.f32), scales, c.b.mul(output, c.size(4)))
                found = [c.b.fmul(value, scale) for value in found]
            else:
                groups = columns // QUANTIZED_GROUP
                start = c.at(weights, c.b.mul(output, c.size(groups * INT4_BLOCK // LANES)))
                found = block_int4(c, start, c.size(groups), coarse, fine, sums)
            return [c.b.fmul(value, c.spread(step)) for value, step in zip(found, steps, strict=True)]

        return multiply, LANES, _TOGETHER

    def _quantized(self, row: Any) -> Any:
        """Where this thread has a row in 8 bits: coarse, fine, sums, and at the end the size of a fine step."""
        c = self.c
        return c.at(self.scratch, c.b.add(self.normed, c.b.mul(row, c.size(self.shape.quantized_row))))

    def _quantize(self, rows: Any, columns: int) -> None:
        c, shape = self.c, self.shape
        assert shape.kind != "f32"
        with c.loop(0, self.rows) as row:
            own = self._quantized(row)
            source = c.at(rows, c.b.mul(row, c.size(4 * columns)))
            fine, sums = c.at(own, columns), c.at(own, 2 * columns)
            step = quantize_row(c, source, c.size(columns), own, fine, sums, shape.kind)
            c.store(step, own, shape.quantized_row - 4)


def _silu(c: Code, x: Any) -> Any:
    """X / (1 + e^-x), from e to the -|x|, which is never too large."""
    kind = x.type
    small = exponential(c, c.b.fneg(c.call(f"llvm.fabs.v{kind.count}f32", kind, x)))
    above = c.b.select(c.b.fcmp_ordered(">=", x, c.all(kind, 0.0)), c.all(kind, 1.0), small)
    return c.b.fdiv(c.b.fmul(x, above), c.b.fadd(c.all(kind, 1.0), small))


def _gelu(c: Code, x: Any) -> Any:
    """X / 2 * erfc(-x / sqrt 2), as max(x, 0) - |x| / 2 * erfc(|x| / sqrt 2); off by at most 2.4e-7."""
    kind = x.type
    size = c.call(f"llvm.fabs.v{kind.count}f32", kind, x)
    z = c.b.fmul(size, c.all(kind, math.sqrt(0.5)))
    t = c.b.fdiv(c.all(kind, 1.0), c.fma(z, c.all(kind, 0.5), c.all(kind, 1.0)))
    power = c.all(kind, _ERFC[-1])
    for coefficient in reversed(_ERFC[:-1]):
        power = c.fma(power, t, c.all(kind, coefficient))
    tail = c.b.fmul(exponential(c, c.fma(c.b.fneg(z), z, power)), t)
    above = c.call(f"llvm.maximum.v{kind.count}f32", kind, x, c.all(kind, 0.0))
    return c.fma(c.b.fmul(size, c.all(kind, -0.5)), tail, above)
