"""Which number type a model's weights are held in on a device; it knows no model."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

DType = Literal["f32", "f16", "bf16"]
Quantize = Literal["int8", "int4"]

BYTES: Final[dict[DType, int]] = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of one number."""

LINEAR_BYTES: Final[dict[Quantize, float]] = {"int8": 1, "int4": 0.625}
"""Bytes of one weight of a quantized linear layer; in 4 bits, with its share of the scales of 32."""

LARGE: Final = 300_000_000
"""Numbers in a language model from which on it is quantized on a CPU, unless the configuration says otherwise."""
SMALL: Final = 8_000_000
"""Numbers in a model below which f32 (32 MB) lies in a CPU's cache and beats bf16; measured with 2.6 million."""
FEW_CORES: Final = 4
"""With fewer, 8 bits are read too slowly for a frame of 80 ms: the measurements are in docs/benchmarks.md."""

_CPU_PRODUCTS: Final = frozenset({"avx2", "avx512f", "asimddp"})
_CPU_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, slots=True)
class DTypeChoice:
    """A number type and why it was taken."""

    dtype: DType
    reason: str
    quantize: Quantize | None = None
    """How linear layers are held, if in fewer bits; ``dtype`` is then that of all else."""

    def __str__(self) -> str:
        layers = f"{self.quantize} layers, " if self.quantize else ""
        return f"{layers}{self.dtype} ({self.reason})"


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


def choose_cpu_dtype(
    flags: Collection[str], override: DType | None = None, parameters: int | None = None
) -> DTypeChoice:
    """The number type for a CPU with these instruction flags, as ``/proc/cpuinfo`` spells them.

    A step is bound by reading the weights, so bf16 takes half the time where the processor multiplies it, and a
    multiple of it where it must be emulated. With few ``parameters`` (None: unknown) nothing is saved by reading less.
    """
    if override is not None:
        return DTypeChoice(override, "dtype_override")
    if parameters is not None and parameters < SMALL:
        return DTypeChoice("f32", "a small model")
    found = sorted(_CPU_BF16.intersection(flags))
    if found:
        return DTypeChoice("bf16", f"the CPU has {found[0]}")
    return DTypeChoice("f32", "the CPU has no bf16 instructions")


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What is known of how a language model's layers are to be held.

    ``asked`` is the configuration's ``quantize``, ``stored`` how the checkpoint holds them, ``parameters`` how many
    numbers the model has.
    """

    asked: Quantize | Literal["none"] | None = None
    stored: Quantize | None = None
    parameters: int = 0


def quantized(
    choice: DTypeChoice, request: QuantizeRequest, flags: Collection[str], cores: int, override: DType | None
) -> DTypeChoice:
    """``choice`` for a CPU of so many ``cores``, with the layers of a large model in 8 bits, or in 4 if cores are few.

    A step for few streams takes as long as reading the weights. What the configuration or the checkpoint says goes
    first; ``override`` is its ``dtype_override``, which alone means numbers of that type and nothing less.
    """
    if request.asked == "none":
        return choice
    kind, reason = request.asked, "quantize"
    if kind is None and request.stored is not None:
        kind, reason = request.stored, f"the checkpoint is in {request.stored}"
    if kind is None and override is None and request.parameters >= LARGE and _CPU_PRODUCTS.intersection(flags):
        few = cores < FEW_CORES and "avx2" in flags
        kind, reason = ("int4" if few else "int8"), f"a large model on {cores} cores"
    if kind is None:
        return choice
    return DTypeChoice(override or "f32", reason, kind)


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
