"""What modules that speak cost, from their configuration and what their checkpoint says of itself; imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..config import PyConfig, TtsConfig
from ..config.speech import speech_options
from ..gpu import Cost, Header, ModuleRequest, TransformerShape, Weights, codec_shape, codec_weights, tts_stream

ReadHeader = Callable[[str], Header | None]

WEIGHTS = "model.safetensors"
CODEC = "tokenizer-e351c8d8-checkpoint125.safetensors"
VOICE_FRAMES = 125
FRAME_RATE = 12.5


@dataclass(frozen=True, slots=True)
class PackageFiles:
    """Where a `Py` module without a script is loaded from, and its checkpoint's ``config.json``."""

    weights: str
    codec: str
    config: dict[str, Any]


def package_files(module: PyConfig, config: Path) -> PackageFiles | None:
    """The files of a checkpoint of the PyTorch package; None if its ``config.json`` cannot be read here and now."""
    options = speech_options(module.py)
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        weights, codec = values.get("moshi_name", WEIGHTS), values.get("mimi_name", CODEC)
    except (OSError, ValueError, AttributeError):
        return None
    repo = f"{hub.HUB_SCHEME}{options.hf_repo}/"
    return PackageFiles(options.moshi_weight or repo + weights, options.mimi_weight or repo + codec, values)


def config_uri(module: PyConfig) -> str:
    """Where a `Py` module's checkpoint says what it is."""
    options = speech_options(module.py)
    return options.config_path or f"{hub.HUB_SCHEME}{options.hf_repo}/config.json"


def py_request(name: str, module: PyConfig, read: ReadHeader, key: Callable[..., str]) -> ModuleRequest:
    """What a `Py` module asks for: of a script nothing is known but its slots."""
    path = hub.cached(config_uri(module)) if module.script is None else None
    files = package_files(module, path) if path is not None else None
    if files is None:
        return ModuleRequest(name, module.batch_size)
    options, config = speech_options(module.py), files.config
    try:
        transformer = TransformerShape(
            d_model=config["dim"],
            num_heads=config["num_heads"],
            num_layers=config["num_layers"],
            dim_feedforward=int(config.get("hidden_scale", 4) * config["dim"]),
            context=config["context"],
            kv_repeat=config.get("kv_repeat", 1),
        )
        conditioners = config.get("conditioners") or {}
        speakers = config["tts_config"].get("max_speakers", 5)
        reach = max(config["delays"])
    except (KeyError, TypeError, AttributeError):  # whoever loads it will say what is wrong
        return ModuleRequest(name, module.batch_size)
    length = VOICE_FRAMES * speakers if config.get("cross_attention") else 0
    guided = "cfg" not in conditioners and options.cfg_coef != 1.0
    return _request(
        name, module.batch_size, files.weights, files.codec, options.n_q, read, key, None, transformer, length,
        rows=2 if guided else 1, conditioned=bool(conditioners), reach=reach,
    )  # fmt: skip


def tts_request(
    name: str, module: TtsConfig, read: ReadHeader, key: Callable[..., str], transformer: TransformerShape
) -> ModuleRequest:
    """What a `Tts` module asks for."""
    generation, depth = module.generation, module.model.depformer
    codebooks = depth.num_slices if depth is not None else module.model.audio_codebooks
    frames = math.ceil(generation.speaker_cond_duration_s * FRAME_RATE)
    length = generation.speaker_cond_n_speakers * frames
    return _request(
        name, module.batch_size, module.lm_model_file, module.audio_tokenizer_file, codebooks, read, key,
        module.dtype_override, transformer, length,
        rows=2, conditioned=True, reach=generation.acoustic_delay,
    )  # fmt: skip


def _request(
    name: str,
    batch_size: Any,
    weights: str,
    codec_file: str,
    codebooks: int,
    read: ReadHeader,
    key: Callable[..., str],
    dtype: Any,
    transformer: TransformerShape,
    length: int,
    *,
    rows: int,
    conditioned: bool,
    reach: int,
) -> ModuleRequest:
    codec, origin = codec_shape(read(codec_file))
    header = read(weights)
    model = (
        () if header is None else (Weights(key(weights), Cost("language model", "checkpoint header", header.elements)),)
    )
    # Steps, text, codes and their recent past, how tokens are drawn, and what is added to each row's input.
    fixed = 8 * (2 + codebooks * (1 + reach) + 3) + 2 * 4 + rows * (4 * transformer.d_model if conditioned else 0)
    return ModuleRequest(
        name,
        batch_size,
        dtype,
        weights=(
            *model,
            Weights(key(codec_file, codebooks, "both"), codec_weights(codec, origin, codebooks, decoder=True)),
        ),
        per_stream=tts_stream(transformer, length, codec, origin, rows=rows, fixed=fixed),
    )
