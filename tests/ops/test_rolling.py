"""Real workers behind HAProxy, one restarted and one killed under the SDK's real-time streams: nobody loses a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..cli.test_commands import ROOT, environment
from .test_many_workers import tool


@pytest.mark.timeout(240)
def test_no_session_is_refused_or_loses_a_word_while_workers_come_and_go(tmp_path: Path) -> None:
    tool("haproxy")
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "haproxy.py", "--workers", "2", "--slots", "2", "--restarts", "1",
         "--phases", "rolling", "killed", "--drain", "0.5", "--json", figures],
        env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=230, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rolling, killed = json.loads(figures.read_text())
    for phase in (rolling, killed):
        assert phase["sessions"] > 2
        assert phase["words"] > 0
        assert (phase["refused"], phase["given_up"], phase["wrong"]) == (0, 0, 0)
        assert phase["resumed"] == phase["lost"]
