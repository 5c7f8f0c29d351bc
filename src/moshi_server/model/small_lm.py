"""The step of a small language model on a CPU in as few operations as it takes; it samples nothing.

A layer of a small model is over before the next operation has been looked up. So the tables of all tokens are stacked
and summed by one operation, the weights of the norms are part of the products after them, all heads are one product,
and no step makes a mask. The numbers are `LmModel.step`'s, up to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from moshi_server.model.lm import LmModel
from moshi_server.model.quantize import QuantizedLinear
from moshi_server.model.streaming import State, leaf
from moshi_server.model.transformer import SHORT_RING, RMSNorm, TransformerLayer, constant, rotation

SMALL_LM = 256
"""No wider model is prepared: its weights are held twice then, and its products are what takes the time."""


def suits(lm: LmModel) -> bool:
    """Whether `SmallLm` steps this model: small, in f32 on a CPU, and of the plain layers of speech to text."""
    spec = lm.spec.transformer
    return (
        spec.d_model <= SMALL_LM
        and spec.context <= SHORT_RING
        and (spec.gating, spec.norm, spec.positional_embedding) == ("silu", "rms_norm", "rope")
        and spec.kv_repeat == 1
        and not (spec.bias_attn or spec.bias_ff or spec.cross or spec.layer_scale)
        and lm.depformer is None
        and not lm.spec.two_text_streams
        and all(p.dtype is torch.float32 and p.device.type == "cpu" for p in lm.parameters())
        and not any(isinstance(module, QuantizedLinear) for module in lm.modules())
    )


class _Layer(NamedTuple):
    """One layer's weights, (in, out) each, those after a norm with the norm's."""

    qkv: Tensor
    out: Tensor
    gate_value: Tensor
    down: Tensor


class _Plan(NamedTuple):
    """Where the streams of one step are: worked out once, used by every layer."""

    turn: Tensor  # (B, 1, D/2) complex
    rows: Tensor  # (B * 2 * H,), where keys and values go in a ring seen as rows of D
    first: int  # the lowest slot
    span: int  # how many slots from there on hold all that run
    spread: Tensor | None  # (B,), each stream's place among them, unless they are the streams themselves in order
    slots: Tensor | None  # (B,), if they lie too far apart to look at all between
    bias: Tensor  # (streams looked at * H, 1, context): 0 or minus infinity


class SmallLm:
    """Steps ``lm``, which `suits`, from the weights it has now.

    Args:
        condition: (D,), f32, added to every input.
    """

    @torch.no_grad()
    def __init__(self, lm: LmModel, condition: Tensor | None) -> None:
        spec = lm.spec
        self._spec = spec.transformer
        text = lm.text_emb.weight if condition is None else lm.text_emb.weight + condition.view(-1)
        tables: list[Tensor] = [text, *(table.get_parameter("weight") for table in lm.emb)]
        self._table = torch.cat(tables).detach().clone()
        sizes = [len(table) for table in tables]
        self._offsets = torch.tensor([sum(sizes[:index]) for index in range(len(sizes))])
        self._start = torch.tensor([spec.text_start_token, *[spec.audio_pad_token] * spec.audio_codebooks])
        self._layers = [_weights(layer) for layer in lm.transformer.layers]  # type: ignore[arg-type]
        heads = torch.cat(
            [lm.text_linear.get_parameter("weight"), *(head.get_parameter("weight") for head in lm.heads)]
        )
        self._read_out = _after(lm.out_norm, heads)  # type: ignore[arg-type]
        self._classes = spec.text_out_vocab_size
        self._heads = (spec.extra_heads_num, spec.extra_heads_dim)
        width, context = self._spec.d_model, self._spec.context
        self._epsilon = constant(math.sqrt(RMSNorm.EPS * width), torch.device("cpu"))
        seen = torch.ones(context, context, dtype=torch.bool).tril()
        self._bias = torch.zeros(context, context).masked_fill(~seen, -math.inf)
        # Of the keys, then of the values, each head's row in (H, 2, context), at entry 0.
        pair, head = torch.meshgrid(torch.arange(2), torch.arange(self._spec.num_heads), indexing="ij")
        self._head_rows = ((head * 2 + pair) * context).flatten()

    def init_state(self, slots: int) -> State:
        """``position`` (slots,) int64 and for layer n ``pairs.n`` (slots, H, 2, context, D): keys and values."""
        spec = self._spec
        state: State = {"position": torch.zeros(slots, dtype=torch.int64)}
        for index in range(spec.num_layers):
            state[f"pairs.{index}"] = torch.zeros(slots, spec.num_heads, 2, spec.context, spec.head_dim)
        return state

    def step(self, text: Tensor, audio: Tensor, first: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the streams ``slots`` (B,) by ``text`` (B,) and ``audio`` (B, K), or the initial tokens where it is
        a stream's ``first`` step, (B,) bool.

        Returns text logits (B, V) and each extra head's probability of its first class (B, H), both f32.
        """
        tokens = torch.cat((text[:, None], audio), dim=1)
        tokens = torch.where(first[:, None], self._start, tokens).add_(self._offsets)
        x = functional.embedding_bag(tokens, self._table, mode="sum")
        position = leaf(state, "position")
        start = position.index_select(0, slots)
        plan = self._plan(start, slots, len(position))
        for index, layer in enumerate(self._layers):
            x = self._layer(x, layer, leaf(state, f"pairs.{index}"), plan)
        position.index_copy_(0, slots, start.add_(1))
        made = torch.mm(self._normed(x), self._read_out)
        heads, width = self._heads
        logits = made[:, : self._classes]
        if not heads:
            return logits, made.new_zeros(len(made), 0)
        return logits, made[:, self._classes :].reshape(-1, heads, width).softmax(-1)[..., 0]

    def _plan(self, start: Tensor, slots: Tensor, seats: int) -> _Plan:
        spec = self._spec
        context, heads = spec.context, spec.num_heads
        base = (slots * (2 * heads * context)).add_(start % context)
        rows = (base[:, None] + self._head_rows).flatten()
        bias = self._bias.index_select(0, start.clamp(max=context - 1))
        places, spread = slots.tolist(), None
        count, low = len(places), min(places)
        span = max(places) - low + 1
        near = span <= 2 * count
        if near and places != list(range(low, low + count)):
            spread = slots - low
            bias = bias.new_zeros(span, context).index_copy_(0, spread, bias)
        bias = bias.repeat_interleave(heads, 0)[:, None] if len(bias) > 1 else bias.expand(heads, 1, -1)
        return _Plan(rotation(start, spec), rows, low, span, spread, None if near else slots, bias)

    def _normed(self, x: Tensor) -> Tensor:
        """``x`` by its length: `RMSNorm` but for its weights and the root of the width, which `_after` has."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, self._epsilon)

    def _layer(self, x: Tensor, layer: _Layer, ring: Tensor, plan: _Plan) -> Tensor:
        x = torch.addmm(x, self._attend(torch.mm(self._normed(x), layer.qkv), ring, plan), layer.out)
        gate, value = torch.mm(self._normed(x), layer.gate_value).chunk(2, dim=-1)
        return torch.addmm(x, functional.silu(gate).mul_(value), layer.down)

    def _attend(self, qkv: Tensor, ring: Tensor, plan: _Plan) -> Tensor:
        """Queries, keys and values (B, 3 * D_model) -> what they find (B, D_model)."""
        batch, width = len(qkv), self._spec.d_model
        heads, size, context = self._spec.num_heads, self._spec.head_dim, self._spec.context
        turned = qkv[:, : 2 * width].view(batch, 2 * heads, size // 2, 2)
        torch.view_as_complex(turned).mul_(plan.turn)
        ring.view(-1, size).index_copy_(0, plan.rows, qkv[:, width:].reshape(-1, size))
        q = qkv[:, :width]
        if plan.spread is not None:
            q = q.new_zeros(plan.span, width).index_copy_(0, plan.spread, q)
        far = plan.slots
        pairs = ring.narrow(0, plan.first, plan.span) if far is None else ring.index_select(0, far)
        keys, values = pairs.view(-1, 2, context, size).unbind(1)
        scores = torch.baddbmm(plan.bias, q.reshape(-1, 1, size), keys.transpose(1, 2), alpha=size**-0.5)
        y = torch.bmm(scores.softmax(-1), values).view(-1, width)
        return y if plan.spread is None else y.index_select(0, plan.spread)


def _after(norm: RMSNorm, weight: Tensor) -> Tensor:
    """The weight (out, in) of a product after ``norm``, with the norm's, as (in, out)."""
    width = weight.shape[1]
    return (weight.detach() * (norm.alpha.detach().view(-1) * math.sqrt(width))).t().contiguous()


def _weights(layer: TransformerLayer) -> _Layer:
    attention, gating = layer.self_attn, layer.gating
    assert gating is not None
    assert isinstance(layer.norm1, RMSNorm)
    assert isinstance(layer.norm2, RMSNorm)
    return _Layer(
        _after(layer.norm1, attention.in_proj.weight),
        attention.out_proj.weight.detach().t().contiguous(),
        _after(layer.norm2, gating.linear_in.weight),
        gating.linear_out.weight.detach().t().contiguous(),
    )
