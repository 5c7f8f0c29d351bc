"""The probe through the real NVIDIA binding: without a library, without a GPU, with two, and with each call failing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moshi_server.gpu import GpuInfo, Probe, say_once, visible
from moshi_server.gpu import probe as probe_here

from .nvml import build_stub

PROBE = """
import dataclasses, json, logging, math, sys
logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
from moshi_server.gpu import MemoryReader, probe, say_once
found = probe()
for _ in range(3):
    say_once(probe().notes)
reader = MemoryReader()
readings = [reader() for _ in range(2)]
print(json.dumps({
    "gpus": [dataclasses.asdict(gpu) for gpu in found.gpus],
    "notes": found.notes,
    "readings": [None if r is None else [None if math.isnan(v) else v for v in r] for r in readings],
}))
assert "torch" not in sys.modules
"""
MB = 2**20
RTX_2070 = {
    "index": 0,
    "name": "NVIDIA GeForce RTX 2070",
    "total": 8192 * MB,
    "free": 8000 * MB,
    "capability": [7, 5],
    "uuid": "GPU-aaaa",
    "source": "NVML",
    "context": 0,
}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


def ask(library: Path | None, gpus: int = 1, fail: str = "") -> tuple[dict[str, Any], str]:
    """What a process that finds this library says, and what it logs."""
    env = {"PATH": os.environ["PATH"], "NVML_GPUS": str(gpus), "NVML_FAIL": fail}
    if library is not None:
        env["LD_LIBRARY_PATH"] = str(library)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_5_without_a_library_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"this is no library")
    said, log = ask(tmp_path)
    assert said == {
        "gpus": [],
        "notes": ["no NVIDIA driver is installed (NVML was not found)"],
        "readings": [None, None],
    }
    assert log.count("no NVIDIA driver is installed") == 1


def test_a_library_without_a_gpu(stub: Path) -> None:
    said, log = ask(stub, gpus=0)
    assert said == {"gpus": [], "notes": ["the NVIDIA driver sees no GPU"], "readings": [None, None]}
    assert log.count("sees no GPU") == 1


def test_5_one_gpu_whole(stub: Path) -> None:
    said, log = ask(stub)
    assert said["gpus"] == [RTX_2070]
    assert said["notes"] == []
    assert said["readings"] == [[8000 * MB, 192 * MB, 8192 * MB, 10.0]] * 2
    assert log == ""


def test_two_gpus_are_told_apart_and_read_together(stub: Path) -> None:
    said, _ = ask(stub, gpus=2)
    assert said["gpus"][0] == RTX_2070
    assert said["gpus"][1] == RTX_2070 | {
        "index": 1,
        "name": "NVIDIA L4",
        "total": 23034 * MB,
        "free": 23000 * MB,
        "capability": [8, 9],
        "uuid": "GPU-bbbb",
    }
    assert said["readings"][0] == [31000 * MB, 226 * MB, 31226 * MB, 20.0]


def test_a_driver_that_does_not_start_is_no_gpu(stub: Path) -> None:
    said, log = ask(stub, fail="nvmlInitWithFlags=9")
    assert said["gpus"] == []
    assert said["notes"] == ["the NVIDIA driver cannot be asked: Driver Not Loaded"]
    assert said["readings"] == [None, None]
    assert log.count("Driver Not Loaded") == 1


@pytest.mark.parametrize(
    ("call", "field", "instead", "what"),
    [
        ("nvmlDeviceGetName", "name", "GPU 0", "GPU 0's name"),
        ("nvmlDeviceGetMemoryInfo", "free", None, "GPU 0's memory"),
        ("nvmlDeviceGetMemoryInfo", "total", None, "GPU 0's memory"),
        ("nvmlDeviceGetCudaComputeCapability", "capability", None, "GPU 0's compute capability"),
        ("nvmlDeviceGetUUID", "uuid", "", "GPU 0's UUID"),
    ],
)
def test_a_value_that_cannot_be_read_leaves_the_others(
    stub: Path, call: str, field: str, instead: object, what: str
) -> None:
    said, log = ask(stub, fail=f"{call}=3")
    assert said["notes"] == [f"the NVIDIA driver does not give {what}: Not Supported"]
    assert said["gpus"][0][field] == instead
    assert {**said["gpus"][0], "free": 0, "total": 0, field: 0} == {**RTX_2070, "free": 0, "total": 0, field: 0}
    assert log.count("Not Supported") == 1


@pytest.mark.parametrize(
    ("call", "what"), [("nvmlDeviceGetCount_v2", "the number of GPUs"), ("nvmlDeviceGetHandleByIndex_v2", "GPU 0")]
)
def test_a_gpu_that_cannot_be_opened_is_left_out(stub: Path, call: str, what: str) -> None:
    said, _ = ask(stub, fail=f"{call}=15")
    assert said["gpus"] == []
    assert said["notes"][0] == f"the NVIDIA driver does not give {what}: GPU is lost"
    assert said["readings"] == [None, None]


def test_one_lost_gpu_of_two_leaves_the_other(stub: Path) -> None:
    said, _ = ask(stub, gpus=2, fail="nvmlDeviceGetHandleByIndex_v2@1=15")
    assert said["gpus"] == [RTX_2070]
    assert said["notes"] == ["the NVIDIA driver does not give GPU 1: GPU is lost"]
    assert said["readings"][0] == [8000 * MB, 192 * MB, 8192 * MB, 10.0]


def test_a_load_that_cannot_be_read_leaves_the_memory(stub: Path) -> None:
    said, _ = ask(stub, fail="nvmlDeviceGetUtilizationRates=3")
    assert said["readings"] == [[8000 * MB, 192 * MB, 8192 * MB, None]] * 2


def test_memory_that_cannot_be_read_is_no_reading(stub: Path) -> None:
    said, _ = ask(stub, fail="nvmlDeviceGetMemoryInfo=3")
    assert said["readings"] == [None, None]


def test_an_error_code_that_the_binding_does_not_know_is_said(stub: Path) -> None:
    said, _ = ask(stub, fail="nvmlDeviceGetName=77")
    assert "an error of the stub" in said["notes"][0]


def test_a_driver_that_cannot_be_closed_is_no_failure(stub: Path) -> None:
    said, _ = ask(stub, fail="nvmlShutdown=999")
    assert said["gpus"] == [RTX_2070]


def test_a_driver_too_old_for_a_call_leaves_its_value_out(tmp_path: Path) -> None:
    said, _ = ask(build_stub(tmp_path, "-DWITHOUT_UUID"))
    assert said["gpus"] == [RTX_2070 | {"uuid": ""}]
    assert said["notes"] == ["the NVIDIA driver does not give GPU 0's UUID: Function Not Found"]


def test_the_probe_never_raises_here() -> None:
    assert isinstance(probe_here(), Probe)


def test_a_note_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "moshi_server.gpu")
    for _ in range(3):
        say_once(["something that only this test says"])
    assert [record.getMessage() for record in caplog.records] == ["something that only this test says"]


GPUS = [GpuInfo(index, "L4", 1, 1, (8, 9), uuid=f"GPU-{letter}{letter}") for index, letter in enumerate("abc")]


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 ", [1]),
        ("GPU-b", [1]),
        ("", []),
        ("-1", []),
        ("1,9,0", [1]),
        ("1,1", [1]),
        ("GPU-", []),
        ("MIG-x", []),
    ],
)
def test_visible_gpus_are_numbered_as_cuda_does(variable: str | None, seen: list[int]) -> None:
    env = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert [gpu.index for gpu in visible(GPUS, env)] == seen


@pytest.mark.parametrize(("shown", "total"), [("1", 23034 * MB), ("0", 8192 * MB), ("", None)])
def test_8_a_worker_that_sees_one_gpu_of_two_counts_that_one(stub: Path, shown: str, total: int | None) -> None:
    """As the template unit runs them: a process a GPU, and NVML knows nothing of CUDA_VISIBLE_DEVICES."""
    env = {"PATH": os.environ["PATH"], "NVML_GPUS": "2", "NVML_FAIL": "", "LD_LIBRARY_PATH": str(stub)}
    program = "import json; from moshi_server.app.serve import gpu_reader; print(json.dumps(gpu_reader()()))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env | {"CUDA_VISIBLE_DEVICES": shown},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reading = json.loads(done.stdout)
    assert (reading and reading[2]) == total
