"""A checkpoint in another number type, converted piece by piece: memory stays far below that of one large tensor.

Any safetensors file will do. Names, shapes, order and metadata are kept, and so is what is no floating-point number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from moshi_server.errors import CheckpointError
from moshi_server.model.tensor_file import FORMATS, Stored, nbytes, read_layout, write_header
from moshi_server.model.weights import is_always_f32, overflow_error, replacing

_TYPES: Final = {form: dtype for dtype, form in FORMATS.items()}
_PIECE: Final = 8 << 20
# Sums and counts whose quotients are the codec's centroids: 16 bits of each would turn codes.
_CENTROIDS: Final = "._codebook."
_CODEC: Final = "quantizer.rvq_first."


@dataclass(frozen=True, slots=True)
class Converted:
    """What was done: tensors in the new type, tensors left as they were, bytes of both files' tensors."""

    changed: int
    kept: int
    bytes_before: int
    bytes_after: int
    is_codec: bool


def convert_checkpoint(source: Path | str, target: Path | str, dtype: torch.dtype) -> Converted:
    """Write the tensors of ``source`` at ``target`` (which may be the same file) as ``dtype``.

    Tensors that are held in f32 whatever the model's type (see `kept_as_stored`) stay as they are unless ``dtype`` is
    f32, so that the converted checkpoint gives the very model that converting at load gives.

    Raises:
        CheckpointError: ``source`` cannot be read, ``target`` cannot be written, or tensors, which it names, hold
            values that ``dtype`` cannot; ``target`` is then as it was before.
    """
    stored, metadata = read_layout(source)
    changed = {tensor.name for tensor in stored if _changes(tensor, dtype)}
    heads = {
        t.name: (FORMATS[dtype], t.shape, nbytes(t.shape, dtype))
        if t.name in changed
        else (t.format, t.shape, t.nbytes)
        for t in stored
    }
    try:
        with replacing(target) as unfinished, unfinished.open("wb") as out, open(source, "rb") as file:
            write_header(out, heads, metadata)
            # All are looked at, so that one error names them all.
            overflowing = [t.name for t in stored if not _copy(file, out, t, dtype if t.name in changed else None)]
            if overflowing:
                raise overflow_error(source, overflowing, dtype)
    except OSError as error:
        hint = "is the disk full, or the folder missing or not writable?"
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}", hint=hint) from error
    return Converted(
        len(changed),
        len(stored) - len(changed),
        sum(tensor.nbytes for tensor in stored),
        sum(size for _, _, size in heads.values()),
        any(tensor.name.startswith(_CODEC) for tensor in stored),
    )


def kept_as_stored(name: str) -> bool:
    """Whether the tensor ``name`` of a checkpoint is one that no model holds in 16 bits."""
    return is_always_f32(name) or _CENTROIDS in name


def _changes(tensor: Stored, dtype: torch.dtype) -> bool:
    stored = _TYPES.get(tensor.format)
    return stored not in (None, dtype) and (dtype is torch.float32 or not kept_as_stored(tensor.name))


def _copy(file: BinaryIO, out: BinaryIO, tensor: Stored, dtype: torch.dtype | None) -> bool:
    """Copy one tensor, as ``dtype`` unless None; False if a finite value became infinite."""
    fits = True
    for piece in _pieces(file, tensor):
        if dtype is None:
            out.write(piece)
            continue
        before = torch.frombuffer(piece, dtype=_TYPES[tensor.format])
        after = before.to(dtype)
        fits = fits and not _overflows(before, after)
        out.write(_bytes(after))
    return fits


def _pieces(file: BinaryIO, tensor: Stored) -> Iterator[bytearray]:
    file.seek(tensor.start)
    left = tensor.nbytes
    while left:
        piece = bytearray(min(left, _PIECE))
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise CheckpointError(f"{file.name}: ends within {tensor.name}: was it cut short while it was read?")
        left -= len(piece)
        yield piece


def _overflows(before: Tensor, after: Tensor) -> bool:
    finite = after.isfinite()
    return not bool(finite.all()) and bool((before.isfinite() & ~finite).any())


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(torch.uint8).numpy().data
