"""The head of a safetensors checkpoint: every tensor's type and shape, without its numbers; local, or by HTTP range."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import hub
from ..errors import CheckpointError

_PREFIX: Final = 8
_LONGEST: Final = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class TensorHead:
    """One tensor's type, as safetensors names it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint's head says."""

    tensors: Mapping[str, TensorHead]
    metadata: Mapping[str, str]

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(head.elements for head in self.tensors.values())


def read_header(uri: str) -> Header:
    """Read the head of the checkpoint that ``uri`` (see `moshi_server.hub`) names; the weights are not fetched.

    Raises:
        CheckpointError: this is no safetensors file, or a local file that cannot be read.
        DownloadError: the hub has no such file, or cannot be reached.
    """
    path = hub.cached(uri)
    if path is not None:
        return read_local_header(path)
    tensors, metadata = hub.remote_tensors(uri)
    return Header({name: TensorHead(dtype, shape) for name, (dtype, shape) in tensors.items()}, metadata)


def read_local_header(path: Path) -> Header:
    """Read the head of a file on this machine.

    Raises:
        CheckpointError: it cannot be read, or is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX)
            if len(prefix) < _PREFIX:
                raise _not_safetensors(path, "it is shorter than 8 bytes")
            (length,) = struct.unpack("<Q", prefix)
            if not 2 <= length <= _LONGEST:
                raise _not_safetensors(path, f"its header would be {length} bytes long")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(text) < length:
        raise _not_safetensors(path, "it ends within its header: the file is cut short")
    return _parsed(text, path)


def _parsed(text: bytes, path: Path) -> Header:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_safetensors(path, f"its header is no JSON ({type(error).__name__})") from None
    if not isinstance(entries, dict):
        raise _not_safetensors(path, "its header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _not_safetensors(path, "its metadata are not strings")
    return Header({name: _head(name, entry, path) for name, entry in entries.items()}, metadata)


def _head(name: str, entry: Any, path: Path) -> TensorHead:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape)} if all(type(size) is int and size >= 0 for size in shape):
            return TensorHead(dtype, tuple(shape))
    raise _not_safetensors(path, f"its header says neither type nor shape of {name!r}")


def _not_safetensors(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a safetensors checkpoint: {why}", hint="download it again, or name the right file"
    )
