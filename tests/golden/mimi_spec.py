"""What the Mimi goldens are made of; read by the script that writes them and by the test that compares."""

from __future__ import annotations

from pathlib import Path

from moshi_server.model.mimi import MimiSpec
from moshi_server.model.quantizer import QuantizerSpec
from moshi_server.model.seanet import SeanetSpec
from moshi_server.model.transformer import TransformerSpec

AUDIO = Path(__file__).parents[1] / "data" / "speech.flac"
"""12.6 s of two voices of espeak-ng, 24 kHz, quiet so that it compresses well."""
LOUDER = 4.0
SEED = 20
STRIDE = 7
"""Only every seventh sample of the decoded sound is kept: prime to every ratio, so that all phases are seen."""

V0_1 = MimiSpec()
SMALL = MimiSpec(
    seanet=SeanetSpec(dimension=32, filters=4, residual_layers=2),
    transformer=TransformerSpec(
        d_model=32,
        num_heads=4,
        num_layers=2,
        dim_feedforward=64,
        context=40,
        norm="layer_norm",
        layer_scale=0.01,
    ),
    quantizer=QuantizerSpec(dimension=16, bins=64, codebooks=8),
)
