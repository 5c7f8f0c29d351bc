"""Rings of keys and values: held as they are or in 8 bits, and read in place on a GPU; it knows no layer's weights.

A ring is (slots, 2, H_kv, context, D). In 8 bits it holds integers, and beside it stand ``scales``
(slots, 2, H_kv, context) f16: one for each key and each value of a head, so that an outlier costs only its own vector.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moshi_server.model.streaming import State, leaf

LEVELS = 127
"""The largest integer of an 8-bit key or value."""


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled here: Triton comes with torch's CUDA builds, but builds its launcher itself."""
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return importlib.util.find_spec("triton") is not None and compiler is not None and headers.exists()


def in_place(device: torch.device) -> bool:
    """Whether attention reads the rings where they lie; elsewhere the whole rings of a step's streams are gathered."""
    return device.type == "cuda" and has_triton()


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) -> int8 codes (..., D) and their scales (...) f16: ``codes * scales`` is within half a step of ``x``."""
    x = x.float()
    scales = (x.abs().amax(-1) / LEVELS).half()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    codes = (x * inverse[..., None] + 0.5).floor().clamp(-LEVELS, LEVELS)
    return codes.to(torch.int8), scales


class Ring(NamedTuple):
    """One layer's keys and values of every slot."""

    values: Tensor  # (slots, 2, H_kv, context, D), of the model's type or int8
    scales: Tensor | None = None  # (slots, 2, H_kv, context) f16, if in 8 bits

    @staticmethod
    def of(state: State, layer: int) -> Ring:
        """That of a transformer's layer in its state."""
        name = f"scales.{layer}"
        return Ring(leaf(state, f"ring.{layer}"), leaf(state, name) if name in state else None)

    def write(self, slots: Tensor, entries: Tensor, new: Tensor) -> None:
        """Put keys and values ``new`` (B, T, 2, H_kv, D) of the streams ``slots`` (B,) at ``entries`` (B, T)."""
        if self.scales is None:
            self.values[slots[:, None], :, :, entries] = new.to(self.values.dtype)
        else:
            codes, scales = quantize(new)
            self.values[slots[:, None], :, :, entries] = codes
            self.scales[slots[:, None], :, :, entries] = scales

    def gather(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """All that the streams ``slots`` (B,) have, (B, 2, H_kv, context, D), of ``dtype`` if held in 8 bits."""
        past = self.values.index_select(0, slots)
        if self.scales is None:
            return past
        return (past * self.scales.index_select(0, slots)[..., None].float()).to(dtype)
