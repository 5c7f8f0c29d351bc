"""The GPUs that torch runs on, with what the driver says of each; it plans nothing."""

from __future__ import annotations

import os
from dataclasses import replace

from ..gpu import GpuInfo, probe, say_once


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
