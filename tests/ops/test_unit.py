"""The systemd unit and the container's recipe: what they start is what the program understands."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..cli.test_commands import ROOT, environment
from ..cli.test_worker import folder, free_port

__all__ = ["folder"]
OPS = ROOT / "ops"
UNIT = OPS / "moshi-server.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "moshi-server.service").write_text(
        UNIT.read_text()
        .replace("/opt/moshi-server/bin/moshi-server", "/bin/true")
        .replace("/usr/bin/curl", "/bin/true")
    )
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "moshi-server.service"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "moshi-server" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_the_unit_starts_waits_for_and_ends(folder: Path) -> None:
    """ExecStart on a runner without a model, ExecStartPost beside it from the first moment, then SIGTERM."""
    service, port = unit(), str(free_port())
    start = shlex.split(service["ExecStart"].replace("8080", port))
    assert start.pop(0) == "/opt/moshi-server/bin/moshi-server"
    start[start.index("/etc/moshi-server/config.toml")] = "c.toml"
    wait = shlex.split(service["ExecStartPost"].replace("8080", port))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fake_worker", *start, "--cpu"],
        cwd=folder, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        waited = subprocess.run(["curl", "--noproxy", "*", *wait[1:]], timeout=60, check=False)
        assert waited.returncode == 0
        process.terminate()
        before = time.monotonic()
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        assert time.monotonic() - before < int(service["TimeoutStopSec"])
    finally:
        process.kill()
        process.communicate()


def test_the_unit_leaves_running_streams_their_grace() -> None:
    from moshi_server.config import Config

    assert int(unit()["TimeoutStopSec"]) > Config.model_fields["shutdown_grace_seconds"].default


def test_the_container_starts_the_worker_and_asks_for_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[-1])
    command = json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[-1])
    assert [*entry, *command][:2] == ["moshi-server", "worker"]
    port = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)[-1]
    assert f"http://127.0.0.1:{port}/api/health" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for needed in ("src", "configs", "README.md", "LICENSE", "pyproject.toml"):
        assert needed not in ignored
