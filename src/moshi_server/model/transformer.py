"""The causal transformer of Mimi and of the language models, whole or step by step; it knows no file and no token.

Names and numbers follow upstream (``moshi/modules/transformer.py``, ``moshi-core/src/batched_transformer.rs``): norms
first, interleaved rotary positions, a window of ``context`` positions kept in a ring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model import ring_attention, ring_jit
from moshi_server.model.cross_attention import CrossAttention, CrossSpec
from moshi_server.model.layers_jit import Layers
from moshi_server.model.ring_attention import Ring
from moshi_server.model.streaming import State, StreamingModule, leaf


@dataclass(frozen=True)
class TransformerSpec:
    """The shape of a transformer; the defaults are upstream's where it has any."""

    d_model: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    context: int
    gating: Literal["none", "silu"] = "none"
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    positional_embedding: Literal["rope", "none"] = "rope"
    max_period: float = 10_000.0
    layer_scale: float | None = None
    kv_repeat: int = 1
    bias_ff: bool = False
    bias_attn: bool = False
    gated_width: int | None = None
    """Inner width of a gated feed-forward; by default the rule of upstream's Rust server."""
    cross: CrossSpec | None = None
    """What every layer attends to beside the stream, if anything."""

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ValueError(f"d_model {self.d_model} does not give {self.num_heads} heads of one even width")
        if self.num_heads % self.kv_repeat:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of kv_repeat {self.kv_repeat}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves ``kv_repeat`` heads of queries."""
        return self.num_heads // self.kv_repeat

    @property
    def hidden(self) -> int:
        """Inner width of the feed-forward."""
        if self.gating == "none":
            return self.dim_feedforward
        if self.gated_width is not None:
            return self.gated_width
        if self.dim_feedforward == 4 * self.d_model:
            return 11 * self.d_model // 4
        return 2 * self.dim_feedforward // 3


@cache
def constant(value: float, device: torch.device) -> Tensor:
    """``value``, f32, where some operation only takes a tensor: made once, since small models call nothing as often."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


class RMSNorm(nn.Module):
    """Root mean square normalization in f32, with upstream's epsilon."""

    EPS = 1e-8

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D) in the type of ``x``."""
        if x.is_cuda:  # one kernel there, but as many as it has operations on a CPU
            return functional.rms_norm(x, (x.shape[-1],), self.alpha.flatten().to(x.dtype), self.EPS)
        y = x.float()
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        scale = torch.addcmul(constant(self.EPS, y.device), length, length, value=1 / y.shape[-1]).rsqrt()
        return (y * scale * self.alpha.view(-1).float()).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalization in f32, with upstream's epsilon."""

    EPS = 1e-5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D) in the type of ``x``."""
        return functional.layer_norm(x.float(), (x.shape[-1],), self.weight.float(), self.bias.float(), self.EPS).to(
            x.dtype
        )


def build_norm(spec: TransformerSpec) -> RMSNorm | LayerNorm:
    """The norm that ``spec`` names, over ``d_model``."""
    return RMSNorm(spec.d_model) if spec.norm == "rms_norm" else LayerNorm(spec.d_model)


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.scale


class GatedMlp(nn.Module):
    """A gated feed-forward: SiLU of one half of the projection times the other."""

    def __init__(self, spec: TransformerSpec, width: int | None = None) -> None:
        super().__init__()
        width = width or spec.hidden
        self.linear_in = nn.Linear(spec.d_model, 2 * width, bias=spec.bias_ff)
        self.linear_out = nn.Linear(width, spec.d_model, bias=spec.bias_ff)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.linear_in(x).chunk(2, dim=-1)
        y: Tensor = self.linear_out(functional.silu(gate) * value)
        return y


def rotation(positions: Tensor, spec: TransformerSpec) -> Tensor:
    """Unit complex numbers (..., 1, D/2), complex64, that turn a head of width D at ``positions`` (...)."""
    angles = positions[..., None, None] * frequencies(spec.head_dim, spec.max_period, positions.device)
    return torch.polar(constant(1.0, positions.device), angles)


@cache
def frequencies(width: int, max_period: float, device: torch.device) -> Tensor:
    """By how much each pair of channels of a head turns from one position to the next, (width / 2,) f32."""
    half = width // 2
    with torch.inference_mode(False):
        exponents = torch.arange(half, device=device, dtype=torch.float32)
        return torch.exp(exponents * (-math.log(max_period) / half))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn ``x`` (B, T, H, D) by ``turn`` (B or 1, T, 1, D/2), even and odd channels as pairs, in f32."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def rotate_(x: Tensor, turn: Tensor) -> None:
    """As `rotate`, in place."""
    if x.dtype is torch.float32:
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turn)
    else:
        x.copy_(rotate(x, turn))


def visible_keys(last: Tensor, steps: int, keys: int, context: int) -> Tensor:
    """Which of the ring's first ``keys`` entries the newest ``steps`` positions may see: (..., steps, keys) bool.

    ``last`` (...) is the newest position written. An entry's age is how many positions it lies behind it.
    """
    entries = torch.arange(keys, device=last.device)
    age = (last[..., None] - entries) % context
    written = age <= last[..., None]
    ahead = torch.arange(steps - 1, -1, -1, device=last.device)
    return written[..., None, :] & (age[..., None, :] >= ahead[:, None])


SHORT_RING = 64
"""Rings no longer than this are gathered on a CPU too, if several streams run: one product for all of them."""


def visible_ahead(start: Tensor, steps: int, piece: int, context: int) -> Tensor:
    """What ``steps`` positions from ``start`` (B,) see, as if they came in pieces of ``piece``: (B, 1, steps, keys).

    The keys are the ring's ``context`` entries as they were before, then the new positions themselves.
    """
    new = torch.arange(steps, device=start.device)
    newest = new - new % piece + piece - 1  # written when a position looks
    age = (start[:, None] - 1 - torch.arange(context, device=start.device)) % context  # of each entry, at start - 1
    written = age < start[:, None]
    past = written[:, None] & (age[:, None] + 1 + newest[:, None] < context)
    ours = new <= new[:, None]  # no more than ``context`` of them, so that none has left the ring
    return torch.cat((past, ours.expand(len(start), -1, -1)), dim=2)[:, None]


class Span(NamedTuple):
    """One stream's part of a ring."""

    slot: int
    keys: int  # how many entries are written
    newest: int  # which of them last
    hidden: Tensor | None  # what each position may not see, (T, count), where there are several


