"""A language model's checkpoint: what its tensors are called, and how they fill the model without a second copy.

Both of upstream's namings are read: that of the Rust server (``kyutai/stt-1b-en_fr-candle``) and that of the PyTorch
package (``kyutai/stt-1b-en_fr``). Mimi's checkpoint is read by `weights_mimi`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moshi_server.errors import CheckpointError
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.names import Naming, Piece, layout, pieces
from moshi_server.model.quantize import Quantize, QuantizedLinear, QuantizedWeight, quantize
from moshi_server.model.quantize_file import (
    SCALES,
    is_table,
    kind_of,
    quantized_in,
    read_weight,
    stored_kind,
    whole_shape,
)
from moshi_server.model.tensor_file import Shape

# Parts that a checkpoint may carry and a configuration may leave out, as the published ones do.
_OPTIONAL_PARTS = ("condition_provider.", "fuser.", "heads.", "depformer", "linears.")
# Kept in f32 whatever the model's type is, so that logits and conditions are.
_ALWAYS_F32 = ("text_linear.", "condition_provider.")
_LISTED = 20
# A converted tensor leaves its pages of the file mapped; the map is renewed before they weigh anything.
_REMAP_BYTES = 64 << 20

logger = logging.getLogger(__name__)


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
    path: Path | str,
    spec: LmSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    strict: bool = True,
    kind: Quantize | None = None,
) -> LmModel:
    """The language model of a safetensors file, in either naming, ready to run.

    Tensors come one at a time from the mapped file; on a CPU those already of type ``dtype`` stay in the map, unread
    until they are used, but for the f32 products of a model with a depth transformer, which are laid out anew. A
    feed-forward as wide as the PyTorch package makes it is taken as it is. CheckpointError
    names every tensor that is missing, unknown (unless not ``strict``), misshapen or beyond ``dtype``.

    Given ``kind``, layers are held in 8 or 4 bits (on a CPU only) and embeddings in 16; they are quantized here unless
    they are so in the file. Without it, what is quantized in the file is brought to ``dtype``.
    """
    assert kind is None or torch.device(device).type == "cpu", "layers are held in 8 or 4 bits on a CPU only"
    try:
        with safe_open(path, framework="pt") as file:
            already = quantized_in(file.metadata() or {}, path)
            if kind and already and kind != already:
                raise CheckpointError(f"{path}: is quantized to {already}", hint=f'set quantize = "{already}"')
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if already:
                slices = {name: piece for name, piece in slices.items() if not name.endswith(SCALES)}
            types = {name: piece.get_dtype() for name, piece in slices.items()}
            stored = {name: whole_shape(tuple(piece.get_shape()), types[name]) for name, piece in slices.items()}
        found = pieces(stored, spec)
        shapes = {ours: _shape(parts[0], stored) for ours, parts in found.items()}
        kinds = {ours: types[parts[0].name] for ours, parts in found.items()}
        spec = _as_wide_as(spec, shapes)
        needed = parameter_shapes(spec)
        _raise_for(path, _problems(needed, shapes, kinds, strict, already is not None))
        with torch.device("meta"):
            model = LmModel(spec)
        wanted = {name: found[name] for name in needed}
        overflowing = _fill(model, path, wanted, dtype, torch.device(device), kind)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    if overflowing:
        raise overflow_error(path, overflowing, dtype)
    unused = len(found.keys() - needed.keys())
    if unused:
        logger.info("%s: %d tensors are not used, the configuration does not ask for them", path, unused)
    model.transformer.prepare()
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
    parameters = dict(model.named_parameters())

    def stored(name: str) -> Tensor:
        return parameters[name].detach().to("cpu", dtype or parameters[name].dtype)

    tensors = {
        # Cloned, since the format takes no tensor twice, and some are there for each codebook.
        theirs: torch.cat([stored(name) for name in ours]).clone(memory_format=torch.contiguous_format)
        for theirs, ours in layout(parameters, model.spec, naming).items()
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


def _shape(piece: Piece, stored: Mapping[str, Shape]) -> Shape:
    whole = stored[piece.name]
    return whole if piece.stop is None else (piece.stop - piece.start, *whole[1:])


def _as_wide_as(spec: LmSpec, shapes: dict[str, Shape]) -> LmSpec:
    """``spec`` with the PyTorch package's gated width where that is the checkpoint's, else unchanged.

    The widths of a depth transformer are taken as they are.
    """
    spec = _depth_as_wide_as(spec, shapes)
    transformer = spec.transformer
    shape = shapes.get("transformer.layers.0.gating.linear_out.weight")
    width = 21 * transformer.d_model // 8
    if transformer.gating == "none" or transformer.gated_width is not None or shape is None or len(shape) != 2:
        return spec
    if transformer.dim_feedforward != 4 * transformer.d_model or shape[1] != width:
        return spec
    return dataclasses.replace(spec, transformer=dataclasses.replace(transformer, gated_width=width))


def _depth_as_wide_as(spec: LmSpec, shapes: dict[str, Shape]) -> LmSpec:
    depth = spec.depformer
    if depth is None or depth.transformer.gating == "none":
        return spec
    names = [f"depformer.layers.0.gating.{index}.linear_out.weight" for index in range(depth.weights)]
    if not all(len(shapes.get(name, ())) == 2 for name in names):
        return spec
    widths = tuple(shapes[name][1] for name in names)
    return dataclasses.replace(spec, depformer=dataclasses.replace(depth, widths=widths))


def _problems(
    needed: dict[str, Shape], found: dict[str, Shape], kinds: dict[str, str], strict: bool, quantized: bool
) -> Iterator[str]:
    for name, shape in needed.items():
        if name not in found:
            yield f"missing {name} {list(shape)}"
        elif found[name] != shape:
            yield f"{name} is {list(found[name])} where {list(shape)} is needed"
        elif kinds[name] not in ("F32", "F16", "BF16", "F64") and not (quantized and stored_kind(kinds[name])):
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
    model: LmModel,
    path: Path | str,
    names: dict[str, list[Piece]],
    dtype: torch.dtype,
    device: torch.device,
    held: Quantize | None,
) -> list[str]:
    """Give every parameter of the empty ``model`` its tensor; returns the names of those that ``dtype`` cannot hold.

    Raises:
        CheckpointError: what is there for several codebooks and shared here is not the same for all.
    """
    overflowing: list[str] = []
    unmapped_soon = 0
    file: Any = safe_open(path, framework="pt")
    for name, parts in names.items():
        stored = _read(file, parts[0])
        for other in parts[1:]:
            if not _same(_read(file, other), stored):
                raise CheckpointError(
                    f"{path}: {other} differs from {parts[0]}, which this engine takes for one and the same"
                )
        owner, _, leaf_name = name.rpartition(".")
        kind = kind_of(name, tuple(stored.shape), held) if held is not None else None
        if kind is not None:
            layer = QuantizedLinear(stored if isinstance(stored, QuantizedWeight) else quantize(stored, kind))
            model.set_submodule(owner, layer)
            unmapped_soon += stored.nbytes
        else:
            values = stored.dequantized() if isinstance(stored, QuantizedWeight) else stored
            module = model.get_submodule(owner)
            tensor = values.to(device, _number_type(name, dtype, values.dtype, held))
            if model.depformer is not None and isinstance(module, nn.Linear) and leaf_name == "weight":
                tensor = _laid_out(tensor)
            if tensor.dtype is torch.float16 is not values.dtype and not bool(tensor.isfinite().all()):
                overflowing.append(str(parts[0]))
            if tensor is not stored:
                unmapped_soon += stored.nbytes
            setattr(module, leaf_name, nn.Parameter(tensor, requires_grad=False))
            del values, tensor
        del stored
        if unmapped_soon > _REMAP_BYTES:
            file, unmapped_soon = safe_open(path, framework="pt"), 0
    return overflowing


def _laid_out(weight: Tensor) -> Tensor:
    """The same (out, in) weight with its outputs side by side in memory, where f32 products on a CPU are quicker.

    At eight rows they take about 0.6 of the time, at one row the same, at two or three up to 1.06 of it.
    """
    return weight.t().contiguous().t() if weight.is_cpu and weight.dtype is torch.float32 else weight


def _number_type(name: str, dtype: torch.dtype, stored: torch.dtype, held: Quantize | None) -> torch.dtype:
    if is_always_f32(name):
        return torch.float32
    if held is None or dtype is not torch.float32 or not is_table(name):
        return dtype
    return stored if stored is torch.float16 else torch.bfloat16


def _read(file: Any, piece: Piece) -> Tensor | QuantizedWeight:
    tensor: Tensor = file.get_tensor(piece.name)
    if tensor.dtype in (torch.int8, torch.uint8):
        weight = read_weight(tensor, file.get_tensor(piece.name + SCALES))
        return weight if piece.stop is None else weight.rows(piece.start, piece.stop)
    return tensor if piece.stop is None else tensor[piece.start : piece.stop]


def _same(one: Tensor | QuantizedWeight, other: Tensor | QuantizedWeight) -> bool:
    if isinstance(one, QuantizedWeight) and isinstance(other, QuantizedWeight):
        return torch.equal(one.values, other.values) and torch.equal(one.scales, other.scales)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
