"""How the process uses a CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from moshi_server.engine.cpu import SMALL_WIDTH, choose_threads

FAULTS = """
import resource, sys
import numpy as np
from moshi_server.engine.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    parts = [np.ones(4 << 20, np.uint8) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_small_model_runs_on_one_thread_and_a_large_one_on_what_there_is() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        choose_threads(SMALL_WIDTH + 1)
        assert torch.get_num_threads() == 2
        choose_threads(SMALL_WIDTH)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_steps_memory_is_not_given_back_between_steps() -> None:
    def faults(mode: str) -> int:
        run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("keep") * 10 < faults("default")
