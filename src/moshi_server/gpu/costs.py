"""What a module costs in memory, term by term, each with its origin; from sizes and headers, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from .dtypes import BYTES, LINEAR_BYTES, DType, Quantize, QuantizeRequest
from .header import Header
from .shapes import POSITION_BYTES, CodecShape, LmShape, TransformerShape

CODEC_TENSORS: Final = 5
"""How many tensors as large as the codec's widest layer a step holds at once; read on an H100 (2.35 MB a stream)."""
CAPTURED_CODEC_TENSORS: Final = 3
"""As above, in a captured step, whose convolutions need no copy of their input."""
CODEC_ROWS: Final = 512
"""Streams whose frames a captured step encodes at once: more gain nothing, and these tensors are a step's largest."""
GRAPHS_BYTES: Final = 512 << 20
"""What graphs, compiled kernels and the libraries' workspaces take."""
ALLOCATOR_SHARE: Final = 0.02
"""What torch's allocator rounds up and cannot reuse, as a share of a stream's state; read on an H100 (1.2 to 1.4 %)."""

_ALWAYS_F32: Final = ("text_linear.", "condition_provider.")
_STT_UNUSED: Final[tuple[str, ...]] = ("fuser.", "depformer")


@dataclass(frozen=True, slots=True)
class Cost:
    """``elements`` numbers of the module's own type and ``fixed`` bytes; ``origin`` says where they come from.

    ``linears`` of the elements are in linear layers, and the text head of as many as ``fixed`` holds in f32.
    """

    label: str
    origin: str
    elements: int = 0
    fixed: int = 0
    linears: int = 0

    def bytes(self, dtype: DType, quantize: Quantize | None = None) -> int:
        """All of it, with the module's numbers in ``dtype``; if layers are in fewer bits, embeddings are in 16."""
        if quantize is None or not self.linears:
            return self.elements * BYTES[dtype] + self.fixed
        return 2 * (self.elements - self.linears) + int(self.linears * LINEAR_BYTES[quantize]) + self.fixed // 4


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that are loaded once for every module with the same ``key`` and number type on one GPU."""

    key: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """What one module asks of its GPU.

    Empty ``weights`` or ``per_stream`` mean that nothing is known, and the documented defaults stand in.
    """

    name: str
    batch_size: int | Literal["auto"]
    dtype_override: DType | None = None
    weights: tuple[Weights, ...] = ()
    per_stream: tuple[Cost, ...] = ()
    quantize: QuantizeRequest | None = None
    """None for a module whose layers are never in fewer bits."""


def lm_weights(shape: LmShape, header: Header | None, *, conditioners: bool = False) -> Cost:
    """A language model's weights: as the checkpoint's header says, else by the configuration.

    The output layer is held in f32 whatever the type (so are conditioners), so that logits are.
    """
    label = "language model"
    d = shape.transformer.d_model
    linears = shape.transformer.parameters
    if header is None or "quantize" in header.metadata:
        output = shape.text_out_vocab_size * d
        return Cost(label, "configuration", shape.parameters - output, output * 4, linears)
    unused = _STT_UNUSED if shape.depformer is None else ("fuser.",)
    if not shape.extra_heads_num:
        unused += ("extra_heads.", "heads.")
    if not conditioners:
        unused += ("condition_provider.",)
    loaded = always_f32 = 0
    for name, head in header.tensors.items():
        if name.startswith(unused):
            continue
        if name.startswith(_ALWAYS_F32):
            always_f32 += head.elements
        else:
            loaded += head.elements
    return Cost(label, "checkpoint header", loaded, always_f32 * 4, min(linears, loaded))


def codec_shape(header: Header | None) -> tuple[CodecShape, str]:
    """The codec that a checkpoint's header describes, Kyutai's v0.1 if it says nothing; and where that comes from.

    Raises:
        CheckpointError: its ``mimi_spec`` describes no Mimi.
    """
    text = header.metadata.get("mimi_spec") if header is not None else None
    if text is not None:
        return CodecShape.from_json(text), "checkpoint header"
    return CodecShape(), "Mimi v0.1"


def codec_weights(shape: CodecShape, origin: str, codebooks: int, *, decoder: bool = False) -> Cost:
    """The codec's encoder with its first ``codebooks`` codebooks, and the ``decoder`` if it speaks, in f32."""
    parameters = shape.encoder_parameters(codebooks)
    if decoder:
        parameters += replace(shape, quantizer=replace(shape.quantizer, codebooks=codebooks)).decoder_parameters()
    return Cost("codec", origin, fixed=4 * parameters)


def kv_cache(lm: LmShape, *, eight_bit: bool = False) -> Cost:
    """One stream's keys and values, and the counter of its position; in 8 bits with an f16 scale for each vector."""
    state = lm.transformer.state
    if eight_bit:
        return Cost("KV cache in 8 bits", "configuration", 0, state + 2 * lm.transformer.scales + POSITION_BYTES)
    return Cost("KV cache", "configuration", state, POSITION_BYTES)


