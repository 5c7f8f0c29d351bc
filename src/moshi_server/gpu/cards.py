"""Well-known GPUs, so that a plan can be made without one: memory as the driver shows it, and compute capability."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Final, NamedTuple

from ..errors import ConfigError
from .probe import GpuInfo

MB: Final = 2**20
"""Bytes in what NVIDIA's tools, and this package, call a megabyte."""

IDLE_SHARE: Final = 0.994
"""How much of its memory an idle card with no display shows as free; read on an H100 80GB, driver 580."""

CONTEXT_BYTES: Final = 624 * MB
"""What starting CUDA takes before the first tensor; read on an H100 with torch 2.11 (smaller cards take less)."""


class Card(NamedTuple):
    """A card's memory in MB, as ``nvidia-smi`` shows its total, and its compute capability."""

    name: str
    total_mb: int
    capability: tuple[int, int]


CARDS: Final = (
    Card("GTX 1080 Ti", 11264, (6, 1)),
    Card("RTX 2060", 6144, (7, 5)),
    Card("RTX 2070", 8192, (7, 5)),
    Card("RTX 2080 Ti", 11264, (7, 5)),
    Card("T4", 15360, (7, 5)),
    Card("RTX 3060", 12288, (8, 6)),
    Card("RTX 3090", 24576, (8, 6)),
    Card("RTX 4090", 24564, (8, 9)),
    Card("L4", 23034, (8, 9)),
    Card("L40S", 46068, (8, 9)),
    Card("A100 40GB", 40960, (8, 0)),
    Card("A100 80GB", 81920, (8, 0)),
    Card("H100", 81559, (9, 0)),
    Card("H200", 143771, (9, 0)),
)

_PREFIXES = re.compile(r"^(nvidia|geforce|tesla)+")


def find_card(name: str) -> GpuInfo:
    """The card that ``name`` means, idle: ``RTX 2070``, ``rtx2070``, ``NVIDIA GeForce RTX 2070``, ``A100`` (the 40 GB).

    Raises:
        ConfigError: no such card is known here.
    """
    wanted = _simplified(name)
    for card in CARDS:
        if wanted and _simplified(card.name) == wanted:
            return hypothetical(card.name, card.total_mb, card.capability)
    if wanted:
        for card in CARDS:
            if _simplified(card.name).startswith(wanted + "40gb"):
                return hypothetical(card.name, card.total_mb, card.capability)
    names = [card.name for card in CARDS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no GPU named {name!r} is known here",
        hint=f"{hint}known are {', '.join(names)}; for any other give --vram-mb and --sm",
    )


def hypothetical(name: str, total_mb: float, capability: tuple[int, int]) -> GpuInfo:
    """An idle card that is not there, with ``total_mb`` of memory."""
    total = int(total_mb * MB)
    return GpuInfo(0, name, total, int(total * IDLE_SHARE), capability, source="idle card", context=CONTEXT_BYTES)


def before_context(gpu: GpuInfo) -> GpuInfo:
    """``gpu`` as a process must count on it that has not started CUDA yet."""
    return replace(gpu, context=CONTEXT_BYTES)


def _simplified(name: str) -> str:
    return _PREFIXES.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))
