"""What a checkpoint of the PyTorch package says of itself: ``config.json`` to the shapes of this engine.

It reads the text alone, fetches nothing and knows no tensor. Keys and defaults are upstream's
(``moshi/models/loaders.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from moshi_server.errors import CheckpointError
from moshi_server.model.conditioning import ConditionerSpec, LutSpec, TensorSpec
from moshi_server.model.cross_attention import CrossSpec
from moshi_server.model.depformer import DepformerSpec
from moshi_server.model.lm import LmSpec
from moshi_server.model.speaker import SPEAKER_TENSOR
from moshi_server.model.transformer import TransformerSpec

FRAME_RATE = 12.5
VOICE_FRAMES = 125
"""Frames of one speaker's embedding: ten seconds."""
_NORMS: dict[str, Literal["rms_norm", "layer_norm"]] = {
    "rms_norm_f32": "rms_norm",
    "layer_norm": "layer_norm",
    # The package's own epsilons differ by what 16-bit types cannot hold.
    "rms_norm": "rms_norm",
    "layer_norm_f32": "layer_norm",
}


@dataclass(frozen=True)
class Package:
    """A checkpoint's files and shapes.

    Attributes:
        lm: the language model.
        delays: steps that each audio codebook runs behind.
        audio_delay: steps that audio runs behind the text.
        second_stream_ahead: words that the second stream of text looks ahead; 0 for none.
        speakers: how many the model tells apart.
        sums: conditioners whose values are added to the input.
        crosses: conditioners whose vectors are attended to.
        position_scale: the weight of their positions, 0 for none.
        voice_suffix: what follows a voice's name in its file's.
        weights, codec, tokenizer: file names in the repository.
    """

    lm: LmSpec
    delays: tuple[int, ...]
    audio_delay: int
    second_stream_ahead: int
    speakers: int
    sums: tuple[str, ...]
    crosses: tuple[str, ...]
    position_scale: float
    voice_suffix: str
    weights: str
    codec: str
    tokenizer: str


def read_package(text: str, origin: str, voice_frames: int = VOICE_FRAMES) -> Package:
    """The meaning of a ``config.json``; ``origin`` names it in errors, ``voice_frames`` are those of one speaker.

    Raises:
        CheckpointError: it is none of a model that speaks, or of one that this engine does not have.
    """
    try:
        config = json.loads(text)
        return _Reader(config).package(voice_frames)
    except KeyError as error:
        raise CheckpointError(
            f"{origin}: no {error.args[0]!r}: not the config.json of a text-to-speech model"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin}: {error}") from error


