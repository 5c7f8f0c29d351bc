"""What is kept in a folder whose disk is full: `python -m tests.faults.on_a_full_disk FOLDER`, on a disk of 16 kB."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from moshi_server.engine.token_log import SessionLog
from moshi_server.model.quantize_cache import cached


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    ballast = folder / "ballast"
    with contextlib.suppress(OSError):  # that is what it is for
        ballast.write_bytes(b"x" * 2**20)
    with tempfile.TemporaryDirectory() as elsewhere:
        source = Path(elsewhere) / "model.safetensors"
        save_file({"transformer.layers.0.gating.linear_in.weight": torch.randn(256, 256)}, source)
        assert cached(source, "int8", folder / "cache") is None
    log = SessionLog(folder / "saved", "me", 1, (0, 0))

    def stream() -> None:
        log.begin(0, "somebody")
        log.step([0], [5], np.zeros((1, 8), np.int64))
        log.end(0)

    stream()
    log.close()
    assert not list(folder.glob("saved/*.safetensors"))
    ballast.unlink()
    log = SessionLog(folder / "saved", "me", 1, (0, 0))
    stream()  # there is room again
    log.close()
    assert len(list(folder.glob("saved/*.safetensors"))) == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
