"""The GPUs that torch runs on, where the driver has some and torch has none; with one, in the tests marked gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moshi_server.engine.devices import cuda_gpus

from .nvml import build_stub

ASK = """
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
from moshi_server.engine.devices import cuda_gpus
print(len(cuda_gpus() + cuda_gpus()))
"""


@pytest.mark.parametrize(
    ("hidden", "why"),
    [({}, f"torch {torch.__version__}"), ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides it")],
)
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the driver is asked through a stub, beside which CUDA cannot run"
)
def test_a_gpu_that_torch_cannot_use_is_said_once(tmp_path: Path, hidden: dict[str, str], why: str) -> None:
    env = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(build_stub(tmp_path)), "NVML_GPUS": "1"} | hidden
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"
    assert done.stderr == f"NVIDIA GeForce RTX 2070 is there, but cannot be used ({why}): running on the CPU\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_each_cuda_device_has_the_drivers_memory() -> None:
    gpus = cuda_gpus()
    assert len(gpus) == torch.cuda.device_count()
    for index, gpu in enumerate(gpus):
        free, total = torch.cuda.mem_get_info(index)
        assert gpu.source == "NVML"
        assert gpu.capability == torch.cuda.get_device_capability(index)
        assert gpu.free == pytest.approx(free, rel=0.02)
        assert gpu.total == pytest.approx(total, rel=0.02)