class _Reader:
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def package(self, voice_frames: int) -> Package:
        config = self._config
        tts, fuser, model_id = config["tts_config"], config.get("fuser") or {}, config.get("model_id") or {}
        if tts.get("multistream"):
            raise ValueError("multistream text to speech is not supported")
        if fuser.get("prepend"):
            raise ValueError("conditions that are prepended are not supported")
        delays = tuple(config["delays"])
        if delays[0]:
            raise ValueError("a delay of the text itself is not supported")
        if not config["dep_q"] or config["dep_q"] != config["n_q"]:
            raise ValueError("dep_q and n_q differ: this model listens")
        position_scale = (
            fuser.get("cross_attention_pos_emb_scale", 1.0) if fuser.get("cross_attention_pos_emb") else 0.0
        )
        speakers = int(tts.get("max_speakers", 5))
        suffix = ".{sig}@{epoch}.safetensors".format(**model_id) if model_id else ".safetensors"
        return Package(
            lm=self._lm(voice_frames * speakers),
            delays=delays[1:],
            audio_delay=int(tts["audio_delay"] * FRAME_RATE),
            second_stream_ahead=int(tts.get("second_stream_ahead", 0)),
            speakers=speakers,
            sums=tuple(fuser.get("sum", ())),
            crosses=tuple(fuser.get("cross", ())),
            position_scale=float(position_scale),
            voice_suffix=suffix,
            weights=config.get("moshi_name", "model.safetensors"),
            codec=config.get("mimi_name", "tokenizer-e351c8d8-checkpoint125.safetensors"),
            tokenizer=config.get("tokenizer_name", "tokenizer_spm_32k_3.model"),
        )

    def _lm(self, length: int) -> LmSpec:
        config = self._config
        cross = CrossSpec(length) if config.get("cross_attention") else None
        if config.get("norm_emb") or config.get("bias_proj"):
            raise ValueError("norm_emb and bias_proj are not supported")
        return LmSpec(
            text_in_vocab_size=config["text_card"] + 1,
            text_out_vocab_size=config.get("text_card_out") or config["text_card"],
            audio_vocab_size=config["card"] + 1,
            audio_codebooks=config["n_q"],
            transformer=self._transformer("", config["context"], cross),
            extra_heads_num=config.get("extra_heads_num_heads", 0),
            extra_heads_dim=config.get("extra_heads_dim", 6),
            conditioners={
                name: _conditioner(name, entry) for name, entry in (config.get("conditioners") or {}).items()
            },
            depformer=self._depformer(),
            two_text_streams=bool(config.get("demux_second_stream", config.get("demux_second_text_stream", False))),
        )

    def _depformer(self) -> DepformerSpec:
        config, codebooks = self._config, int(self._config["dep_q"])
        schedule = config.get("depformer_weights_per_step_schedule")
        if not config.get("depformer_weights_per_step"):
            schedule = [0] * codebooks
        norms = config.get("depformer_norm")
        return DepformerSpec(
            codebooks=codebooks,
            transformer=self._transformer("depformer_", codebooks, None),
            schedule=None if schedule is None else tuple(schedule),
            shared_input=not config.get("depformer_multi_linear", False),
            low_rank=config.get("depformer_low_rank_embeddings"),
            norms=None if norms is None else _NORMS[norms],
        )

    def _transformer(self, prefix: str, context: int, cross: CrossSpec | None) -> TransformerSpec:
        """The backbone's, or with a prefix the depth transformer's, which takes what it does not say from there."""

        def value(name: str, default: Any = None) -> Any:
            return self._config.get(prefix + name, self._config.get(name, default))

        width = int(value("dim"))
        scaled = int(self._config.get("hidden_scale", 4) * width)
        wide = self._config.get("depformer_dim_feedforward") if prefix else None
        # Widths by set of weights are taken from the checkpoint itself.
        forward = scaled if wide is None else max(wide) if isinstance(wide, list) else int(wide)
        positions = self._config.get("depformer_pos_emb", "sin") if prefix else self._config["positional_embedding"]
        if positions not in ("rope", "none"):
            raise ValueError(f"positional embedding {positions!r} is not supported")
        gating = value("gating", "none")
        if gating not in ("silu", "none"):
            raise ValueError(f"gating {gating!r} is not supported")
        if not value("causal", True):
            raise ValueError("only causal = true is supported")
        return TransformerSpec(
            d_model=width,
            num_heads=value("num_heads"),
            num_layers=value("num_layers"),
            dim_feedforward=forward,
            context=context,
            gating=cast(Literal["none", "silu"], gating),
            norm=_NORMS[self._config["norm"]],
            positional_embedding=positions,
            max_period=float(value("max_period", 10_000)),
            layer_scale=value("layer_scale"),
            kv_repeat=value("kv_repeat", 1),
            gated_width=21 * width // 8 if gating != "none" and forward == 4 * width else None,
            cross=cross,
        )


def _conditioner(name: str, entry: dict[str, Any]) -> ConditionerSpec:
    kind = entry["type"]
    values = entry[kind]
    if kind == "tensor":
        return TensorSpec(values["dim"])
    if kind == "lut":
        possible = values.get("possible_values")
        if possible is None:
            raise ValueError(f"the conditioner {name!r} takes any value by its hash, which is not supported")
        return LutSpec(values["n_bins"], values["dim"], tuple(possible))
    raise ValueError(f"the conditioner {name!r} is of an unknown type {kind!r}")


def speaks_with_voices(package: Package) -> bool:
    """Whether a voice is attended to."""
    return SPEAKER_TENSOR in package.crosses
