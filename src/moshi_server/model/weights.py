"""A language model's checkpoint: what its tensors are called, and how they fill the model without a second copy.

Both of upstream's namings are read: that of the Rust server (``kyutai/stt-1b-en_fr-candle``) and that of the PyTorch
package (``kyutai/stt-1b-en_fr``). Mimi's checkpoint is read by `weights_mimi`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moshi_server.errors import CheckpointError
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.tensor_file import Shape

Naming = Literal["candle", "pytorch"]

# From a file's names to ours, whichever naming it has.
_TO_OURS: tuple[tuple[str, str], ...] = (
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.in_proj.\1"),
    (r"\.self_attn\.(in|out)_projs\.0\.(weight|bias)$", r".self_attn.\1_proj.\2"),
    (r"^extra_heads\.", "heads."),
)
_FROM_OURS: dict[Naming, tuple[tuple[str, str], ...]] = {
    "candle": ((r"\.self_attn\.in_proj\.(weight|bias)$", r".self_attn.in_proj_\1"), (r"^heads\.", "extra_heads.")),
    "pytorch": ((r"\.self_attn\.(in|out)_proj\.", r".self_attn.\1_projs.0."), (r"^heads\.", "extra_heads.")),
}
# Parts that a checkpoint may carry and a configuration may leave out, as the published ones do.
_OPTIONAL_PARTS = ("condition_provider.", "fuser.", "heads.", "depformer")
# Kept in f32 whatever the model's type is, so that logits and conditions are.
_ALWAYS_F32 = ("text_linear.", "condition_provider.")
_LISTED = 20
# A converted tensor leaves its pages of the file mapped; the map is renewed before they weigh anything.
_REMAP_BYTES = 64 << 20

logger = logging.getLogger(__name__)


def our_name(name: str) -> str:
    """What the tensor ``name`` of a checkpoint is called in `LmModel`."""
    for pattern, replacement in _TO_OURS:
        name = re.sub(pattern, replacement, name)
    return name


def checkpoint_name(name: str, naming: Naming) -> str:
    """What the parameter ``name`` of `LmModel` is called in a checkpoint."""
    for pattern, replacement in _FROM_OURS[naming]:
        name = re.sub(pattern, replacement, name)
    return name


def is_always_f32(name: str) -> bool:
    """Whether the tensor ``name``, ours or a checkpoint's, is held in f32 whatever the model's number type is."""
    return name.startswith(_ALWAYS_F32)


def overflow_error(path: Path | str, names: Sequence[str], dtype: torch.dtype) -> CheckpointError:
    """The error about the tensors ``names`` of a checkpoint, whose values are beyond ``dtype``."""
    short = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]
    more = f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return CheckpointError(
        f"{path}: {len(names)} tensors hold values that {short} cannot, the largest being {torch.finfo(dtype).max:g}: "
        f"{'; '.join(names[:_LISTED])}{more}",
        hint="take bf16, which has the range of f32, or f32 (dtype_override, or --dtype of moshi-server convert)",
    )


def parameter_shapes(spec: LmSpec) -> dict[str, Shape]:
    """Our names and shapes of everything in a model of ``spec``; allocates nothing."""
    with torch.device("meta"):
        model = LmModel(spec)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_lm(
    path: Path | str, spec: LmSpec, *, dtype: torch.dtype, device: torch.device | str = "cpu", strict: bool = True
) -> LmModel:
    """The language model of a safetensors file, in either naming, ready to run.

    Tensors come one at a time from the mapped file; on a CPU those already of type ``dtype`` stay in the map, unread
    until they are used. A feed-forward as wide as the PyTorch package makes it is taken as it is. CheckpointError
    names every tensor that is missing, unknown (unless not ``strict``), misshapen or beyond ``dtype``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = {our_name(name): name for name in file.keys()}  # noqa: SIM118
            slices = {ours: file.get_slice(name) for ours, name in names.items()}
            shapes = {ours: tuple(piece.get_shape()) for ours, piece in slices.items()}
            kinds = {ours: piece.get_dtype() for ours, piece in slices.items()}
        spec = _as_wide_as(spec, shapes)
        needed = parameter_shapes(spec)
        _raise_for(path, _problems(needed, shapes, kinds, strict))
        with torch.device("meta"):
            model = LmModel(spec)
        overflowing = _fill(model, path, {name: names[name] for name in needed}, dtype, torch.device(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    if overflowing:
        raise overflow_error(path, overflowing, dtype)
    unused = len(names) - len(needed)
    if unused:
        logger.info("%s: %d tensors are not used, the configuration does not ask for them", path, unused)
    return model.eval()


def save_lm(
    model: LmModel,
    path: Path | str,
    *,
    naming: Naming = "candle",
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write ``model`` as a checkpoint that `load_lm` and upstream's loaders read, all of it through memory."""
    tensors = {
        checkpoint_name(name, naming): parameter.detach().to("cpu", dtype or parameter.dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path to write to, moved to ``path`` at the end: a model that maps the old file would die of its being cut."""
    unfinished = Path(f"{path}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _as_wide_as(spec: LmSpec, shapes: dict[str, Shape]) -> LmSpec:
    """``spec`` with the PyTorch package's gated width where that is the checkpoint's, else unchanged."""
    transformer = spec.transformer
    shape = shapes.get("transformer.layers.0.gating.linear_out.weight")
    width = 21 * transformer.d_model // 8
    if transformer.gating == "none" or transformer.gated_width is not None or shape is None or len(shape) != 2:
        return spec
    if transformer.dim_feedforward != 4 * transformer.d_model or shape[1] != width:
        return spec
    return dataclasses.replace(spec, transformer=dataclasses.replace(transformer, gated_width=width))


def _problems(needed: dict[str, Shape], found: dict[str, Shape], kinds: dict[str, str], strict: bool) -> Iterator[str]:
    for name, shape in needed.items():
        if name not in found:
            yield f"missing {name} {list(shape)}"
        elif found[name] != shape:
            yield f"{name} is {list(found[name])} where {list(shape)} is needed"
        elif kinds[name] not in ("F32", "F16", "BF16", "F64"):
            yield f"{name} is of type {kinds[name]} where floating point is needed"
    for name in found if strict else ():
        if name not in needed and not name.startswith(_OPTIONAL_PARTS):
            yield f"unknown {name} {list(found[name])}"


def _raise_for(path: Path | str, problems: Iterable[str]) -> None:
    """One CheckpointError about all of ``problems``, if there are any."""
    problems = list(problems)
    if not problems:
        return
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise CheckpointError(
        f"{path}: {len(problems)} tensors do not fit the configured model: {'; '.join(problems[:_LISTED])}{more}",
        hint="does [modules.NAME.model] describe this checkpoint?",
    )


@torch.no_grad()
def _fill(
    model: LmModel, path: Path | str, names: dict[str, str], dtype: torch.dtype, device: torch.device
) -> list[str]:
    """Give every parameter of the empty ``model`` its tensor; returns the names of those that ``dtype`` cannot hold."""
    overflowing: list[str] = []
    unmapped_soon = 0
    file: Any = safe_open(path, framework="pt")
    for name, theirs in names.items():
        kind = torch.float32 if is_always_f32(name) else dtype
        stored: Tensor = file.get_tensor(theirs)
        tensor = stored.to(device, kind)
        if kind is torch.float16 and stored.dtype is not kind and not bool(tensor.isfinite().all()):
            overflowing.append(theirs)
        if tensor is not stored:
            unmapped_soon += stored.nbytes
        owner, _, leaf_name = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf_name, nn.Parameter(tensor, requires_grad=False))
        del stored, tensor
        if unmapped_soon > _REMAP_BYTES:
            file, unmapped_soon = safe_open(path, framework="pt"), 0
    return overflowing