@dataclass(frozen=True)
class Window:
    """Where one step writes in the ring and what it reads of it: worked out once, used by every layer.

    On a CPU, ``spans`` says where each stream is: attention then costs what each stream has heard, not ``context``.
    Elsewhere reading positions back would stall the device, and several streams with a short ring cost less together:
    the whole ring is gathered then, and ``mask`` hides what is not there. Kernels that read the ring in place need to
    know ``start`` only.
    """

    slots: Tensor  # (B,)
    entries: Tensor  # (B, T), where in the ring
    turn: Tensor | None  # (B, T, 1, D/2)
    spans: list[Span] | None
    mask: Tensor | None  # (B, 1, T, context)

    rows: tuple[int, ...] | None = None
    """The slots again, where the host knows them for nothing."""

    start: Tensor | None = None
    """(B,), where each stream's new positions begin, if kernels read the ring in place."""

    ahead: bool = False
    """``mask`` is `visible_ahead`'s (B, 1, T, context + T): the new keys are written after all have looked."""

    @staticmethod
    def at(
        start: Tensor,
        slots: Tensor,
        steps: int,
        spec: TransformerSpec,
        piece: int | None = None,
        *,
        eight_bit: bool = False,
        in_place: bool = False,
    ) -> Window:
        """The window of the streams ``slots`` (B,) whose next position is ``start`` (B,).

        ``in_place``: the host has code that reads the ring where it lies.
        """
        context = spec.context
        positions = start[:, None] if steps == 1 else start[:, None] + torch.arange(steps, device=start.device)
        turn = rotation(positions, spec) if spec.positional_embedding == "rope" else None
        if piece is not None and piece < steps:
            mask = visible_ahead(start, steps, piece, context)
            return Window(slots, positions % context, turn, None, mask, ahead=True)
        if in_place or ring_attention.in_place(start.device):
            return Window(slots, positions, turn, None, None, start=start)
        last = positions[:, -1]
        if start.device.type != "cpu" or eight_bit or (len(slots) > 1 and context <= SHORT_RING):
            mask = visible_keys(last, steps, context, context)[:, None]
            rows = tuple(slots.tolist()) if start.device.type == "cpu" and spec.cross is not None else None
            return Window(slots, positions % context, turn, None, mask, rows)
        spans: list[Span] = []
        for row, (slot, end) in enumerate(zip(slots.tolist(), last.tolist(), strict=True)):
            keys = min(end + 1, context)
            hidden = ~visible_keys(last[row], steps, keys, context) if steps > 1 else None
            spans.append(Span(slot, keys, end % context, hidden))
        return Window(slots, positions % context, turn, spans, None, tuple(span.slot for span in spans))

    def write(self, ring: Ring, new: Tensor) -> None:
        """Put keys and values (B, T, 2, H_kv, D) in their entries of ``ring``."""
        if self.spans is not None and new.shape[:2] == (1, 1):
            slot, _, newest, _ = self.spans[0]
            ring.values[slot, :, :, newest] = new[0, 0]
        else:
            ring.write(self.slots, self.entries, new)


