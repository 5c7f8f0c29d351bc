"""What the goldens of text to speech are made of; read by the script that writes them and by the tests that compare."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 31
VOICE_DIM = 12
VOICE_FRAMES = 125
CODEBOOKS = 6
"""Of the model's eight, as a server leaves the least important out."""
MAX_PADDING, INITIAL_PADDING, FINAL_PADDING, PADDING_BETWEEN = 8, 2, 4, 1
CFG = 2.0
TEXT_CARD = 48

# As kyutai/tts-1.6b-en_fr, each size smaller: a schedule, low rank, a second stream of text, voices to attend to,
# guidance by a condition.
DISTILLED: dict[str, Any] = {
    "card": 64,
    "n_q": 8,
    "dep_q": 8,
    "delays": [0, 0, 2, 2, 2, 2, 2, 2, 2],
    "dim": 48,
    "text_card": TEXT_CARD,
    "text_card_out": 5,
    "existing_text_padding_id": 3,
    "num_heads": 4,
    "num_layers": 2,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 40,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_dim_feedforward": 96,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 3, 4, 4, 4],
    "depformer_low_rank_embeddings": 16,
    "demux_second_stream": True,
    "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": VOICE_DIM}},
        "cfg": {
            "type": "lut",
            "lut": {"n_bins": 3, "dim": 4, "tokenizer": "noop", "possible_values": ["1.0", "1.5", "2.0"]},
        },
        "control": {
            "type": "lut",
            "lut": {"n_bins": 2, "dim": 4, "tokenizer": "noop", "possible_values": ["ok", "bad"]},
        },
    },
    "fuser": {
        "cross_attention_pos_emb": True,
        "cross_attention_pos_emb_scale": 0.5,
        "sum": ["control", "cfg"],
        "prepend": [],
        "cross": ["speaker_wavs"],
    },
    "tts_config": {"audio_delay": 0.64, "second_stream_ahead": 2, "max_speakers": 3},
    "model_id": {"sig": "abc", "epoch": 7},
    "model_type": "tts",
}
# Guided by rows without condition and text; no second stream, one set of inner weights too few to share.
GUIDED: dict[str, Any] = {
    **DISTILLED,
    "text_card_out": TEXT_CARD,
    "demux_second_stream": False,
    "depformer_weights_per_step_schedule": None,
    "depformer_low_rank_embeddings": None,
    "conditioners": {key: value for key, value in DISTILLED["conditioners"].items() if key != "cfg"},
    "fuser": {**DISTILLED["fuser"], "sum": ["control"]},
    "tts_config": {"audio_delay": 0.4, "max_speakers": 3},
}
MODELS = {"distilled": DISTILLED, "guided": GUIDED}

# Words as lists of tokens; [3] * n is a pause. Each stream begins at a step of its own, its words come as steps go by.
STREAMS: list[dict[str, Any]] = [
    {"start": 0, "voice": 0, "words": [[1, 10, 11], [12], [13, 14, 15], [3] * 6, [16], [17, 18]], "every": 0},
    {"start": 5, "voice": 1, "words": [[1, 20], [21, 22, 23, 24], [25], [26, 27], [28]], "every": 3},
    {"start": 30, "voice": 2, "words": [[1, 30, 31, 32], [33, 34]], "every": 1},
]


def voice(number: int) -> NDArray[np.float32]:
    """The embedding of a speaker, (1, VOICE_DIM, VOICE_FRAMES)."""
    generator = np.random.Generator(np.random.PCG64([SEED, number]))
    return generator.standard_normal((1, VOICE_DIM, VOICE_FRAMES)).astype(np.float32)


def config_json(name: str) -> str:
    """The checkpoint's ``config.json``."""
    return json.dumps(MODELS[name])
