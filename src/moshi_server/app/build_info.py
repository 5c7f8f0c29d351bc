"""What this build is: versions, and the commit when it runs from a checkout; it imports none of what it names."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from .. import __version__


@cache
def build_info() -> dict[str, str]:
    """Version, git commit ("" if unknown), Python, torch and platform."""
    return {
        "version": __version__,
        "git_hash": _commit(),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "torch": _version("torch"),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The last commit that touched this package, if it lies in a git checkout which tracks it."""
    git = shutil.which("git")
    folder = Path(__file__).resolve().parents[1]
    if git is None:
        return ""
    command = [git, "-C", str(folder), "log", "-1", "--format=%H", "--", "."]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