class Attention(nn.Module):
    """Causal self-attention over the last ``context`` positions, this one included."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        width = (spec.num_heads + 2 * spec.kv_heads) * spec.head_dim
        self.in_proj = nn.Linear(spec.d_model, width, bias=spec.bias_attn)
        self.out_proj = nn.Linear(spec.d_model, spec.d_model, bias=spec.bias_attn)

    def _project(self, x: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D_model) -> queries (B, T, H, D), keys and values (B, T, H_kv, D)."""
        spec = self.spec
        heads, kv_heads = spec.num_heads, spec.kv_heads
        qkv = self.in_proj(x).unflatten(-1, (-1, spec.head_dim))
        qk, v = qkv.split((heads + kv_heads, kv_heads), dim=2)
        if turn is not None:
            qk = rotate(qk, turn)
        q, k = qk.split((heads, kv_heads), dim=2)
        return q, k, v

    def forward(self, x: Tensor, turn: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, T, D_model) -> same; ``mask`` (T, T) bool, or None where being causal says it all."""
        q, k, v = (part.transpose(1, 2) for part in self._project(x, turn))
        gqa = self.spec.kv_repeat > 1
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def step(self, x: Tensor, ring: Ring, window: Window) -> Tensor:
        """(B, T, D_model) -> same; ``ring`` takes the new keys and values first."""
        if window.start is not None:
            y = self._attend_in_place(x, ring, window, window.start)
            attended: Tensor = self.out_proj(y.flatten(2).to(x.dtype))
            return attended
        spec = self.spec
        qkv = self.in_proj(x).unflatten(-1, (-1, spec.head_dim))
        if window.turn is not None:
            rotate_(qkv[:, :, : spec.num_heads + spec.kv_heads], window.turn)
        if ring.scales is None:
            qkv = qkv.to(ring.values.dtype)
        q, new = qkv[:, :, : spec.num_heads], qkv[:, :, spec.num_heads :].unflatten(2, (2, spec.kv_heads))
        ahead = self._attend_ahead(q, new, ring, window) if window.ahead else None
        window.write(ring, new)
        if ahead is not None:
            y = ahead
        elif window.spans is None:
            y = self._attend_gathered(q, ring, window)
        else:
            y = self._attend_spans(q, ring.values, window.spans)
        out: Tensor = self.out_proj(y.flatten(2).to(x.dtype))
        return out

    def _attend_in_place(self, x: Tensor, ring: Ring, window: Window, start: Tensor) -> Tensor:
        qkv = self.in_proj(x)
        if not x.is_cuda:
            turn = None if window.turn is None else window.turn.flatten(1)
            y = ring_jit.step(qkv.flatten(1).float(), turn, ring.values, window.slots, start, self.spec.num_heads)
            return y[:, None]
        from moshi_server.model import ring_kernels

        q = ring_kernels.rotate_and_write(qkv, window.turn, ring, window.slots, start, self.spec.num_heads)
        return ring_kernels.attend(q, ring, window.slots, start)

    def _attend_ahead(self, q: Tensor, new: Tensor, ring: Ring, window: Window) -> Tensor:
        past = ring.gather(window.slots, q.dtype)
        keys, values = torch.cat((past, new.permute(0, 2, 3, 1, 4)), dim=3).unbind(1)
        gqa = self.spec.kv_repeat > 1
        y = functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=window.mask, enable_gqa=gqa
        )
        return y.transpose(1, 2)

    def _attend_gathered(self, q: Tensor, ring: Ring, window: Window) -> Tensor:
        keys, values = ring.gather(window.slots, q.dtype).unbind(1)
        gqa = self.spec.kv_repeat > 1
        y = functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=window.mask, enable_gqa=gqa
        )
        return y.transpose(1, 2)

    def _attend_spans(self, q: Tensor, ring: Tensor, spans: list[Span]) -> Tensor:
        # Two batched products over one stream's heads: the fused CPU kernel is up to 12 times slower in bf16, and
        # gathering several streams copies their whole rings.
        batch, steps, heads, width = q.shape
        rows: list[Tensor] = []
        grouped = q.transpose(1, 2).reshape(batch, self.spec.kv_heads, -1, width)
        unused = grouped.new_empty(())
        for row, (slot, count, _, hidden) in enumerate(spans):
            keys, values = ring[slot, :, :, :count].unbind(0)
            scores = torch.baddbmm(unused, grouped[row], keys.transpose(1, 2), beta=0, alpha=width**-0.5).float()
            if hidden is not None:
                scores.view(-1, steps, count).masked_fill_(hidden, -math.inf)
            mixed = torch.bmm(scores.softmax(-1).to(values.dtype), values)
            rows.append(mixed.view(heads, steps, width))
        return (rows[0][None] if batch == 1 else torch.stack(rows)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each normed first and added back."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.norm1 = build_norm(spec)
        self.self_attn = Attention(spec)
        self.cross_attention: CrossAttention | None = None
        if spec.cross is not None:
            self.norm_cross = (RMSNorm if spec.cross.norm == "rms_norm" else LayerNorm)(spec.d_model)
            self.cross_attention = CrossAttention(spec.d_model, spec.num_heads, spec.cross, bias=spec.bias_attn)
        self.norm2 = build_norm(spec)
        self.gating: GatedMlp | None = None
        if spec.gating == "silu":
            self.gating = GatedMlp(spec)
        else:
            self.linear1 = nn.Linear(spec.d_model, spec.hidden, bias=spec.bias_ff)
            self.linear2 = nn.Linear(spec.hidden, spec.d_model, bias=spec.bias_ff)
        scale = spec.layer_scale
        self.layer_scale_1 = nn.Identity() if scale is None else LayerScale(spec.d_model, scale)
        self.layer_scale_2 = nn.Identity() if scale is None else LayerScale(spec.d_model, scale)
        if spec.cross is not None:
            self.layer_scale_cross = nn.Identity() if scale is None else LayerScale(spec.d_model, scale)

    def _feed_forward(self, x: Tensor) -> Tensor:
        h = self.norm2(x)
        h = self.gating(h) if self.gating is not None else self.linear2(functional.gelu(self.linear1(h)))
        y: Tensor = x + self.layer_scale_2(h)
        return y

    def forward(self, x: Tensor, turn: Tensor | None, mask: Tensor | None, source: Tensor | None = None) -> Tensor:
        """(B, T, D_model) -> same; ``source`` (B, length, source width) where the layer attends to one."""
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), turn, mask))
        if self.cross_attention is not None:
            assert source is not None, "this transformer attends to a source"
            y = self.cross_attention(self.norm_cross(x), self.cross_attention.keys_values(source))
            x = x + self.layer_scale_cross(y)
        return self._feed_forward(x)

    def step(self, x: Tensor, ring: Ring, window: Window, held: Tensor | None = None) -> Tensor:
        """(B, T, D_model) -> same; see `Attention.step` and `CrossAttention.step`."""
        x = x + self.layer_scale_1(self.self_attn.step(self.norm1(x), ring, window))
        if self.cross_attention is not None:
            assert held is not None, "this transformer attends to a source"
            y = self.cross_attention.step(self.norm_cross(x), held, window.slots, window.rows)
            x = x + self.layer_scale_cross(y)
        return self._feed_forward(x)


LEAST_WIDTH: Final = 512
"""Of a transformer whose layers are stepped in one call; narrower ones lie in the cache, where that gains nothing."""


class StreamingTransformer(StreamingModule):
    """A stack of layers; its state is one ring of keys and values for each layer and one position for each slot."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(TransformerLayer(spec) for _ in range(spec.num_layers))
        self._together: Layers | None = None

    def prepare(self) -> None:
        """Once weights do not change any more: step all layers in one call, where there is code for it and it pays."""
        wide = self.spec.d_model >= LEAST_WIDTH
        self._together = Layers(self) if wide and Layers.takes(self) else None

    def _layers(self) -> Iterator[TransformerLayer]:
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            yield layer

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """(B, T, D_model) -> same, from the beginning of a stream; each position sees the last ``context`` ones, and
        all of ``source`` (B, length, source width) if there is cross-attention.
        """
        steps, context = x.shape[1], self.spec.context
        positions = torch.arange(steps, device=x.device)
        turn = rotation(positions, self.spec)[None] if self.spec.positional_embedding == "rope" else None
        mask = None
        if steps > context:
            behind = positions[:, None] - positions
            mask = (behind >= 0) & (behind < context)
        for layer in self._layers():
            x = layer(x, turn, mask, source)
        return x

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """``position`` (slots,) int64, and for layer n ``ring.n`` (slots, 2, H_kv, context, D) and, with
        cross-attention, ``cross.n`` (slots, 2, H, length, D).

        With ``dtype`` int8 the rings are held in 8 bits, each with its ``scales.n`` (`ring_attention`).
        """
        spec = self.spec
        device, dtype = self.placement(device, dtype)
        shape = (slots, 2, spec.kv_heads, spec.context, spec.head_dim)
        state: State = {"position": torch.zeros(slots, dtype=torch.int64, device=device)}
        for index in range(spec.num_layers):
            state[f"ring.{index}"] = torch.zeros(shape, device=device, dtype=dtype)
            if dtype == torch.int8:
                state[f"scales.{index}"] = torch.zeros(shape[:-1], device=device, dtype=torch.float16)
            if spec.cross is not None:
                held = (slots, 2, spec.num_heads, spec.cross.length, spec.head_dim)
                state[f"cross.{index}"] = torch.zeros(
                    held, device=device, dtype=self.placement(None, None)[1] if dtype == torch.int8 else dtype
                )
        return state

    @torch.no_grad()
    def keys_values(self, source: Tensor) -> list[Tensor]:
        """What the layers make of a source (length, source width): (2, H, length, D) each, for `attend_to`."""
        made = []
        for layer in self._layers():
            assert layer.cross_attention is not None, "this transformer attends to no source"
            made.append(layer.cross_attention.keys_values(source[None])[0].contiguous())
        return made

    @torch.no_grad()
    def attend_to(self, keys_values: list[Tensor], state: State, slot: int) -> None:
        """From the next step on, the stream in ``slot`` attends to the source that `keys_values` was made of."""
        for index, held in enumerate(keys_values):
            leaf(state, f"cross.{index}")[slot] = held

    @torch.no_grad()
    def step(self, x: Tensor, state: State, slots: Tensor, piece: int | None = None) -> Tensor:
        """(B, T, D_model) -> same, the next T <= ``context`` positions of each stream.

        As upstream, all T keys are written before the first position looks: with T > 1 and a full ring, the first
        position sees T - 1 fewer keys than ``forward`` would show it. Given ``piece``, which divides T, the numbers are
        those of T / piece calls with ``piece`` positions each.
        """
        steps = x.shape[1]
        assert 0 < steps <= self.spec.context, f"{steps} positions do not fit a ring of {self.spec.context}"
        assert piece is None or steps % piece == 0, f"{steps} positions are not pieces of {piece}"
        position = leaf(state, "position")
        start = position.index_select(0, slots)
        together = self._together
        if together is not None and piece in (None, steps) and together.suits(len(x), steps, state):
            positions = start[:, None] if steps == 1 else start[:, None] + torch.arange(steps)
            turn = rotation(positions, self.spec) if self.spec.positional_embedding == "rope" else None
            x = together.step(x, turn, state, slots, start)
            position.index_copy_(0, slots, start + steps)
            return x
        held_as = leaf(state, "ring.0").dtype
        in_place = steps == 1 and ring_jit.takes(self.spec.head_dim, held_as, x.device)
        eight_bit = held_as is torch.int8
        window = Window.at(start, slots, steps, self.spec, piece, eight_bit=eight_bit, in_place=in_place)
        for index, layer in enumerate(self._layers()):
            held = leaf(state, f"cross.{index}") if self.spec.cross is not None else None
            x = layer.step(x, Ring.of(state, index), window, held)
        position.index_copy_(0, slots, start + steps)
        return x
