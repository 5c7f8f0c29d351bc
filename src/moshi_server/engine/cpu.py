"""How the process uses a CPU: threads and freed memory; it knows no model."""

from __future__ import annotations

import ctypes
import sys

SMALL_WIDTH = 512
"""Models no wider than this run on one thread: a layer is over before a second thread has woken up."""

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def choose_threads(width: int) -> None:
    """Set torch's threads for the widest model that runs on the CPU, ``width`` being its ``d_model``."""
    import torch

    if width <= SMALL_WIDTH:
        torch.set_num_threads(1)


def keep_freed_memory() -> bool:
    """Have malloc keep what a step frees for the next one; returns whether this C library can be told to.

    Every step makes tensors of the same sizes. By default glibc gives the larger ones back to the system, which then
    clears their pages anew for each step: up to half the time of a batched convolution.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 64 << 20}
    results = [mallopt(setting, value) for setting, value in settings.items()]
    return all(results)
