"""A language model's checkpoint with 8- or 4-bit layers: how it is written and how its weights are read; runs nothing.

Such a file is an ordinary safetensors file in either of upstream's namings. A quantized weight keeps its name (I8, or
U8 with two 4-bit codes a byte), its scales are in ``NAME.scales``, and the metadata say ``quantize``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from moshi_server.errors import CheckpointError
from moshi_server.model.quantize import GROUP, Quantize, QuantizedWeight, fits, quantize
from moshi_server.model.tensor_file import FORMATS, Shape, Stored, nbytes, read_layout, write_header

SCALES: Final = ".scales"
KIND_KEY: Final = "quantize"
FORMAT_KEY: Final = "quantize_format"
CHECKSUM_KEY: Final = "crc32"
FORMAT: Final = "1"
"""Counts up with any change of what is stored or how it is rounded: older files are then made anew or refused."""

VALUES: Final[dict[Quantize, str]] = {"int8": "I8", "int4": "U8"}

_TYPES: Final = {form: dtype for dtype, form in FORMATS.items()}
_LAYER: Final = re.compile(r"^(transformer|depformer)\..*\blayers\.\d+\..*weight")
_HEAD: Final = "text_linear.weight"
_TABLES: Final = ("text_emb.", "emb.")
_ROWS: Final = 1024
_COPIED: Final = 8 << 20


def kind_of(name: str, shape: Shape, kind: Quantize) -> Quantize | None:
    """How the tensor ``name``, ours or a checkpoint's, is held in a model quantized to ``kind``; None: as a number.

    Linear layers of the transformers are, and the text head: this one always in 8 bits, like whatever 4 do not fit.
    """
    if len(shape) != 2 or not (name == _HEAD or _LAYER.match(name)):
        return None
    return "int8" if name == _HEAD or not fits(shape, kind) else kind


def is_table(name: str) -> bool:
    """Whether ``name`` is an embedding, which a quantized model holds in 16 bits: of each, a step reads one row."""
    return name.startswith(_TABLES)


def stored_kind(form: str) -> Quantize | None:
    """How the values of a quantized tensor of the file type ``form`` are held."""
    return next((kind for kind, values in VALUES.items() if values == form), None)


def whole_shape(shape: Shape, form: str) -> Shape:
    """The shape of the weight whose stored values have ``shape``."""
    return (shape[0], 2 * shape[1]) if stored_kind(form) == "int4" and len(shape) == 2 else shape


def quantized_in(metadata: Mapping[str, str], path: Path | str) -> Quantize | None:
    """The kind of a quantized checkpoint, by its metadata; None if it is not quantized.

    Raises:
        CheckpointError: it was written by another version of this format.
    """
    kind = metadata.get(KIND_KEY)
    if kind is None:
        return None
    if kind not in VALUES or metadata.get(FORMAT_KEY) != FORMAT:
        raise CheckpointError(
            f"{path}: quantized to {kind!r} in format {metadata.get(FORMAT_KEY)!r}, which this version does not read",
            hint="make it anew with moshi-server convert --quantize",
        )
    return next(known for known in VALUES if known == kind)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor to write: what becomes of it."""

    stored: Stored
    kind: Quantize | None
    dtype: torch.dtype | None

    def heads(self) -> Iterator[tuple[str, tuple[str, Shape, int]]]:
        """What the header says of it."""
        name, shape = self.stored.name, self.stored.shape
        if self.kind is None:
            if self.dtype is None:
                yield name, (self.stored.format, shape, self.stored.nbytes)
            else:
                yield name, (FORMATS[self.dtype], shape, nbytes(shape, self.dtype))
            return
        rows, columns = shape
        width = columns if self.kind == "int8" else columns // 2
        yield name, (VALUES[self.kind], (rows, width), rows * width)
        if self.kind == "int8":
            yield name + SCALES, ("F32", (rows,), 4 * rows)
        else:
            yield name + SCALES, ("BF16", (rows, columns // GROUP, 2), 4 * rows * (columns // GROUP))


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was done: layers quantized, other tensors, bytes of both files' tensors."""

    layers: int
    others: int
    bytes_before: int
    bytes_after: int


def write_quantized(source: Path | str, out: BinaryIO, kind: Quantize) -> Quantized:
    """Write the checkpoint ``source`` to ``out`` with its layers in ``kind``; a few rows at a time are in memory.

    The metadata say the checksum of all that follows the header.

    Raises:
        CheckpointError: ``source`` cannot be read, is quantized already, or has no layers of a language model.
        OSError: ``out`` cannot be written.
    """
    stored, metadata = read_layout(source)
    if quantized_in(metadata, source) is not None:
        raise CheckpointError(f"{source}: is quantized already", hint="quantize the checkpoint that it was made of")
    entries = [_entry(tensor, kind) for tensor in stored]
    layers = sum(entry.kind is not None for entry in entries)
    if not layers:
        raise CheckpointError(f"{source}: has no layers of a language model", hint="only these can be quantized")
    heads = dict(head for entry in entries for head in entry.heads())
    metadata = {**metadata, KIND_KEY: kind, FORMAT_KEY: FORMAT, CHECKSUM_KEY: "0" * 8}
    write_header(out, heads, metadata)
    writer = _Summing(out)
    with open(source, "rb") as file:
        for entry in entries:
            _write(file, writer, entry)
    out.seek(0)
    write_header(out, heads, {**metadata, CHECKSUM_KEY: f"{writer.sum:08x}"})
    before, after = sum(tensor.nbytes for tensor in stored), sum(size for _, _, size in heads.values())
    return Quantized(layers, len(entries) - layers, before, after)


def is_intact(path: Path | str) -> bool:
    """Whether ``path`` is what `write_quantized` wrote, to the last bit; reads it once."""
    try:
        tensors, metadata = read_layout(path)
        if quantized_in(metadata, path) is None or not tensors:
            return False
        total = 0
        with open(path, "rb") as file:
            file.seek(tensors[0].start)
            while piece := file.read(_COPIED):
                total = zlib.crc32(piece, total)
    except (OSError, CheckpointError):
        return False
    return metadata.get(CHECKSUM_KEY) == f"{total:08x}"


class _Summing:
    """Writes to ``out`` and keeps a checksum."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.sum = 0

    def write(self, tensor: Tensor) -> None:
        data = tensor.contiguous().view(torch.uint8).numpy().data
        self.sum = zlib.crc32(data, self.sum)
        self._out.write(data)


def _entry(stored: Stored, kind: Quantize) -> _Entry:
    if stored.format not in _TYPES:
        return _Entry(stored, None, None)
    held = kind_of(stored.name, stored.shape, kind)
    wide = held is None and is_table(stored.name) and stored.format in ("F32", "F64")
    return _Entry(stored, held, torch.bfloat16 if wide else None)


def _write(file: BinaryIO, out: _Summing, entry: _Entry) -> None:
    if entry.kind is None:
        for block in _blocks(file, entry.stored):
            out.write(block if entry.dtype is None else block.to(entry.dtype))
        return
    scales = []
    for block in _blocks(file, entry.stored):
        weight = quantize(block, entry.kind)
        out.write(weight.values)
        scales.append(weight.scales)
    out.write(torch.cat(scales))


def _blocks(file: BinaryIO, stored: Stored) -> Iterator[Tensor]:
    """A tensor some rows at a time; what is no floating-point number comes as bytes."""
    dtype = _TYPES.get(stored.format)
    if not stored.nbytes:
        return
    rows = stored.shape[0] if stored.shape and dtype is not None else 1
    file.seek(stored.start)
    for start in range(0, rows, _ROWS):
        count = min(_ROWS, rows - start)
        data = bytearray(stored.nbytes // rows * count)
        if file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise CheckpointError(f"{file.name}: ends within {stored.name}: was it cut short while it was read?")
        flat = torch.frombuffer(data, dtype=dtype or torch.uint8)
        yield flat.view(count, *stored.shape[1:]) if stored.shape and dtype is not None else flat


def read_weight(values: Tensor, scales: Tensor) -> QuantizedWeight:
    """The weight of the tensors ``NAME`` and ``NAME.scales``."""
    return QuantizedWeight("int8" if values.dtype is torch.int8 else "int4", values, scales)
