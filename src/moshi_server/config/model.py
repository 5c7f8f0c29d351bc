"""The shape of a language model as the TOML writes it; names and meanings are those of upstream's `moshi-core`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from .checks import Count, same_kind


class Table(BaseModel):
    """A TOML table: no key it does not know, no value of another type, no change once it is read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


NormType = Literal["RmsNorm", "LayerNorm"]
CrossAttentionGating = Literal[
    "Normal",
    "ConstantGatedTanh",
    "ConstantGatedSigmoid",
    "ConditionalGatedTanh",
    "ConditionalGatedSigmoid",
    "ConditionalGatedSigmoidLearnableBias",
    "ConditionalGatedTanhLearnableBias",
]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


CrossAttention = Annotated[
    tuple[CrossAttentionGating, NormType] | tuple[CrossAttentionGating, NormType, PositiveInt],
    BeforeValidator(_as_tuple),
]


class TransformerConfig(Table):
    """`moshi-core`'s `transformer::Config`.

    Sizes that upstream demands are demanded; those with one sensible value may be left out. ``use_conv_block``,
    ``use_conv_bias``, ``conv_kernel_size`` and ``conv_layout`` stand in every published file and change nothing.
    """

    d_model: PositiveInt
    num_heads: PositiveInt
    num_layers: PositiveInt
    dim_feedforward: PositiveInt
    context: PositiveInt
    max_period: PositiveInt
    causal: bool = True
    norm_first: bool = True
    bias_ff: bool = False
    bias_attn: bool = False
    layer_scale: float | None = None
    gating: Literal["silu", "gelu", "relu", "sigmoid"] | None = None
    norm: NormType
    positional_embedding: Literal["Rope", "Sin", "None"]
    kv_repeat: PositiveInt = 1
    max_seq_len: PositiveInt = 4096
    cross_attention: CrossAttention | None = None
    shared_cross_attn: bool = False
    conv_layout: bool = False
    use_conv_block: bool = False
    use_conv_bias: bool = True
    conv_kernel_size: PositiveInt = 3

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.d_model % self.num_heads:
            raise same_kind(f"d_model = {self.d_model} is not a multiple of num_heads = {self.num_heads}")
        if self.num_heads % self.kv_repeat:
            raise same_kind(f"num_heads = {self.num_heads} is not a multiple of kv_repeat = {self.kv_repeat}")
        return self


class DepformerConfig(Table):
    """`moshi-core`'s `lm::DepFormerConfig`: the transformer over the codebooks of one frame."""

    transformer: TransformerConfig
    num_slices: PositiveInt
    low_rank_embeddings: PositiveInt | None = None


class ExtraHeadsConfig(Table):
    """`moshi-core`'s `lm::ExtraHeadsConfig`: linear heads beside the text logits (voice activity)."""

    num_heads: PositiveInt
    dim: PositiveInt


class LutConditionerConfig(Table):
    """A learnt vector for each of a few named values."""

    type: Literal["Lut"]
    n_bins: PositiveInt
    dim: PositiveInt
    possible_values: list[str]


class ContinuousConditionerConfig(Table):
    """A number embedded by sines and cosines, then projected."""

    type: Literal["ContinuousAttribute"]
    dim: PositiveInt
    scale_factor: float
    max_period: PositiveFloat


ConditionerConfig = Annotated[LutConditionerConfig | ContinuousConditionerConfig, Field(discriminator="type")]


class LmModelConfig(Table):
    """`moshi-core`'s `lm::Config`: vocabularies, codebooks, the transformer and what hangs on it."""

    text_in_vocab_size: PositiveInt
    text_out_vocab_size: PositiveInt
    audio_vocab_size: PositiveInt
    audio_codebooks: Count
    transformer: TransformerConfig
    depformer: DepformerConfig | None = None
    extra_heads: ExtraHeadsConfig | None = None
    conditioners: dict[str, ConditionerConfig] | None = None


class TtsGenerationConfig(Table):
    """`moshi-core`'s `tts_streaming::Config`: special tokens, delays and the speaker condition."""

    acoustic_delay: Count
    text_pad_token: Count
    text_bos_token: Count
    text_eos_token: Count
    text_eop_token: Count
    text_start_token: Count
    text_audio_delay_in_tokens: Count
    max_consecutive_pads: Count
    extra_steps: Count
    speaker_cond_duration_s: PositiveFloat
    speaker_cond_dim: PositiveInt
    speaker_cond_n_speakers: PositiveInt


class DialogueGenerationConfig(Table):
    """`moshi-core`'s `lm_generate_multistream::Config`: which codebooks are heard, which are spoken, and the delays."""

    generated_audio_codebooks: Count
    input_audio_codebooks: Count
    audio_vocab_size: PositiveInt
    acoustic_delay: Count
    text_pad_token: Count
    text_eop_token: Count
    text_start_token: Count


class DialogueSamplingConfig(Table):
    """Ours: how a dialogue's tokens are drawn; the defaults are what upstream has fixed."""

    text_temperature: NonNegativeFloat = 0.8
    """0 takes the likeliest token."""
    text_topk: Annotated[int, Field(ge=1, le=500)] = 25
    audio_temperature: NonNegativeFloat = 0.8
    audio_topk: Annotated[int, Field(ge=1, le=500)] = 250
    text_seed: Count = 299_792_458
    audio_seed: Count = 299_792_458
    pad_mult: float = 0.0
    """Added to the log-probability of saying nothing."""
    repetition_penalty: PositiveFloat = 1.0
    repetition_penalty_context: Annotated[int, Field(ge=0, le=200)] = 64
    """How many of the last text tokens the penalty looks back on."""
    max_steps: Count = 0
    """The longest conversation in frames of 80 ms; 0 for no limit."""
