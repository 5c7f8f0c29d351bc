"""The network's faults, with real TCP in a namespace of its own: packets vanish, come late, or come no more."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Outage
from .table import fault

ROOT = Path(__file__).parents[2]


@functools.cache
def no_namespace() -> str:
    """Why there can be no network of our own here; empty if there can."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "unshare and ip (util-linux, iproute2) are not here"
    made = subprocess.run(
        ["unshare", "-n", "ip", "tuntap", "add", "probe", "mode", "tun"], capture_output=True, check=False
    )
    return "" if made.returncode == 0 else "it needs root and /dev/net/tun"


def over(scenario: str) -> dict[str, Any]:
    if reason := no_namespace():
        pytest.skip(reason)
    command = ["unshare", "-n", sys.executable, "-m", "tests.faults.over_a_bad_network", scenario]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["right"], seen
    return seen


@fault(
    "5 % of packets vanish, the others come 20 to 60 ms late",
    lost="nothing",
    noticed="nobody: words come later; how much later at most is the time given here",
    within=30,
)
def test_packets_that_vanish_and_come_late(outage: Outage) -> None:
    seen = over("lossy")
    assert seen["losses"] == []
    assert seen["packets"][1] > 3
    outage.lasted(seen["latest"])


@fault(
    "The network is away for 1.2 s",
    lost="nothing",
    noticed="nobody: TCP sends again",
    within=30,
)
def test_a_network_that_is_away_for_a_while(outage: Outage) -> None:
    seen = over("interrupted")
    assert seen["losses"] == []
    assert seen["packets"][1] > 3
    assert seen["latest"] > 1
    outage.lasted(seen["normal"])


@fault(
    "The network to a worker ends without a word",
    lost="nothing, with a client that reconnects",
    noticed="the client, after `stall_seconds` (here 1); the worker, after `idle_timeout_seconds`",
    within=10,
)
def test_a_network_that_ends(outage: Outage) -> None:
    seen = over("gone")
    assert len(seen["losses"]) == 1
    assert "nothing has come" in seen["losses"][0]
    assert seen["slots"] == 0
    outage.lasted(seen["normal"])
