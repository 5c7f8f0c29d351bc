"""How many numbers a model's weights and one stream's state hold, worked out from its sizes alone; no torch, no files.

The formulas follow `moshi_server.model`: a test builds the modules without memory and compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..errors import CheckpointError

POSITION_BYTES: Final = 8
"""A position counter is one 64-bit integer, whatever the number type."""


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """The sizes of a transformer that decide its memory; names are those of the configuration."""

    d_model: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    context: int
    gating: Literal["none", "silu"] = "none"
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    layer_scale: bool = False
    kv_repeat: int = 1
    bias_ff: bool = False
    bias_attn: bool = False
    gated_width: int | None = None

    @property
    def kv_width(self) -> int:
        """Width of the keys (or the values) of one position in one layer."""
        return self.d_model // self.kv_repeat

    @property
    def hidden(self) -> int:
        """Inner width of the feed-forward, by upstream's rule."""
        if self.gating == "none":
            return self.dim_feedforward
        if self.gated_width is not None:
            return self.gated_width
        if self.dim_feedforward == 4 * self.d_model:
            return 11 * self.d_model // 4
        return 2 * self.dim_feedforward // 3

    @property
    def parameters(self) -> int:
        """Numbers in the weights."""
        d, hidden = self.d_model, self.hidden
        into = d + 2 * self.kv_width
        up = 2 * hidden if self.gating == "silu" else hidden
        attention = d * into + d * d + (into + d if self.bias_attn else 0)
        feed_forward = d * up + hidden * d + (up + d if self.bias_ff else 0)
        norms = 2 * d * (1 if self.norm == "rms_norm" else 2)
        scales = 2 * d if self.layer_scale else 0
        return self.num_layers * (attention + feed_forward + norms + scales)

    @property
    def ring(self) -> int:
        """Numbers in the keys and values of one layer and one stream."""
        return 2 * self.context * self.kv_width

    @property
    def state(self) -> int:
        """Numbers in the KV cache of one stream, beside one position counter."""
        return self.num_layers * self.ring

    @property
    def scales(self) -> int:
        """Vectors in the KV cache of one stream, each of which has a scale where the cache is in 8 bits."""
        return self.state * self.num_heads // self.d_model


@dataclass(frozen=True, slots=True)
class DepformerShape:
    """The sizes of a depth transformer: weights for each of ``codebooks``, embeddings of ``low_rank`` or not."""

    codebooks: int
    transformer: TransformerShape
    low_rank: int | None = None

    def parameters(self, hidden_width: int, text_in_vocab_size: int, audio_vocab_size: int) -> int:
        """Numbers in the weights, beside a language model of that width and those vocabularies."""
        shape, d = self.transformer, self.transformer.d_model
        inner = self.low_rank or d
        embeddings = (text_in_vocab_size + (self.codebooks - 1) * audio_vocab_size) * inner
        embeddings += self.codebooks * inner * d if self.low_rank else 0
        up = 2 * shape.hidden if shape.gating == "silu" else shape.hidden
        feed_forward = d * up + shape.hidden * d
        attention = d * (d + 2 * shape.kv_width) + d * d
        norms = 2 * d * (1 if shape.norm == "rms_norm" else 2)
        ways = self.codebooks if shape.gating == "silu" else 1
        layers = shape.num_layers * (self.codebooks * attention + ways * feed_forward + norms)
        return embeddings + layers + self.codebooks * d * (hidden_width + audio_vocab_size - 1)


