"""A small seeded checkpoint that speaks, as upstream publishes one, and the configurations of its modules."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

from moshi_server.audio import SAMPLE_RATE, wav_bytes
from moshi_server.model.package import read_package
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi

from .golden import mimi_spec, tts_spec

HEAD = 'static_dir = "static"\nlog_dir = "logs"\ninstance_name = "test"\n'
VOICES = ("alice.wav", "bob.wav", "folder/carol.wav")
CODEBOOKS = 6
DELAY = 8
"""Steps that audio runs behind the text, beside the two of the codes."""


def write_tokenizer(folder: Path) -> int:
    """A tokenizer of letters; returns its size."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n o p q r s t u v w x y z"]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(processor.get_piece_size())


def write_package(folder: Path, name: str = "distilled") -> dict[str, Any]:
    """A checkpoint of the PyTorch package: model, codec, tokenizer, ``config.json`` and voices; returns the config."""
    config = {**tts_spec.MODELS[name], "text_card": write_tokenizer(folder), "mimi_name": "mimi.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_package(json.dumps(config), "config.json").lm
    write_lm(folder / "model.safetensors", spec, seed=tts_spec.SEED, naming="pytorch", dtype=torch.float32)
    write_mimi(folder / "mimi.safetensors", mimi_spec.SMALL, seed=mimi_spec.SEED)
    suffix = ".{sig}@{epoch}.safetensors".format(**config["model_id"])
    for number, voice in enumerate(VOICES):
        path = folder / "voices" / f"{voice}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"speaker_wavs": torch.from_numpy(tts_spec.voice(number))}, path)
    return config


def py_module(folder: Path, *, batch_size: int = 4, **options: Any) -> str:
    """The configuration of a `Py` module without a script."""
    values: dict[str, Any] = {
        "config_path": str(folder / "config.json"),
        "moshi_weight": str(folder / "model.safetensors"),
        "mimi_weight": str(folder / "mimi.safetensors"),
        "voice_folder": str(folder / "voices"),
        "default_voice": "alice.wav",
        "n_q": CODEBOOKS,
        "temp": 0.0,
        "cfg_coef": 2.0,
    } | options
    return f"""
[modules.tts]
type = "Py"
path = "/api/tts_streaming"
text_tokenizer_file = "{folder / "tokenizer.model"}"
batch_size = {batch_size}
text_bos_token = 1
device = "cpu"
[modules.tts.py]
""" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def write_candle(folder: Path) -> str:
    """A checkpoint of the Rust server's `Tts` module, and its configuration; two recordings and a named voice."""
    size = write_tokenizer(folder)
    config = {**tts_spec.GUIDED, "text_card": size, "n_q": CODEBOOKS, "dep_q": CODEBOOKS, "delays": [0, 0, *[2] * 5]}
    values = ["also_good"]
    config["conditioners"] = {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": mimi_spec.SMALL.seanet.dimension}},
        "control": {"type": "lut", "lut": {"n_bins": 2, "dim": 4, "tokenizer": "noop", "possible_values": values}},
    }
    speakers, seconds = 2, 1.0
    length = speakers * math.ceil(seconds * 12.5)
    spec = read_package(json.dumps(config), "config.json").lm
    assert spec.transformer.cross is not None
    cross = dataclasses.replace(spec.transformer.cross, length=length)
    spec = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, cross=cross))
    write_lm(folder / "lm.safetensors", spec, seed=4, naming="candle", dtype=torch.float32)
    write_mimi(folder / "mimi.safetensors", mimi_spec.SMALL, seed=mimi_spec.SEED)
    width = spec.transformer.d_model
    save_file({"ca_src": torch.randn(2, length, width)}, folder / "named.safetensors")
    (folder / "recordings").mkdir()
    for number, name in enumerate(("one.wav", "two.wav")):
        noise = np.random.default_rng(number).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
        (folder / "recordings" / name).write_bytes(wav_bytes(noise))
    transformer, depth = spec.transformer, spec.depformer
    assert depth is not None
    return f"""
[modules.tts]
type = "Tts"
path = "/api/tts"
lm_model_file = "{folder / "lm.safetensors"}"
text_tokenizer_file = "{folder / "tokenizer.model"}"
speaker_tokenizer_file = "{folder / "mimi.safetensors"}"
audio_tokenizer_file = "{folder / "mimi.safetensors"}"
voice_dir = "{folder / "recordings"}"
batch_size = 2
device = "cpu"
[modules.tts.voices]
named = "{folder / "named.safetensors"}"
[modules.tts.model]
audio_vocab_size = {spec.audio_vocab_size}
text_in_vocab_size = {spec.text_in_vocab_size}
text_out_vocab_size = {spec.text_out_vocab_size}
audio_codebooks = {CODEBOOKS}
[modules.tts.model.transformer]
{_transformer(transformer.d_model, transformer.num_heads, transformer.num_layers, 198, transformer.context)}
positional_embedding = "Rope"
cross_attention = ["Normal", "LayerNorm"]
[modules.tts.model.depformer]
num_slices = {CODEBOOKS}
[modules.tts.model.depformer.transformer]
{_transformer(depth.transformer.d_model, depth.transformer.num_heads, depth.transformer.num_layers, 96, CODEBOOKS)}
positional_embedding = "None"
[modules.tts.model.conditioners.control]
type = "Lut"
n_bins = 2
dim = 4
possible_values = ["also_good"]
[modules.tts.generation]
acoustic_delay = 2
text_pad_token = 3
text_bos_token = 1
text_eos_token = 2
text_eop_token = 0
text_start_token = {size}
text_audio_delay_in_tokens = 5
max_consecutive_pads = 10
extra_steps = 5
speaker_cond_duration_s = {seconds}
speaker_cond_dim = {width}
speaker_cond_n_speakers = {speakers}
"""


def _transformer(width: int, heads: int, layers: int, forward: int, context: int) -> str:
    return f"""d_model = {width}
num_heads = {heads}
num_layers = {layers}
dim_feedforward = {forward}
context = {context}
max_period = 10000
gating = "silu"
norm = "RmsNorm\""""
