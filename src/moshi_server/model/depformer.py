"""The depth transformer: the codes of one frame, a codebook at a time, from the hidden state of one step.

It draws no tokens itself, keeps nothing from frame to frame, and knows no file. Shapes and arithmetic follow upstream
(``moshi-core/src/lm.rs``, ``moshi/models/lm.py``): one position for each codebook, with weights of its own or shared
by a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.embedding import TokenEmbedding
from moshi_server.model.transformer import GatedMlp, LayerNorm, RMSNorm, TransformerSpec, build_norm

Draw = Callable[[Tensor, int], Tensor]
"""Tokens (B,) int64 from the logits (B, V) f32 of a codebook."""


@dataclass(frozen=True)
class DepformerSpec:
    """The shape of a depth transformer over ``codebooks`` codes.

    Codebook k is made with the weights ``schedule[k]``; without a schedule each has its own. ``shared_input`` projects
    the hidden state by one matrix for all. ``widths`` are the inner widths of the feed-forward by weights, where they
    differ. ``norms`` normalizes each codebook's output before its logits.
    """

    codebooks: int
    transformer: TransformerSpec
    schedule: tuple[int, ...] | None = None
    shared_input: bool = False
    low_rank: int | None = None
    widths: tuple[int, ...] | None = None
    norms: Literal["rms_norm", "layer_norm"] | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and len(self.schedule) != self.codebooks:
            raise ValueError(f"a schedule of {len(self.schedule)} entries for {self.codebooks} codebooks")
        if self.transformer.positional_embedding != "none":
            raise ValueError("a depth transformer has no positional embedding but its weights")
        if self.widths is not None and len(self.widths) != self.weights:
            raise ValueError(f"{len(self.widths)} widths of the feed-forward for {self.weights} sets of weights")
        if self.weights > 1 and self.transformer.gating == "none":
            raise ValueError("a depth transformer with weights by codebook has a gated feed-forward")

    @property
    def weights(self) -> int:
        """How many sets of weights there are."""
        return self.codebooks if self.schedule is None else max(self.schedule) + 1

    def weight_of(self, codebook: int) -> int:
        """Which set of weights makes ``codebook``."""
        return codebook if self.schedule is None else self.schedule[codebook]

    def width_of(self, weight: int) -> int:
        """The inner width of that set's feed-forward."""
        return self.transformer.hidden if self.widths is None else self.widths[weight]


