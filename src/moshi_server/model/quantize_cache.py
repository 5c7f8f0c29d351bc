"""Quantized checkpoints as files: where asked, or in a cache for the next start; it knows nothing of tensors."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from moshi_server.errors import CheckpointError
from moshi_server.model.quantize import Quantize
from moshi_server.model.quantize_file import FORMAT, Quantized, is_intact, write_quantized
from moshi_server.model.weights import replacing

logger = logging.getLogger(__name__)


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/moshi-server/quantized``, under ``~/.cache`` where that variable is not set.

    Raises:
        RuntimeError: nor is there a home folder.
    """
    base = env.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "moshi-server" / "quantized"


def entry_name(source: Path, kind: Quantize) -> str:
    """The file's name: which checkpoint it is, then which state of it (size, time) in which format of ours.

    What is stored is the same for every kernel, which lays weights out when they are loaded.
    """
    real, status = source.resolve(), source.stat()
    state = f"{status.st_size} {status.st_mtime_ns} {FORMAT}"
    return f"{_digest(str(real))}-{kind}-{_digest(state)}.safetensors"


def cached(source: Path, kind: Quantize, folder: Path | None = None) -> Path | None:
    """The checkpoint ``source`` in ``kind``, made now unless it was before; None if it cannot be kept, with a warning.

    An entry that is damaged is made anew, and one of an older state of the checkpoint is removed.

    Raises:
        CheckpointError: ``source`` cannot be read or quantized.
    """
    try:
        folder = cache_folder() if folder is None else folder
        entry = folder / entry_name(source, kind)
        if entry.exists():
            if is_intact(entry):
                return entry
            logger.warning("%s is damaged and is made anew", entry)
        logger.info("quantizing %s to %s, once: it is kept as %s", source, kind, entry)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(entry) as unfinished, unfinished.open("w+b") as out:
            write_quantized(source, out, kind)
        _forget_others(entry)
    except (OSError, RuntimeError) as error:
        logger.warning("%s in %s cannot be kept for the next start: %s", source, kind, error)
        return None
    return entry


def convert_quantized(source: Path, target: Path, kind: Quantize) -> Quantized:
    """Write the checkpoint ``source`` in ``kind`` at ``target``, whole or not at all.

    Raises:
        CheckpointError: ``source`` cannot be read or quantized, or ``target`` cannot be written.
    """
    try:
        with replacing(target) as unfinished, unfinished.open("w+b") as out:
            return write_quantized(source, out, kind)
    except OSError as error:
        hint = "is the disk full, or the folder missing or not writable?"
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}", hint=hint) from error


def _forget_others(entry: Path) -> None:
    same, _, _ = entry.name.rpartition("-")
    for other in entry.parent.glob(f"{same}-*.safetensors"):
        if other != entry:
            other.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
