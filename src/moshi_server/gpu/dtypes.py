"""Which number type a model's weights are held in on a device; it knows no model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

DType = Literal["f32", "f16", "bf16"]

BYTES: Final[dict[DType, int]] = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of one number."""

_CPU_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, slots=True)
class DTypeChoice:
    """A number type and why it was taken."""

    dtype: DType
    reason: str


def choose_dtype(capability: tuple[int, int] | None, override: DType | None = None) -> DTypeChoice:
    """The number type for a GPU of this compute capability (None: unknown).

    From 8.0 on (Ampere) there is bf16; Turing and Volta (7.x) have fast f16 only; older ones compute best in f32.
    """
    if override is not None:
        return DTypeChoice(override, "dtype_override")
    if capability is None:
        return DTypeChoice("f32", "compute capability unknown")
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        return DTypeChoice("bf16", shown)
    if capability >= (7, 0):
        return DTypeChoice("f16", shown)
    return DTypeChoice("f32", shown)


def choose_cpu_dtype(flags: Collection[str], override: DType | None = None) -> DTypeChoice:
    """The number type for a CPU with these instruction flags, as ``/proc/cpuinfo`` spells them.

    A step is bound by reading the weights, so bf16 takes half the time where the processor multiplies it, and a
    multiple of it where it must be emulated.
    """
    if override is not None:
        return DTypeChoice(override, "dtype_override")
    found = sorted(_CPU_BF16.intersection(flags))
    if found:
        return DTypeChoice("bf16", f"the CPU has {found[0]}")
    return DTypeChoice("f32", "the CPU has no bf16 instructions")


def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """The instruction flags of this machine's CPU; empty where the system does not say."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
