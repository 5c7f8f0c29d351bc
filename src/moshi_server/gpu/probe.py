"""What the NVIDIA driver says of the GPUs (through NVML): name, memory, compute capability, load; it plans nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU. Memory is in bytes; what the driver did not say is None.

    ``context`` is what starting CUDA will still take of ``free``; 0 once this process has started it.
    """

    index: int
    name: str
    total: int | None
    free: int | None
    capability: tuple[int, int] | None
    uuid: str = ""
    source: str = "NVML"
    context: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """The GPUs in the driver's order, and one sentence for each thing that could not be read."""

    gpus: tuple[GpuInfo, ...]
    notes: tuple[str, ...] = ()


class GpuReading(NamedTuple):
    """The present state of the watched GPUs together: bytes, and percent of the time in use (their mean)."""

    free_bytes: float
    used_bytes: float
    total_bytes: float
    utilization_percent: float


class NvmlError(Exception):
    """The driver's library is missing, or answers nothing at all. The text is one sentence for the log."""


class Nvml:
    """The driver's library, initialized. Every method may be called from any thread."""

    def __init__(self) -> None:
        """Load and initialize.

        Raises:
            NvmlError: there is no library, or no driver.
        """
        import pynvml

        self._lib: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError_LibraryNotFound:
            raise NvmlError("no NVIDIA driver is installed (NVML was not found)") from None
        except (pynvml.NVMLError, OSError) as error:
            raise NvmlError(f"the NVIDIA driver cannot be asked: {error}") from error

    def close(self) -> None:
        """Let go of the driver."""
        with suppress(self._lib.NVMLError):
            self._lib.nvmlShutdown()

    def probe(self) -> Probe:
        """Every GPU; one that cannot be opened is left out, a value that cannot be read is None; notes say which."""
        notes: list[str] = []
        count = self._ask(self._lib.nvmlDeviceGetCount, "the number of GPUs", notes)
        if count == 0:
            notes.append("the NVIDIA driver sees no GPU")
        found = (self._gpu(index, notes) for index in range(count or 0))
        return Probe(tuple(gpu for gpu in found if gpu is not None), tuple(notes))

    def _gpu(self, index: int, notes: list[str]) -> GpuInfo | None:
        lib, which = self._lib, f"GPU {index}"
        handle = self._ask(lambda: lib.nvmlDeviceGetHandleByIndex(index), which, notes)
        if handle is None:
            return None
        name = self._ask(lambda: lib.nvmlDeviceGetName(handle), f"{which}'s name", notes)
        memory = self._ask(lambda: lib.nvmlDeviceGetMemoryInfo(handle), f"{which}'s memory", notes)
        capability = self._ask(
            lambda: lib.nvmlDeviceGetCudaComputeCapability(handle), f"{which}'s compute capability", notes
        )
        uuid = self._ask(lambda: lib.nvmlDeviceGetUUID(handle), f"{which}'s UUID", notes)
        return GpuInfo(
            index=index,
            name=name or which,
            total=memory.total if memory else None,
            free=memory.free if memory else None,
            capability=(int(capability[0]), int(capability[1])) if capability else None,
            uuid=uuid or "",
        )

    def reading(self, indices: Sequence[int]) -> GpuReading | None:
        """These GPUs' memory and load now; None if their memory cannot be read, NaN for a load that cannot."""
        lib = self._lib
        memories, loads = [], []
        for index in indices:
            try:
                handle = lib.nvmlDeviceGetHandleByIndex(index)
                memories.append(lib.nvmlDeviceGetMemoryInfo(handle))
            except lib.NVMLError:
                return None
            try:
                loads.append(float(lib.nvmlDeviceGetUtilizationRates(handle).gpu))
            except lib.NVMLError:  # virtual GPUs and partitions have no such counter
                continue
        if not memories:
            return None
        return GpuReading(
            free_bytes=float(sum(memory.free for memory in memories)),
            used_bytes=float(sum(memory.used for memory in memories)),
            total_bytes=float(sum(memory.total for memory in memories)),
            utilization_percent=sum(loads) / len(loads) if loads else float("nan"),
        )

    def _ask(self, call: Callable[[], _T], what: str, notes: list[str]) -> _T | None:
        try:
            return call()
        except self._lib.NVMLError as error:
            notes.append(f"the NVIDIA driver does not give {what}: {error}")
        except UnicodeDecodeError:
            notes.append(f"the NVIDIA driver gives {what} as bytes that are no text")
        return None


def probe() -> Probe:
    """Ask the driver once. Never raises: where there is no driver or GPU, ``notes`` say so."""
    try:
        nvml = Nvml()
    except NvmlError as error:
        return Probe((), (str(error),))
    try:
        return nvml.probe()
    finally:
        nvml.close()


_said: set[str] = set()


def say_once(notes: Sequence[str]) -> None:
    """Log each note the first time it comes up in this process."""
    for note in notes:
        if note not in _said:
            _said.add(note)
            logger.info("%s", note)


def visible(gpus: Sequence[GpuInfo], env: Mapping[str, str]) -> list[GpuInfo]:
    """The GPUs that CUDA shows: position N is ``cuda:N``.

    ``CUDA_VISIBLE_DEVICES`` is read as CUDA does: indices or UUID prefixes, up to the first that names nothing. NVML
    orders by bus; CUDA puts the fastest first unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, so that with unlike cards the
    two may differ. Whoever has CUDA running compares UUIDs instead.
    """
    wanted = env.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(gpus)
    chosen: list[GpuInfo] = []
    for item in (part.strip() for part in wanted.split(",")):
        if item.isdecimal():
            matches = [gpu for gpu in gpus if gpu.index == int(item)]
        else:
            matches = [gpu for gpu in gpus if item and gpu.uuid.startswith(item)]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen.append(matches[0])
    return chosen


class MemoryReader:
    """Reads memory and load of the GPUs in use, for metrics: the driver is opened at the first call and kept.

    Args:
        indices: NVML's indices of the GPUs to add up; all of them if None.
    """

    def __init__(self, indices: Sequence[int] | None = None) -> None:
        self._indices = indices
        self._lock = threading.Lock()
        self._nvml: Nvml | None = None
        self._absent = False

    def __call__(self) -> GpuReading | None:
        """The present state, or None without a driver or GPU. A missing driver is looked for only once."""
        with self._lock:
            if self._absent:
                return None
            if self._nvml is None and not self._open():
                return None
            assert self._nvml is not None
            assert self._indices is not None
            return self._nvml.reading(self._indices)

    def _open(self) -> bool:
        try:
            self._nvml = Nvml()
        except NvmlError as error:
            say_once([str(error)])
            self._absent = True
            return False
        if self._indices is None:
            found = self._nvml.probe()
            say_once(found.notes)
            self._indices = [gpu.index for gpu in found.gpus]
        if not self._indices:
            self._nvml.close()
            self._nvml = None
            self._absent = True
        return not self._absent


read_memory = MemoryReader()
"""Memory and load of every GPU of the machine; see `MemoryReader`."""
