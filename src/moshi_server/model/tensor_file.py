"""The layout of a safetensors file, for reading and writing it in pieces; it knows no model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError, safe_open

from moshi_server.errors import CheckpointError

Shape = tuple[int, ...]

FORMATS: Final = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What a file calls the floating-point types that models are in."""

_PREFIX: Final = 8
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: its type as the file calls it, and the bytes ``start`` to ``end`` of the file."""

    name: str
    format: str
    shape: Shape
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.end - self.start


def read_layout(path: Path | str) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a file in the order in which they lie, and its metadata; reads the header alone.

    Raises:
        CheckpointError: it cannot be read, or is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as checked:  # by the library's rules, its length included
            metadata: dict[str, str] = checked.metadata() or {}
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(_PREFIX), "little")
            entries: dict[str, Any] = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    entries.pop("__metadata__", None)
    tensors = []
    for name, entry in entries.items():
        start, end = (_PREFIX + length + offset for offset in entry["data_offsets"])
        tensors.append(Stored(name, entry["dtype"], tuple(entry["shape"]), start, end))
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)), metadata


def write_header(
    file: BinaryIO, tensors: Mapping[str, tuple[str, Shape, int]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the head of a file of ``tensors``: type, shape and bytes by name. Their data must follow in this order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (form, shape, nbytes) in tensors.items():
        entries[name] = {"dtype": form, "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-(_PREFIX + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(_PREFIX, "little") + text)


def nbytes(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize
