"""A driver's library of our own, compiled here, so that the real NVIDIA binding has something to load."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stub.c")


def build_stub(folder: Path, *options: str) -> Path:
    """Compile ``libnvidia-ml.so.1`` into ``folder`` and return the folder; skips the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the stub of NVML with")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return folder
