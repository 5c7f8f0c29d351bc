"""The devices that torch runs on: what the driver says of each GPU, which one is meant, what really fits; no plans."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError
from ..gpu import DType, GpuInfo, Plan, probe, say_once
from .runner import Runner

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Runner)


def cuda_gpus() -> list[GpuInfo]:
    """The GPUs in CUDA's order, position N being ``cuda:N``; empty without one. What is amiss is logged once.

    CUDA is started on each first, so that ``free`` is what is left for models. NVML's GPUs are found again by UUID,
    since CUDA orders, hides and splits them its own way; one that NVML does not know has unknown memory.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        torch.zeros(1, device=f"cuda:{index}")
    found = probe()
    say_once(found.notes)
    if found.gpus and not count:
        why = "CUDA_VISIBLE_DEVICES hides it" if "CUDA_VISIBLE_DEVICES" in os.environ else f"torch {torch.__version__}"
        say_once([f"{found.gpus[0].name} is there, but cannot be used ({why}): running on the CPU"])
    by_uuid = {gpu.uuid.removeprefix("GPU-"): gpu for gpu in found.gpus if gpu.uuid}
    gpus: list[GpuInfo] = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        capability = (int(properties.major), int(properties.minor))
        known = by_uuid.get(str(getattr(properties, "uuid", "")))
        if known is None and count == 1 and len(found.gpus) == 1 and not found.gpus[0].uuid:
            known = found.gpus[0]
        unknown = GpuInfo(index, properties.name, None, None, capability, source="torch")
        gpus.append(replace(known or unknown, capability=capability))
    return gpus


def choose_device(name: str | None) -> torch.device:
    """The named device, else the first GPU, else the CPU.

    Raises:
        ConfigError: a GPU is named that is not here.
    """
    import torch

    device = torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"{name} is not here: {count} GPUs are visible", key="device", hint="use --cpu, or check nvidia-smi"
            )
        device = torch.device("cuda", device.index or 0)
        # TF32 keeps ten bits: enough to turn the codec's codes.
        torch.backends.cudnn.allow_tf32 = False
    return device


def fitting_runner(make: Callable[[int], R], name: str, slots: int, plan: Plan) -> R:
    """A runner with ``slots`` slots, or with half of them, and so on, if the memory cannot really be taken.

    Raises:
        MemoryPlanError: there is no room for one.
    """
    import torch

    while True:
        try:
            return make(slots)
        except torch.OutOfMemoryError:
            fewer = plan.halve(name, slots)
        logger.warning("module %s: out of memory with %d slots, trying %d", name, slots, fewer)
        slots = fewer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # after the handler: the error's traceback holds what it took


def number_type(name: DType) -> torch.dtype:
    """Torch's name for a number type."""
    import torch

    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]
