"""The worker command from its start to SIGTERM: logs, signals and errors at start."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .test_commands import EMPTY, ROOT, environment, moshi_server, one_error

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ [\w.]+ [\w.]+:\d+ .+")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    published = (ROOT / "tests" / "data" / "configs" / "dsm" / "config-stt-en_fr-hf.toml").read_text()
    modules = published[published.index("[modules.asr]") :]
    (tmp_path / "c.toml").write_text(EMPTY + modules)
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def worker(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A worker that answers, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.cli.fake_worker", "worker", "--config", "c.toml"]
    command += ["-a", "127.0.0.1", "-p", str(port), "--cpu", *options]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            pytest.fail(f"the worker did not start: {process.communicate(timeout=5)}")
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_1_a_worker_starts_serves_and_ends_in_order(folder: Path, number: signal.Signals) -> None:
    with worker(folder) as (process, _):
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert "\x1b" not in err
    file = (folder / "logs" / "log.test").read_text()
    assert file == err
    assert all(LINE.fullmatch(line) for line in file.splitlines())
    assert re.search(r"INFO moshi_server.cli.worker worker.py:\d+ moshi-server [\d.]+ starts config=c.toml", file)
    assert re.search(r"INFO moshi_server\.app\.\w+ \w+.py:\d+ ended$", file.rstrip())


def test_6_silent_says_nothing_on_the_console(folder: Path) -> None:
    with worker(folder, "--silent") as (process, _):
        process.terminate()
        assert process.communicate(timeout=30) == ("", "")
    assert (folder / "logs" / "log.test").read_text()


def test_6_the_level_of_the_command_line_counts(folder: Path) -> None:
    with worker(folder, "--log", "error") as (process, _):
        process.terminate()
        assert process.communicate(timeout=30) == ("", "")
    assert (folder / "logs" / "log.test").read_text() == ""


def test_6_the_size_and_number_of_files_of_the_command_line_count(folder: Path) -> None:
    logs = folder / "logs"
    logs.mkdir()
    for number in (1, 2, 3):
        (logs / f"log.test.{number}").write_text("old\n")
    (logs / "log.test").write_text("full\n" * 1000)
    with worker(folder, "--log-max-size-mb", "0.004", "--log-max-files", "2") as (process, _):
        process.terminate()
        process.communicate(timeout=30)
    assert sorted(path.name for path in logs.iterdir()) == ["log.test", "log.test.1", "log.test.2"]
    assert (logs / "log.test.1").read_text() == "full\n" * 1000


def test_1_a_taken_port_is_one_line_on_the_console_and_in_the_log(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        options = ("worker", "--config", "c.toml", "-a", "127.0.0.1", "-p", port, "--log", "error")
        assert f"port {port} is already in use" in one_error(moshi_server(*options, cwd=folder))
        silent = moshi_server(*options, "--silent", cwd=folder)
    assert (silent.returncode, silent.stdout, silent.stderr) == (1, "", "")
    lines = (folder / "logs" / "log.test").read_text().splitlines()
    assert len(lines) == 2
    assert all(LINE.fullmatch(line) and f"port {port} is already in use" in line for line in lines)


def test_1_a_shipped_configuration_is_found_by_its_name(folder: Path) -> None:
    line = one_error(
        moshi_server("worker", "--config", "config-tts", "-p", "1", "-a", "256.0.0.1", "-l", "error", cwd=folder)
    )
    assert "cannot listen on 256.0.0.1" in line


def test_1_a_bug_is_one_line_and_its_traceback_is_in_the_log(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.cli.fake_worker", "worker", "--config", "c.toml", "-p", "0", "--cpu"]
    command += ["--log", "error"]
    environ = environment(PYTHONPATH=str(ROOT), FAKE_BUG="1")
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)
    line = one_error(done)
    assert "ZeroDivisionError: a bug" in line
    assert "log.test" in line
    assert "    ZeroDivisionError: a bug\n" in (folder / "logs" / "log.test").read_text()
