"""Voices as a language model attends to them: speakers' embeddings, projected, side by side, each with its position.

Arithmetic follows upstream (``moshi/conditioners/base.py``, ``moshi-core/src/tts_streaming.rs``); always in f32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moshi_server.errors import CheckpointError, InvalidMessageError
from moshi_server.model.conditioning import TensorConditioner

SPEAKER_TENSOR = "speaker_wavs"
"""A voice file's tensor of embeddings; the PyTorch package's conditioner is called the same."""
SOURCE_TENSOR = "ca_src"
"""A voice file's tensor that is attended to as it is (Rust server)."""


@dataclass(frozen=True)
class SpeakerSpec:
    """How many speakers a model tells apart, each of ``frames`` vectors of width ``dim``.

    ``position_scale`` weighs the sines and cosines of the position that are added; 0 adds none.
    """

    speakers: int
    frames: int
    dim: int
    position_scale: float = 1.0

    @property
    def length(self) -> int:
        """Vectors attended to, all speakers together."""
        return self.speakers * self.frames


def read_voice(path: Path | str, name: str = SPEAKER_TENSOR) -> Tensor:
    """The tensor ``name`` of a voice file, f32.

    Raises:
        CheckpointError: it cannot be read, or holds no such tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.float()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no voice with a tensor {name!r}: {error}") from error


def check_embedding(shape: tuple[int, ...], spec: SpeakerSpec) -> None:
    """Return if an embedding of this shape is one of a voice, (1, dim, frames).

    Raises:
        InvalidMessageError: it is not.
    """
    if shape != (1, spec.dim, spec.frames):
        raise InvalidMessageError(
            f"a voice of shape {list(shape)} came; this model takes [1, {spec.dim}, {spec.frames}]",
            hint="make the embedding with the voice module that belongs to this model",
        )


@torch.no_grad()
def speaker_source(voices: list[Tensor], conditioner: TensorConditioner, spec: SpeakerSpec) -> Tensor:
    """What is attended to, (length, D_model) f32, for the embeddings (1, dim, frames) of at most ``speakers`` voices.

    Without any it is what the model learnt for nobody.
    """
    assert len(voices) <= spec.speakers, "more voices than the model tells apart"
    device = conditioner.learnt_padding.device
    vectors = torch.zeros(spec.speakers, spec.frames, spec.dim, device=device)
    present = torch.zeros(spec.speakers, spec.frames, dtype=torch.bool, device=device)
    for index, voice in enumerate(voices):
        vectors[index] = voice[0].t().to(device)
        present[index] = True
    source: Tensor = conditioner(vectors.flatten(0, 1), present.flatten())
    return source.float() + spec.position_scale * positions(*source.shape, device=device)


def positions(length: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Cosines, then sines, of each position: (length, width) f32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / (half - 1)
    phase = torch.arange(length, dtype=torch.float32, device=device)[:, None] / 10_000.0**exponents
    return torch.cat((phase.cos(), phase.sin()), dim=1)
