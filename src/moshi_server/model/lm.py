"""The language model over text and audio tokens: embeddings in, text logits and hidden state out; it samples nothing.

What speaks has a depth transformer beside it, which makes the codes of a frame from the hidden state.

Tensor names and arithmetic follow upstream (``moshi-core/src/lm.rs``, ``moshi/models/lm.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model import ring_jit
from moshi_server.model.conditioning import ConditionerSpec, ConditionProvider
from moshi_server.model.depformer import Depformer, DepformerSpec
from moshi_server.model.embedding import TokenEmbedding, TokenTable
from moshi_server.model.quantize import QuantizedLinear
from moshi_server.model.streaming import State
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec, build_norm


@dataclass(frozen=True)
class LmSpec:
    """The shape of a language model, as a configuration's ``[modules.NAME.model]`` gives it.

    One with a depth transformer may be given `ZERO_TOKEN` for any token. ``two_text_streams``: see `TokenEmbedding`.
    """

    text_in_vocab_size: int
    text_out_vocab_size: int
    audio_vocab_size: int
    audio_codebooks: int
    transformer: TransformerSpec
    extra_heads_num: int = 0
    extra_heads_dim: int = 0
    conditioners: Mapping[str, ConditionerSpec] = field(default_factory=dict)
    depformer: DepformerSpec | None = None
    two_text_streams: bool = False

    def __post_init__(self) -> None:
        if self.two_text_streams and self.depformer is None:
            raise ValueError("only a model with a depth transformer is given two streams of text")

    @property
    def text_start_token(self) -> int:
        """What stands for the text before the first step."""
        return self.text_in_vocab_size - 1

    @property
    def audio_pad_token(self) -> int:
        """What stands for each codebook before the first step."""
        return self.audio_vocab_size - 1


class LmModel(nn.Module):
    """One token of text from one token of text and one frame of audio codes, at each step."""

    def __init__(self, spec: LmSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.transformer.d_model
        self.text_emb = TokenEmbedding(spec.text_in_vocab_size, width, two_streams=spec.two_text_streams)
        self.emb = nn.ModuleList(TokenTable(spec.audio_vocab_size, width) for _ in range(spec.audio_codebooks))
        self.transformer = StreamingTransformer(spec.transformer)
        self.out_norm = build_norm(spec.transformer)
        self.text_linear: nn.Linear | QuantizedLinear = nn.Linear(width, spec.text_out_vocab_size, bias=False)
        self.heads = nn.ModuleList(
            nn.Linear(width, spec.extra_heads_dim, bias=False) for _ in range(spec.extra_heads_num)
        )
        self.condition_provider = ConditionProvider(spec.conditioners, width) if spec.conditioners else None
        self.depformer: Depformer | None = None
        if spec.depformer is not None:
            self.depformer = Depformer(
                spec.depformer,
                width,
                spec.text_in_vocab_size,
                spec.audio_vocab_size,
                two_text_streams=spec.two_text_streams,
            )

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the layers; logits and conditions are f32 whatever it is."""
        return next(self.out_norm.parameters()).dtype  # embeddings may be in fewer bits

    def _embed(self, text: Tensor, audio: Tensor, condition: Tensor | None) -> Tensor:
        """Text (...) and audio (K, ...) tokens -> (..., D); summed in f32."""
        if self.depformer is None:
            parts = [functional.embedding(text, self.text_emb.weight)]
            parts += [table(codes) for table, codes in zip(self.emb, audio, strict=True)]
            x = torch.stack(parts).sum(0, dtype=torch.float32)
        else:
            known = audio.clamp(min=0)
            codes = torch.stack([table(row) for table, row in zip(self.emb, known, strict=True)])
            x = codes.masked_fill((audio < 0)[..., None], 0).sum(0, dtype=torch.float32) + self.text_emb(text)
        if condition is not None:
            x = x + condition
        return x.to(self.dtype)

    def _read_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden: Tensor = self.out_norm(x)
        head = self.text_linear
        if isinstance(head, QuantizedLinear):
            return head(hidden.float()), hidden
        return functional.linear(hidden.float(), head.weight.float()), hidden

    def forward(
        self, text: Tensor, audio: Tensor, condition: Tensor | None = None, source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whole sequences: ``text`` (B, T), ``audio`` (B, K, T), ``condition`` (D,) or (B, 1, D), f32; ``source``
        (B, length, source width) where there is cross-attention.

        Returns text logits (B, T, V) f32 and hidden states (B, T, D). Differentiable; nothing is shifted here.
        """
        return self._read_out(self.transformer(self._embed(text, audio.transpose(0, 1), condition), source))

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """All-zero state for ``slots`` streams.

        Beside quantized layers, rings are in 16 bits where there is code that reads such: half of what a step reads.
        """
        spec = self.spec.transformer
        if dtype is None and isinstance(self.text_linear, QuantizedLinear) and spec.cross is None:
            placed, _ = self.transformer.placement(device, None)
            dtype = ring_jit.DTYPE if ring_jit.takes(spec.head_dim, ring_jit.DTYPE, placed) else None
        return {"transformer": self.transformer.init_state(slots, device=device, dtype=dtype)}

    @torch.no_grad()
    def step(
        self, text: Tensor, audio: Tensor, state: State, slots: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advance the streams ``slots`` (B,) by ``text`` (B,), ``audio`` (B, K), ``condition`` (D,) or (B, D), f32.

        Returns text logits (B, V) f32 and hidden states (B, D).
        """
        x = self._embed(text, audio.t(), condition)
        inner = state["transformer"]
        assert isinstance(inner, dict)
        return self._read_out(self.transformer.step(x[:, None], inner, slots)[:, 0])

    def extra_head_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., H, extra_heads_dim) f32; H may be 0."""
        if not len(self.heads):
            return hidden.new_zeros((*hidden.shape[:-1], 0, 1), dtype=torch.float32)
        return torch.stack([head(hidden) for head in self.heads], dim=-2).float()

    def extra_heads(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., H) f32: the probability of each head's first class."""
        return self.extra_head_logits(hidden).softmax(-1)[..., 0]
