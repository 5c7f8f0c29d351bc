"""What the dialogue's goldens are made of; read by the script that writes them and by the test that compares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import sphn
from numpy.typing import NDArray

from moshi_server.model.conditioning import LutSpec
from moshi_server.model.depformer import DepformerSpec
from moshi_server.model.dialogue import DialogueSpec
from moshi_server.model.lm import LmSpec
from moshi_server.model.transformer import TransformerSpec

from . import mimi_spec

SEED = 31
STEPS = 200
STREAMS = 2
STRIDE = 29
"""Only every so-manieth sample of the sound is kept: prime to the frame's length, so that all phases are seen."""
CONDITION = "description"
VALUES = ("very_bad", "bad", "neutral", "good", "very_good")

MIMI = replace(mimi_spec.SMALL, quantizer=replace(mimi_spec.SMALL.quantizer, codebooks=4))
# As Moshi's: four codebooks each way, all but the first two frames behind; as Hibiki's: a named condition. The text's
# ring wraps in the middle of the conversation.
LM = LmSpec(
    text_in_vocab_size=49,
    text_out_vocab_size=48,
    audio_vocab_size=65,
    audio_codebooks=8,
    transformer=TransformerSpec(64, 4, 2, 240, context=60, gating="silu"),
    depformer=DepformerSpec(
        codebooks=4,
        transformer=TransformerSpec(32, 4, 2, 120, context=4, gating="silu", positional_embedding="none"),
    ),
    conditioners={CONDITION: LutSpec(31, 16, VALUES)},
)
DIALOGUE = DialogueSpec(
    generated_audio_codebooks=4,
    input_audio_codebooks=4,
    acoustic_delay=2,
    text_pad_token=3,
    text_eop_token=0,
    text_start_token=48,
)


def sound(stream: int) -> NDArray[np.float32]:
    """What one stream hears: (STEPS - 1, 1920), since it hears nothing in its first step."""
    samples = sphn.read(str(mimi_spec.AUDIO))[0][0] * np.float32(mimi_spec.LOUDER)
    samples = np.roll(samples, -40_000 * stream)
    return np.resize(samples, (STEPS - 1, 1920)).astype(np.float32)