def stt_stream(
    lm: LmShape, codec: CodecShape, codec_origin: str, *, eight_bit_kv: bool = False, captured: bool = False
) -> tuple[Cost, ...]:
    """What each slot of speech to text costs: its state, and its share of what a step holds besides.

    The largest thing a step makes is a copy of one layer's keys and values; the codec's tensors are freed before, but
    the allocator keeps them apart. A ``captured`` step (`stt_step`) copies none and encodes a few streams at a time.
    """
    kv = kv_cache(lm, eight_bit=eight_bit_kv)
    codec_state = 4 * codec.encoder_state + POSITION_BYTES + 1
    state = (
        replace(kv, fixed=kv.fixed + _tokens(lm)),
        Cost("codec state", codec_origin, fixed=codec_state),
    )
    if captured:
        inner = lm.transformer
        # Embeddings to be summed, a layer's widest tensors, logits and what a token is chosen by; the frame, twice.
        wide = (lm.audio_codebooks + 1) * inner.d_model + 3 * inner.hidden
        exact = 4 * (2 * lm.text_out_vocab_size + 2 * inner.d_model + 2 * codec.frame_size)
        return (*state, Cost("activations", "estimate", wide, exact))
    share = ALLOCATOR_SHARE
    return (
        *state,
        Cost(
            "activations",
            "estimate",
            lm.transformer.ring + int(share * kv.elements),
            CODEC_TENSORS * _widest(codec) + int(share * (codec_state + kv.fixed)),
        ),
    )


def stt_step(lm: LmShape, codec: CodecShape, streams: int | Literal["auto"], *, eight_bit_kv: bool = False) -> Cost:
    """What a captured step takes however many streams run: the scratch slot, the codec's tensors, the graphs."""
    rows = CODEC_ROWS if streams == "auto" else min(streams, CODEC_ROWS)
    kv = kv_cache(lm, eight_bit=eight_bit_kv)
    scratch = kv.fixed + _tokens(lm) + 4 * codec.encoder_state
    # Beside the weights of convolutions and the centroids stands what a GPU multiplies with.
    split = 4 * codec.split_parameters(lm.audio_codebooks)
    fixed = scratch + split + rows * CAPTURED_CODEC_TENSORS * _widest(codec) + GRAPHS_BYTES
    return Cost("captured step", "estimate", kv.elements, fixed)


def captured_step(per_stream: Sequence[Cost]) -> Cost:
    """What captured speech or dialogue takes however many streams run: the scratch slot, the graphs."""
    slot = [cost for cost in per_stream if cost.origin != "estimate"]
    fixed = sum(cost.fixed for cost in slot) + GRAPHS_BYTES
    return Cost("captured step", "estimate", sum(cost.elements for cost in slot), fixed)


def _tokens(lm: LmShape) -> int:
    """Bytes of what a stream said and heard last, and of its counters."""
    return (lm.audio_codebooks + 3) * 8


def _widest(codec: CodecShape) -> int:
    """Bytes of the codec's widest layer for one frame of one stream."""
    return 4 * codec.seanet.filters * codec.frame_size


def dialogue_stream(lm: LmShape, codec: CodecShape, codec_origin: str, fixed: int) -> tuple[Cost, ...]:
    """What each slot of a dialogue costs: as `stt_stream`, with the codec both ways and ``fixed`` bytes of its own."""
    kv, widest = lm.transformer.state, 4 * codec.seanet.filters * codec.frame_size
    codec_state = 4 * (codec.encoder_state + codec.decoder_state) + 2 * POSITION_BYTES + 1
    return (
        Cost("KV cache", "configuration", kv, POSITION_BYTES + fixed),
        Cost("codec state", codec_origin, fixed=codec_state),
        Cost(
            "activations",
            "estimate",
            lm.transformer.ring + int(ALLOCATOR_SHARE * kv),
            CODEC_TENSORS * widest + int(ALLOCATOR_SHARE * codec_state),
        ),
    )


def tts_stream(
    transformer: TransformerShape, length: int, codec: CodecShape, codec_origin: str, *, rows: int, fixed: int
) -> tuple[Cost, ...]:
    """What each slot of text to speech costs: keys and values of what was said and of a voice of ``length`` vectors,
    for each of its ``rows``, the codec's decoder, and ``fixed`` bytes of its own.
    """
    kv, voice = rows * transformer.state, rows * transformer.num_layers * 2 * transformer.d_model * length
    widest = 4 * codec.seanet.filters * codec.frame_size
    codec_state = 4 * codec.decoder_state + POSITION_BYTES
    layer = rows * (transformer.ring + 2 * transformer.d_model * length)
    return (
        Cost("KV cache", "configuration", kv, rows * POSITION_BYTES + fixed),
        *([Cost("voice", "configuration", voice)] if length else []),
        Cost("codec state", codec_origin, fixed=codec_state),
        Cost(
            "activations",
            "estimate",
            layer + int(ALLOCATOR_SHARE * (kv + voice)),
            CODEC_TENSORS * widest + int(ALLOCATOR_SHARE * codec_state),
        ),
    )