class DepformerLayer(nn.Module):
    """Attention over the frame's codebooks so far, then a feed-forward; each projection is a list by set of weights."""

    def __init__(self, spec: DepformerSpec) -> None:
        super().__init__()
        shape, sets = spec.transformer, range(spec.weights)
        self.heads, self.kv_heads, self.head_dim = shape.num_heads, shape.kv_heads, shape.head_dim
        width = (shape.num_heads + 2 * shape.kv_heads) * shape.head_dim
        self.norm1 = build_norm(shape)
        self.in_projs = nn.ModuleList(nn.Linear(shape.d_model, width, bias=False) for _ in sets)
        self.out_projs = nn.ModuleList(nn.Linear(shape.d_model, shape.d_model, bias=False) for _ in sets)
        self.norm2 = build_norm(shape)
        self.gating: nn.ModuleList | None = None
        if shape.gating == "silu":
            self.gating = nn.ModuleList(GatedMlp(shape, spec.width_of(index)) for index in sets)
        else:
            self.linear1 = nn.Linear(shape.d_model, shape.hidden, bias=False)
            self.linear2 = nn.Linear(shape.hidden, shape.d_model, bias=False)

    def step(self, x: Tensor, cache: Tensor, codebook: int, weight: int) -> Tensor:
        """(B, D_model) -> same; ``cache`` (2, B, H_kv, codebooks, D) takes this codebook's keys and values."""
        qkv = self.in_projs[weight](self.norm1(x)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        cache[:, :, :, codebook] = torch.stack((k, v))
        if codebook == 0:  # one key has all the weight
            y = v.repeat_interleave(self.heads // self.kv_heads, dim=1) if self.heads != self.kv_heads else v
        else:
            keys, values = cache[:, :, :, : codebook + 1].unbind(0)
            y = self._attend(q, keys, values)
        x = x + self.out_projs[weight](y.flatten(1))
        h = self.norm2(x)
        h = self.linear2(functional.gelu(self.linear1(h))) if self.gating is None else self.gating[weight](h)
        out: Tensor = x + h
        return out

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries (B, H, D), keys and values (B, H_kv, T, D) -> (B, H, D)."""
        if q.dtype is torch.float32 or q.is_cuda:  # on a CPU the fused kernel is slow in 16 bits
            gqa = self.heads != self.kv_heads
            fused = functional.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=gqa)
            return fused[:, :, 0]
        batch = q.shape[0]
        grouped = (q * self.head_dim**-0.5).view(batch, self.kv_heads, -1, self.head_dim)
        scores = grouped @ keys.transpose(2, 3)
        mixed: Tensor = scores.float().softmax(-1).to(values.dtype) @ values
        return mixed.view(batch, self.heads, self.head_dim)


class Depformer(nn.Module):
    """The codes of a frame from a text token and the hidden state (``hidden_width``) that gave it."""

    def __init__(
        self,
        spec: DepformerSpec,
        hidden_width: int,
        text_in_vocab_size: int,
        audio_vocab_size: int,
        *,
        two_text_streams: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        width, low_rank = spec.transformer.d_model, spec.low_rank
        self.text_emb = TokenEmbedding(text_in_vocab_size, width, low_rank=low_rank, two_streams=two_text_streams)
        self.emb = nn.ModuleList(
            TokenEmbedding(audio_vocab_size, width, low_rank=low_rank) for _ in range(spec.codebooks - 1)
        )
        inputs = 1 if spec.shared_input else spec.weights
        self.linear_in = nn.ModuleList(nn.Linear(hidden_width, width, bias=False) for _ in range(inputs))
        self.layers = nn.ModuleList(DepformerLayer(spec) for _ in range(spec.transformer.num_layers))
        kind = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}.get(spec.norms or "")
        self.norms = nn.ModuleList(kind(width) for _ in range(spec.codebooks)) if kind is not None else None
        # It never says what stands for a codebook before the first step, the last of the vocabulary.
        self.linears = nn.ModuleList(nn.Linear(width, audio_vocab_size - 1, bias=False) for _ in range(spec.codebooks))

    def _layers(self) -> Iterator[DepformerLayer]:
        for layer in self.layers:
            assert isinstance(layer, DepformerLayer)
            yield layer

    def init_cache(self, rows: int) -> Tensor:
        """Keys and values of one frame: (layers, 2, B, H_kv, codebooks, D); need not be cleared between frames."""
        shape = self.spec.transformer
        size = (shape.num_layers, 2, rows, shape.kv_heads, self.spec.codebooks, shape.head_dim)
        weight = next(next(self._layers()).norm1.parameters())  # projections may be in fewer bits
        return torch.empty(size, dtype=weight.dtype, device=weight.device)

    def logits(self, codebook: int, previous: Tensor, hidden: Tensor, cache: Tensor) -> Tensor:
        """Logits (B, V) f32 of ``codebook``, from the token before it (B,): the text's for the first, `ZERO_TOKEN` for
        none. ``hidden`` is (B, D); ``cache`` is `init_cache`'s, filled by the codebooks before.
        """
        return self._logits(codebook, previous, self._project(codebook, hidden), cache)

    def _project(self, codebook: int, hidden: Tensor) -> Tensor:
        y: Tensor = self.linear_in[self._input_of(codebook)](hidden)
        return y

    def _input_of(self, codebook: int) -> int:
        return 0 if self.spec.shared_input else self.spec.weight_of(codebook)

    def _logits(self, codebook: int, previous: Tensor, projected: Tensor, cache: Tensor) -> Tensor:
        weight = self.spec.weight_of(codebook)
        x = projected + (self.text_emb(previous) if codebook == 0 else self.emb[codebook - 1](previous))
        for index, layer in enumerate(self._layers()):
            x = layer.step(x, cache[index], codebook, weight)
        if self.norms is not None:
            x = self.norms[codebook](x)
        y: Tensor = self.linears[codebook](x)
        return y.float()

    @torch.no_grad()
    def sample(
        self,
        hidden: Tensor,
        text: Tensor,
        draw: Draw,
        *,
        codebooks: int | None = None,
        forced: Tensor | None = None,
        guidance: float | Tensor | None = None,
        cache: Tensor | None = None,
    ) -> Tensor:
        """The codes (B, K) int64 of one frame, K being ``codebooks`` or all of them.

        Args:
            hidden: (B, D), or with ``guidance`` (2 * B, D): as conditioned, then without.
            text: the text tokens (B,) int64 just drawn.
            draw: chooses a codebook's tokens.
            codebooks: how many to make; the others are the least important.
            forced: (B, K) int64; where not negative, the code that the next codebook is told of instead of the drawn
                one. What is returned is what was drawn.
            guidance: the coefficient of classifier-free guidance, or (B, 1) of them.
            cache: `init_cache` of as many rows as ``hidden``, to be used again.
        """
        count = self.spec.codebooks if codebooks is None else codebooks
        cache = self.init_cache(len(hidden)) if cache is None else cache
        out: list[Tensor] = []
        previous = text
        # Codebooks of one set of weights begin with the same product.
        projected: dict[int, Tensor] = {}
        for codebook in range(count):
            shared = self._input_of(codebook)
            if shared not in projected:
                projected[shared] = self._project(codebook, hidden)
            if guidance is None:
                logits = self._logits(codebook, previous, projected[shared], cache)
            else:
                doubled = self._logits(codebook, previous.repeat(2), projected[shared], cache)
                with_condition, without = doubled.chunk(2)
                logits = without + (with_condition - without) * guidance
            previous = draw(logits, codebook)
            out.append(previous)
            if forced is not None:
                previous = torch.where(forced[:, codebook] >= 0, forced[:, codebook], previous)
        return torch.stack(out, dim=1)

    def forward(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """Logits (N, K, V) f32 of frames whose codes (N, K) are known; differentiable.

        ``hidden`` is (N, D), ``text`` (N,). All positions at once: what the steps of `sample` must equal.
        """
        spec = self.spec
        previous = torch.cat((text[:, None], codes[:, :-1]), dim=1)
        inputs = []
        for codebook in range(codes.shape[1]):
            x = self.linear_in[0 if spec.shared_input else spec.weight_of(codebook)](hidden)
            table = self.text_emb if codebook == 0 else self.emb[codebook - 1]
            inputs.append(x + table(previous[:, codebook]))
        x = torch.stack(inputs, dim=1)
        for layer in self._layers():
            x = self._forward_layer(layer, x)
        outputs = []
        for codebook in range(codes.shape[1]):
            y = x[:, codebook]
            outputs.append(self.linears[codebook](y if self.norms is None else self.norms[codebook](y)))
        return torch.stack(outputs, dim=1).float()

    def _forward_layer(self, layer: DepformerLayer, x: Tensor) -> Tensor:
        """(N, K, D_model) -> same."""
        sets = [self.spec.weight_of(codebook) for codebook in range(x.shape[1])]

        def each(modules: nn.ModuleList, y: Tensor) -> Tensor:
            return torch.stack([modules[weight](y[:, k]) for k, weight in enumerate(sets)], dim=1)

        qkv = each(layer.in_projs, layer.norm1(x)).view(*x.shape[:2], -1, layer.head_dim).transpose(1, 2)
        q, k, v = torch.split(qkv, [layer.heads, layer.kv_heads, layer.kv_heads], dim=1)
        scores = q @ k.repeat_interleave(layer.heads // layer.kv_heads, 1).transpose(2, 3) / math.sqrt(layer.head_dim)
        hidden = torch.ones(len(sets), len(sets), dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = mixed @ v.repeat_interleave(layer.heads // layer.kv_heads, 1)
        x = x + each(layer.out_projs, mixed.transpose(1, 2).flatten(2))
        h = layer.norm2(x)
        y = layer.linear2(functional.gelu(layer.linear1(h))) if layer.gating is None else each(layer.gating, h)
        out: Tensor = x + y
        return out