@dataclass(frozen=True, slots=True)
class LmShape:
    """The sizes of a language model: embeddings in, transformer, text logits, extra heads and depth transformer out."""

    text_in_vocab_size: int
    text_out_vocab_size: int
    audio_vocab_size: int
    audio_codebooks: int
    transformer: TransformerShape
    extra_heads_num: int = 0
    extra_heads_dim: int = 0
    depformer: DepformerShape | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the weights, conditioners not counted (none but a checkpoint's header says their sizes)."""
        d = self.transformer.d_model
        embeddings = (self.text_in_vocab_size + self.audio_codebooks * self.audio_vocab_size) * d
        heads = (self.text_out_vocab_size + self.extra_heads_num * self.extra_heads_dim) * d
        norm = d * (1 if self.transformer.norm == "rms_norm" else 2)
        depth = 0
        if self.depformer is not None:
            depth = self.depformer.parameters(d, self.text_in_vocab_size, self.audio_vocab_size)
        return embeddings + self.transformer.parameters + norm + heads + depth


@dataclass(frozen=True, slots=True)
class SeanetShape:
    """The sizes of a SEANet; the defaults are Kyutai's Mimi v0.1."""

    dimension: int = 512
    filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    residual_layers: int = 1
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    dilation_base: int = 2
    compress: int = 2


@dataclass(frozen=True, slots=True)
class QuantizerShape:
    """The sizes of the split quantizer."""

    dimension: int = 256
    bins: int = 2048
    codebooks: int = 32
    semantic: int = 1


_MIMI_TRANSFORMER: Final = TransformerShape(
    d_model=512, num_heads=8, num_layers=8, dim_feedforward=2048, context=250, norm="layer_norm", layer_scale=True
)


@dataclass(frozen=True, slots=True)
class _Convolution:
    into: int
    out: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    transposed: bool = False

    @property
    def parameters(self) -> int:
        return self.into * self.out * self.kernel + self.out

    @property
    def state(self) -> int:
        if self.transposed:
            return self.out * (self.kernel - self.stride)
        return self.into * ((self.kernel - 1) * self.dilation + 1 - self.stride)


@dataclass(frozen=True, slots=True)
class CodecShape:
    """The sizes of a Mimi; the defaults are Kyutai's v0.1."""

    sample_rate: int = 24_000
    frame_rate: float = 12.5
    seanet: SeanetShape = field(default_factory=SeanetShape)
    transformer: TransformerShape = _MIMI_TRANSFORMER
    quantizer: QuantizerShape = field(default_factory=QuantizerShape)

    @classmethod
    def from_json(cls, text: str) -> CodecShape:
        """Read what a checkpoint carries under ``mimi_spec`` in its header.

        Raises:
            CheckpointError: the text describes no Mimi.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            transformer = {key: values["transformer"][key] for key in _TRANSFORMER_KEYS & values["transformer"].keys()}
            transformer["layer_scale"] = values["transformer"].get("layer_scale") is not None
            return cls(
                sample_rate=int(values["sample_rate"]),
                frame_rate=float(values["frame_rate"]),
                seanet=SeanetShape(**(values["seanet"] | {"ratios": tuple(values["seanet"]["ratios"])})),
                transformer=TransformerShape(**transformer),
                quantizer=QuantizerShape(**values["quantizer"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's mimi_spec describes no Mimi: {error}") from error

    @property
    def frame_size(self) -> int:
        """Samples per frame of codes."""
        return int(self.sample_rate / self.frame_rate)

    @property
    def stride(self) -> int:
        """Latent frames per frame of codes."""
        return self.frame_size // math.prod(self.seanet.ratios)

    def encoder_parameters(self, codebooks: int | None = None) -> int:
        """Numbers in what recognition loads: the encoder and the first ``codebooks`` codebooks (default: all)."""
        d, quantizer = self.seanet.dimension, self.quantizer
        down = d * d * 2 * self.stride if self.stride > 1 else 0
        levels = quantizer.codebooks if codebooks is None else codebooks
        projections = d * quantizer.dimension * (1 if levels <= quantizer.semantic else 2)
        # Beside each centroid stands half its squared length.
        centroids = levels * quantizer.bins * (quantizer.dimension + 1)
        convolutions = sum(convolution.parameters for convolution in self._encoder_convolutions())
        return convolutions + self.transformer.parameters + down + projections + centroids

    def split_parameters(self, codebooks: int) -> int:
        """Numbers in what a GPU keeps a second time, split in halves, of what recognition loads."""
        convolutions = sum(each.into * each.out * each.kernel for each in self._encoder_convolutions())
        return convolutions + codebooks * self.quantizer.bins * self.quantizer.dimension

    def decoder_parameters(self) -> int:
        """Numbers in what speaking loads beside the encoder."""
        d, quantizer = self.seanet.dimension, self.quantizer
        up = d * 2 * self.stride if self.stride > 1 else 0
        projections = d * quantizer.dimension * (1 if quantizer.codebooks <= quantizer.semantic else 2)
        convolutions = sum(convolution.parameters for convolution in self._decoder_convolutions())
        return convolutions + self.transformer.parameters + up + projections

    @property
    def encoder_state(self) -> int:
        """Numbers in one stream's encoder state, beside one position counter (and one flag)."""
        down = self.seanet.dimension * self.stride if self.stride > 1 else 0
        convolutions = sum(convolution.state for convolution in self._encoder_convolutions())
        return convolutions + self.transformer.state + down

    @property
    def decoder_state(self) -> int:
        """Numbers in one stream's decoder state, beside one position counter."""
        up = self.seanet.dimension * self.stride if self.stride > 1 else 0
        convolutions = sum(convolution.state for convolution in self._decoder_convolutions())
        return convolutions + self.transformer.state + up

    def _encoder_convolutions(self) -> Iterator[_Convolution]:
        seanet = self.seanet
        width = seanet.filters
        yield _Convolution(1, width, seanet.kernel_size)
        for ratio in reversed(seanet.ratios):
            yield from self._residual_blocks(width)
            yield _Convolution(width, 2 * width, 2 * ratio, stride=ratio)
            width *= 2
        yield _Convolution(width, seanet.dimension, seanet.last_kernel_size)

    def _decoder_convolutions(self) -> Iterator[_Convolution]:
        seanet = self.seanet
        width = seanet.filters * 2 ** len(seanet.ratios)
        yield _Convolution(seanet.dimension, width, seanet.kernel_size)
        for ratio in seanet.ratios:
            yield _Convolution(width, width // 2, 2 * ratio, stride=ratio, transposed=True)
            width //= 2
            yield from self._residual_blocks(width)
        yield _Convolution(width, 1, seanet.last_kernel_size)

    def _residual_blocks(self, width: int) -> Iterator[_Convolution]:
        seanet = self.seanet
        hidden = width // seanet.compress
        for depth in range(seanet.residual_layers):
            yield _Convolution(width, hidden, seanet.residual_kernel_size, dilation=seanet.dilation_base**depth)
            yield _Convolution(hidden, width, 1)


_TRANSFORMER_KEYS: Final = TransformerShape.__dataclass_fields__.keys()
