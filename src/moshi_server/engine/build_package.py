"""From a `PyBatchedAsr` module without a script to the `BatchedAsr` module that serves it; it loads no weights.

Upstream's own script takes a repository of the PyTorch package, whose ``config.json`` says what the model is.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import ValidationError

from ..config import BatchedAsrConfig, PyBatchedAsrConfig
from ..errors import CheckpointError, ConfigError
from ..hub import resolve

MODEL_FILE: Final = "model.safetensors"
CODEC_FILE: Final = "tokenizer-e351c8d8-checkpoint125.safetensors"
_NORMS: Final = {
    "rms_norm": "RmsNorm",
    "rms_norm_f32": "RmsNorm",
    "layer_norm": "LayerNorm",
    "layer_norm_f32": "LayerNorm",
}
_KEYS: Final = (
    *("hf_repo", "config_path", "moshi_weight", "mimi_weight", "tokenizer"),
    *("asr_delay_in_tokens", "device", "temp", "log_folder", "debug"),
)


def packaged(module: PyBatchedAsrConfig) -> BatchedAsrConfig:
    """The same module as one of type `BatchedAsr`, its shapes read from ``config.json``.

    Raises:
        ConfigError: a key of ``py`` that upstream's script does not have, or no repository and not all files.
        CheckpointError: ``config.json`` is not that of a speech-to-text model.
        DownloadError: it cannot be had.
    """
    options = module.py or {}
    for key in options:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}", key="py", hint=f"known are {', '.join(_KEYS)}")
    origin = _file(options, "config_path", "config.json")
    try:
        package = json.loads(resolve(origin).read_text(encoding="utf-8"))
        shapes = _model(package)
    except KeyError as error:
        raise CheckpointError(f"{origin}: no {error.args[0]!r}: not the config.json of a model") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin}: {error}") from error
    fields = module.model_dump(exclude={"type", "py", "script", "script_timeout_seconds"}, exclude_unset=True)
    fields |= {
        "type": "BatchedAsr",
        "lm_model_file": _file(options, "moshi_weight", package.get("moshi_name", MODEL_FILE)),
        "audio_tokenizer_file": _file(options, "mimi_weight", package.get("mimi_name", CODEC_FILE)),
        "model": shapes,
        "temperature": float(options.get("temp", 0.0)),
    }
    try:
        return BatchedAsrConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise CheckpointError(f"{origin}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _file(options: dict[str, Any], key: str, name: str) -> str:
    if options.get(key):
        return str(options[key])
    if "hf_repo" in options:
        return f"hf://{options['hf_repo']}/{name}"
    raise ConfigError(
        f"neither {key} nor hf_repo", key="py", hint="name a repository in [modules.NAME.py], or give a script"
    )


def _model(package: dict[str, Any]) -> dict[str, Any]:
    if package.get("dep_q"):
        raise ValueError("it speaks (dep_q): not a speech-to-text model")
    if package.get("conditioners"):
        raise ValueError("conditioners are not supported here: serve it as BatchedAsr")
    width, heads = int(package["dim"]), int(package.get("extra_heads_num_heads", 0))
    return {
        "text_in_vocab_size": package["text_card"] + 1,
        "text_out_vocab_size": package.get("text_card_out") or package["text_card"],
        "audio_vocab_size": package["card"] + 1,
        "audio_codebooks": package["n_q"],
        "transformer": {
            "d_model": width,
            "num_heads": package["num_heads"],
            "num_layers": package["num_layers"],
            "dim_feedforward": int(package.get("hidden_scale", 4) * width),
            "causal": package.get("causal", True),
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "layer_scale": package.get("layer_scale"),
            "context": package["context"],
            "max_period": int(package.get("max_period", 10_000)),
            "gating": None if package.get("gating", "none") == "none" else package["gating"],
            "norm": _NORMS[package.get("norm", "layer_norm")],
            "positional_embedding": {"rope": "Rope", "none": "None"}[package.get("positional_embedding", "rope")],
        },
        **({"extra_heads": {"num_heads": heads, "dim": package.get("extra_heads_dim", 6)}} if heads else {}),
    }
