"""The worker command from its start to SIGTERM: logs, signals and errors at start."""

from __future__ import annotations

import asyncio
import json
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
import msgpack
import pytest
import websockets

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
def worker(folder: Path, *options: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A worker that answers, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.cli.fake_worker", "worker", "--config", "c.toml"]
    command += ["-a", "127.0.0.1", "-p", str(port), "--cpu", *options]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), **env),
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


def test_1_drain_seconds_of_the_command_line_count(folder: Path) -> None:
    async def stay(port: int, process: subprocess.Popen[str]) -> int | None:
        url = f"ws://127.0.0.1:{port}/api/asr-streaming?auth_id=key"
        async with websockets.connect(url) as socket:
            await socket.recv()
            process.terminate()
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await asyncio.wait_for(socket.recv(), 20)  # the configuration's 30 s would be too long
            return socket.close_code

    with worker(folder, "--drain-seconds", "0.2") as (process, port):
        assert asyncio.run(stay(port, process)) == 1001
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_1_exit_on_failure_of_the_command_line_counts_and_the_log_is_whole(folder: Path) -> None:
    async def hang(port: int) -> int | None:
        url = f"ws://127.0.0.1:{port}/api/asr-streaming?auth_id=key"
        async with websockets.connect(url) as socket:
            await socket.send(msgpack.packb({"type": "Audio", "pcm": [0.1] * 1920}))
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await asyncio.wait_for(socket.recv(), 20)
            return socket.close_code

    text = (folder / "c.toml").read_text()
    (folder / "c.toml").write_text(text.replace("[modules.asr]", "[modules.asr]\nstep_timeout_seconds = 0.5", 1))
    with worker(folder, "--exit-on-failure", FAKE_STEP="hangs") as (process, port):
        assert asyncio.run(hang(port)) == 1011
        _, err = process.communicate(timeout=30)
    assert process.returncode == 70
    file = (folder / "logs" / "log.test").read_text()
    assert file == err
    assert "a model step has not come back for 0.5 s" in file
    assert file.splitlines()[-1].endswith(" ended")


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


def failed_start(folder: Path, *options: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cli.fake_worker", "worker", "--config", "c.toml", "-a", "127.0.0.1"]
    environ = environment(PYTHONPATH=str(ROOT), **extra)
    command += ["-p", str(free_port()), "--cpu", "--log", "error", *options]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [("CUDA out of memory. Tried to\nallocate 2 GiB", "lower the module's batch_size"), ("no kernel", "try --cpu")],
)
def test_7_a_warmup_that_fails_ends_the_start_and_says_what_to_do(folder: Path, reason: str, advice: str) -> None:
    done = failed_start(folder, FAKE_WARMUP_FAILURE=reason)
    assert done.returncode == 1
    # The first line is the log's, the last the command's own.
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: module asr has failed: the warmup failed: ")
    assert advice in last
    log = (folder / "logs" / "log.test").read_text()
    assert re.search(r" ERROR moshi_server\.engine\.worker .* the warmup failed: .* module=asr seconds=", log)
    assert f"    RuntimeError: {reason.splitlines()[0]}" in log


def test_7_warmup_is_logged_with_its_duration_before_the_module_is_ready(folder: Path) -> None:
    with worker(folder) as (process, port):
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert re.search(r"INFO .* warmup starts module=asr\n.* INFO .* warmup done module=asr seconds=[\d.e-]+\n", log)
    assert log.index("warmup done") < log.index("is ready") < log.index("listening on")
    assert "\nwarmup_success_total 1.0\n" in metrics
    assert "\nwarmup_duration_seconds_count 1.0\n" in metrics
    assert "\nwarmup_failure_total 0.0\n" in metrics


def test_7_a_warmup_that_is_off_is_logged_and_counted(folder: Path) -> None:
    (folder / "c.toml").write_text("warmup = { enabled = false }\n" + (folder / "c.toml").read_text())
    with worker(folder) as (process, port):
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert re.search(r"INFO .* warmup skipped: \[warmup\] enabled is false module=asr\n", log)
    assert "\nwarmup_skipped_total 1.0\n" in metrics
    assert "\nwarmup_duration_seconds_count 0.0\n" in metrics


def test_6_log_json_makes_every_line_an_object(folder: Path) -> None:
    with worker(folder, "--log-json") as (process, port):
        refused = httpx.get(f"http://127.0.0.1:{port}/api/asr-streaming", trust_env=False)
        assert refused.status_code == 426
        assert httpx.post(f"http://127.0.0.1:{port}/api/asr-streaming", trust_env=False).status_code == 401
        process.terminate()
        console = process.communicate(timeout=30)[1]
    lines = [json.loads(line) for line in console.splitlines()]
    assert console == (folder / "logs" / "log.test").read_text()
    assert any(line["message"].startswith("refused") and line["code"] == "missing_credentials" for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_6_a_file_that_can_not_grow_is_a_warning_and_the_server_goes_on(folder: Path) -> None:
    import resource

    def refused() -> None:
        assert httpx.post(f"http://127.0.0.1:{port}/api/asr-streaming", trust_env=False).status_code == 401

    with worker(folder) as (process, port):
        file = folder / "logs" / "log.test"
        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size, before[1]))
        for _ in range(5):
            refused()
        time.sleep(0.3)
        held = file.read_text().splitlines()
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
        refused()
        process.terminate()
        console = process.communicate(timeout=30)[1]
        assert process.returncode == 0
    warnings = [line for line in console.splitlines() if "cannot be written" in line]
    assert len(warnings) == 1
    assert LINE.fullmatch(warnings[0])
    assert console.count("refused") == 6
    now = file.read_text().splitlines()
    assert now[: len(held)] == held
    assert "log lines were lost lines=5" in now[len(held)]
    assert all(LINE.fullmatch(line) for line in now)
    assert sum("refused" in line for line in now) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_6_a_full_disk_at_start_is_one_line(folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "log.test").symlink_to("/dev/full")
    assert "make room there, or set log_dir" in one_error(failed_start(folder))


def test_6_each_line_of_a_session_has_its_id(folder: Path) -> None:
    """One stream of several, followed through the log from its opening to its end."""

    async def talk() -> None:
        url = f"ws://127.0.0.1:{port}/api/asr-streaming?auth_id=key"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send(b"not MessagePack")
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await one.recv()
            await two.close()

    with worker(folder) as (process, port):
        asyncio.run(talk())
        process.terminate()
        log = process.communicate(timeout=30)[1]
    streams = [line for line in log.splitlines() if "stream " in line and "no new streams" not in line]
    assert len(streams) == 4
    for number in (1, 2):
        mine = [line for line in streams if f" session={number} " in line and " module=asr " in line]
        assert [re.search(r"stream (\w+)", line)[1] for line in mine] == ["opened", "ended"]  # type: ignore[index]
