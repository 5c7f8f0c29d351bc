"""``moshi-server doctor`` on this machine, and on ones that lack something."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moshi_server.cli.configs import shipped
from moshi_server.cli.doctor import LOOKED_AT, Verdict, findings, memory


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moshi_server.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )


def test_this_machine_can_serve() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = doctor("--port", str(port), MOSHI_API_KEY="one,two")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--  port {port}" in done.stdout
    assert "2 API keys from the environment" in done.stdout
    assert "two" not in done.stdout.split("credentials")[1].split("keys")[1]
    assert "ok  embedded model" in done.stdout
    assert set(LOOKED_AT) <= set(shipped())
    for name in LOOKED_AT:
        assert name in done.stdout


def test_every_fault_comes_with_a_remedy() -> None:
    for finding in findings(1):
        assert finding.remedy or finding.verdict is not Verdict.BAD, finding


@pytest.mark.parametrize("content", ["", "MemTotal: many kB\n", "MemFree:       1 kB\n"])
def test_memory_that_is_not_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "meminfo").write_text(content)
    assert memory(str(tmp_path / "meminfo")) == (None, None)
    assert memory(str(tmp_path / "missing")) == (None, None)


def test_memory_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:       2000 kB\nMemFree: 1 kB\nMemAvailable:   1000 kB\nHugePages_Total: 0\n"
    )
    assert memory(str(tmp_path / "meminfo")) == (2_048_000, 1_024_000)


@pytest.mark.parametrize("flags", [frozenset({"avx2"}), frozenset({"avx2", "avx512_vnni"})])
def test_faster_steps_are_offered_to_the_processors_that_have_them(
    monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]
) -> None:
    monkeypatch.setattr("moshi_server.gpu.cpu_flags", lambda: flags)
    offered = [finding for finding in findings(1) if finding.what == "faster steps on this CPU"]
    assert len(offered) == ("avx512_vnni" in flags)
