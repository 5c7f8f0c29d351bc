"""What the language model's goldens are made of; read by the script that writes them and by the test that compares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moshi_server.model.conditioning import LutSpec
from moshi_server.model.lm import LmSpec
from moshi_server.model.transformer import TransformerSpec

SEED = 11
STREAMS = 4
STEPS = 430
CONDITIONED_STEPS = 90
CONDITION = "control"

# As Kyutai's: hidden_scale 4.125 there is dim_feedforward = 4 * d_model here.
SMALL = LmSpec(
    text_in_vocab_size=49,
    text_out_vocab_size=48,
    audio_vocab_size=65,
    audio_codebooks=4,
    transformer=TransformerSpec(64, 4, 3, 256, context=50, gating="silu", max_period=100_000.0),
    extra_heads_num=4,
    extra_heads_dim=6,
)
# Grouped heads, a condition, and a width of the feed-forward by the other rule.
CONDITIONED = LmSpec(
    text_in_vocab_size=33,
    text_out_vocab_size=33,
    audio_vocab_size=17,
    audio_codebooks=2,
    transformer=TransformerSpec(48, 6, 2, 120, context=32, gating="silu", kv_repeat=2),
    conditioners={CONDITION: LutSpec(3, 8, ("good", "bad"))},
)


def codes(spec: LmSpec, stream: int, steps: int) -> NDArray[np.int64]:
    """The audio codes (steps, K) of one stream."""
    generator = np.random.Generator(np.random.PCG64([SEED, stream]))
    return generator.integers(0, spec.audio_vocab_size - 1, (steps, spec.audio_codebooks))
