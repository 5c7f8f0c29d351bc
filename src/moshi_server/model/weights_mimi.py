"""Mimi's checkpoint: what its tensors are called and shaped, and how they fill the model; it knows no other model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moshi_server.errors import CheckpointError
from moshi_server.model.mimi import Mimi, MimiSpec
from moshi_server.model.quantizer import ResidualQuantizer

SPEC_KEY = "mimi_spec"
"""Where the file's header may hold ``MimiSpec.to_json()``; without it the file is Kyutai's v0.1."""

Shape = tuple[int, ...]

# From our parameter names to those of upstream's files, such as mimi-pytorch-e351c8d8@125.safetensors; in this order.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"\.(conv|convtr)\.(weight|bias)$", r".\1.\1.\2"),
    (r"^encoder\.downsample\.", r"downsample.conv."),
    (r"^decoder\.upsample\.", r"upsample.convtr."),
    (r"^(en|de)coder\.seanet\.layers\.", r"\1coder.model."),
    (r"\.block\.layers\.", r".block."),
    (r"^(en|de)coder\.transformer\.", r"\1coder_transformer.transformer."),
    (r"\.self_attn\.in_proj\.(weight|bias)$", r".self_attn.in_proj_\1"),
    (r"^quantizer\.semantic\.", r"quantizer.rvq_first."),
    (r"^quantizer\.acoustic\.", r"quantizer.rvq_rest."),
)
# Centroids are kept as the sum of the vectors each one won in training and their number.
_SMALLEST_USAGE = 1e-5
_LISTED = 12


def checkpoint_name(name: str) -> str:
    """What the parameter ``name`` of ``Mimi`` is called in a checkpoint."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def checkpoint_shapes(spec: MimiSpec) -> dict[str, Shape]:
    """Names and shapes of all tensors in a checkpoint of ``spec``."""
    with torch.device("meta"):
        mimi = Mimi(spec)
    shapes = {checkpoint_name(name): _file_shape(name, parameter) for name, parameter in mimi.named_parameters()}
    for name, quantizer in _quantizers(mimi):
        levels, bins, dimension = quantizer.codebooks.shape
        for level in range(levels):
            prefix = f"{name}.vq.layers.{level}._codebook."
            shapes[prefix + "_initialized"] = (1,)
            shapes[prefix + "cluster_usage"] = (bins,)
            shapes[prefix + "embedding_sum"] = (bins, dimension)
    return shapes


def load_mimi(
    path: Path | str,
    *,
    num_codebooks: int | None = None,
    decoder: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Mimi:
    """The Mimi of a safetensors file, read tensor by tensor from the mapped file, ready to run.

    ``num_codebooks`` keeps only the first ones (by default all); ``decoder=False`` leaves out what recognition does not
    need. Centroids stay in float32 whatever ``dtype`` is. Raises CheckpointError naming every tensor that is missing,
    unknown or of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(SPEC_KEY)
            stored = MimiSpec() if text is None else MimiSpec.from_json(text)
            spec = _asked(stored, path, num_codebooks, decoder)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check(path, shapes, checkpoint_shapes(spec), checkpoint_shapes(stored))
            with torch.device("meta"):
                mimi = Mimi(spec)
            mimi.to(dtype).to_empty(device=device)
            _fill(mimi, file.get_tensor)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    mimi.eval().requires_grad_(False)
    mimi.prepare()
    return mimi


@torch.no_grad()
def _fill(mimi: Mimi, read: Callable[[str], Tensor]) -> None:
    for name, parameter in mimi.named_parameters():
        parameter.copy_(read(checkpoint_name(name)).view(parameter.shape))
    for name, quantizer in _quantizers(mimi):
        centroids = torch.empty(quantizer.codebooks.shape, device=quantizer.codebooks.device)
        for level, target in enumerate(centroids):
            prefix = f"{name}.vq.layers.{level}._codebook."
            usage = read(prefix + "cluster_usage").float().clamp(min=_SMALLEST_USAGE)
            target.copy_(read(prefix + "embedding_sum").float() / usage[:, None])
        quantizer.codebooks = centroids
    mimi.quantizer.refresh()


def _quantizers(mimi: Mimi) -> Iterator[tuple[str, ResidualQuantizer]]:
    yield "quantizer.rvq_first", mimi.quantizer.semantic
    if mimi.quantizer.acoustic is not None:
        yield "quantizer.rvq_rest", mimi.quantizer.acoustic


def _file_shape(name: str, parameter: Tensor) -> Shape:
    # The quantizer's projections are convolutions of width one there.
    return (*parameter.shape, 1) if name.startswith("quantizer.") else tuple(parameter.shape)


def _asked(stored: MimiSpec, path: Path | str, num_codebooks: int | None, decoder: bool) -> MimiSpec:
    has = stored.quantizer.codebooks
    wanted = has if num_codebooks is None else num_codebooks
    if not stored.quantizer.semantic <= wanted <= has:
        raise CheckpointError(
            f"{path}: {wanted} codebooks were asked for, and this Mimi has {has}",
            hint="audio_codebooks of the language model and the audio tokenizer file do not belong together",
        )
    return replace(stored, quantizer=replace(stored.quantizer, codebooks=wanted), decoder=decoder and stored.decoder)


def _check(path: Path | str, found: dict[str, Shape], needed: dict[str, Shape], known: dict[str, Shape]) -> None:
    """Raise one CheckpointError about everything that does not fit."""
    problems = [f"missing {name}" for name in needed if name not in found and not name.endswith("._initialized")]
    problems += [
        f"{name} is {list(found[name])} where {list(shape)} is needed"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    problems += [f"unknown {name}" for name in found if name not in known]
    if problems:
        listed = "; ".join(problems[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(
            f"{path}: {len(problems)} tensors do not fit this Mimi: {listed}{more}",
            hint="is this a Mimi checkpoint, and whole? Download it again if in doubt",
        )
