"""Real workers on the embedded model, one of them killed with SIGKILL under real-time streams; nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_a_worker_is_killed_and_every_word_arrives_once(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "survive.py"), "--json", str(tmp_path / "figures.json")]
    options = "--workers 2 --streams 4 --seconds 10 --orders 2 --kills 1 --down 0"
    done = subprocess.run([*command, *options.split()], capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["kills"] == 1
    assert figures["streams with a loss"] == 2  # each worker had two of the four
    # Two stories, twice each, of at least ten seconds of speech: every word that was spoken, and as it was spoken.
    assert figures["words"] == figures["spoken"] > 4 * 10
    for nothing in ("missing", "doubled or wrong", "at another time", "not as spoken"):
        assert figures[nothing] == 0
