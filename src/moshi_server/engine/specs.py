"""From the configuration's words for a model's sizes to the model's own; it loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..config import (
    ContinuousConditionerConfig,
    DepformerConfig,
    LmModelConfig,
    LutConditionerConfig,
    TransformerConfig,
)
from ..config.model import CrossAttention
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..model.conditioning import ConditionerSpec
    from ..model.cross_attention import CrossSpec
    from ..model.depformer import DepformerSpec
    from ..model.lm import LmSpec
    from ..model.transformer import TransformerSpec


def lm_spec(config: LmModelConfig) -> LmSpec:
    """The model's sizes, from the configuration's words for them."""
    from ..model.lm import LmSpec

    heads = config.extra_heads
    return LmSpec(
        text_in_vocab_size=config.text_in_vocab_size,
        text_out_vocab_size=config.text_out_vocab_size,
        audio_vocab_size=config.audio_vocab_size,
        audio_codebooks=config.audio_codebooks,
        transformer=transformer_spec(config.transformer),
        extra_heads_num=heads.num_heads if heads else 0,
        extra_heads_dim=heads.dim if heads else 0,
        conditioners={name: conditioner_spec(entry) for name, entry in (config.conditioners or {}).items()},
        depformer=depformer_spec(config.depformer) if config.depformer else None,
    )


def depformer_spec(config: DepformerConfig) -> DepformerSpec:
    """The depth transformer's sizes."""
    from ..model.depformer import DepformerSpec

    return DepformerSpec(config.num_slices, transformer_spec(config.transformer), low_rank=config.low_rank_embeddings)


def conditioner_spec(config: LutConditionerConfig | ContinuousConditionerConfig) -> ConditionerSpec:
    """One conditioner's sizes."""
    from ..model.conditioning import ContinuousSpec, LutSpec

    if isinstance(config, LutConditionerConfig):
        return LutSpec(config.n_bins, config.dim, tuple(config.possible_values))
    return ContinuousSpec(config.dim, config.scale_factor, config.max_period)


def transformer_spec(config: TransformerConfig) -> TransformerSpec:
    """The transformer's sizes.

    Raises:
        ConfigError: a variant that no published model uses and this engine does not have.
    """
    from ..model.transformer import TransformerSpec

    if config.positional_embedding == "Sin":
        raise ConfigError('"Sin" is not supported; published models use "Rope"', key="positional_embedding")
    if config.gating not in (None, "silu"):
        raise ConfigError(f'"{config.gating}" is not supported; published models use "silu"', key="gating")
    cross = config.cross_attention
    if config.shared_cross_attn or (cross is not None and cross[0] != "Normal"):
        hint = 'set it to ["Normal", "LayerNorm"], or take a checkpoint that has it so'
        raise ConfigError(
            "only cross-attention without gates, in each layer, is supported", key="cross_attention", hint=hint
        )
    if not (config.causal and config.norm_first):
        raise ConfigError("only causal = true and norm_first = true are supported", key="causal")
    return TransformerSpec(
        d_model=config.d_model,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        dim_feedforward=config.dim_feedforward,
        context=config.context,
        gating="silu" if config.gating == "silu" else "none",
        norm="rms_norm" if config.norm == "RmsNorm" else "layer_norm",
        positional_embedding="rope" if config.positional_embedding == "Rope" else "none",
        max_period=float(config.max_period),
        layer_scale=config.layer_scale,
        kv_repeat=config.kv_repeat,
        bias_ff=config.bias_ff,
        bias_attn=config.bias_attn,
        cross=None if cross is None else cross_spec(cross),
    )


def cross_spec(config: CrossAttention) -> CrossSpec:
    """What is attended to beside the stream; how much, a module knows that has it."""
    from ..model.cross_attention import CrossSpec

    norm: Literal["rms_norm", "layer_norm"] = "rms_norm" if config[1] == "RmsNorm" else "layer_norm"
    return CrossSpec(1, config[2] if len(config) == 3 else None, norm)
