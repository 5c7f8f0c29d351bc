"""The soak's own arithmetic: a leak and a missing stream must be seen, and its server must have every module type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moshi_server.config import load_config
from moshi_server.metrics import Metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from soaking import verdict
from soaking.server import Sample, Server, write_config
from soaking.verdict import audit, delays, growth, leaks, steadiness
from soaking.visitor import Ledger

BENCHMARKS = Path(verdict.__file__).parents[1]


def counted() -> tuple[Ledger, Metrics]:
    """A ledger and metrics that agree: in each module two streams, one of them by a socket that was closed."""
    ledger, metrics = Ledger(), Metrics()
    kinds = {"asr": "BatchedAsr", "single": "Asr", "loud": "PyBatchedAsr", "tts": "Py", "tones": "Py"}
    for name, kind in (kinds | {"speak": "Tts", "lm": "Lm", "rooms": "Mimi", "spectrum": "PyPost"}).items():
        account, module = ledger.of(name), metrics.module(kind, name)
        account.sockets, account.posts, account.opened = 1, 1, 2
        for _ in range(2):
            module.connected()
            module.opened()
            module.closed(10)
        metrics.closed(1000)
    ledger.of("spectrum").posts = 2
    return ledger, metrics


def read(metrics: Metrics) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def test_accounts_that_agree() -> None:
    ledger, metrics = counted()
    assert audit(ledger, read(metrics)) == []


@pytest.mark.parametrize("name", ["asr", "speak", "rooms", "spectrum"])
def test_a_stream_that_was_never_closed_is_missed(name: str) -> None:
    ledger, metrics = counted()
    metrics.module({"asr": "BatchedAsr", "speak": "Tts", "rooms": "Mimi", "spectrum": "PyPost"}[name], name).opened()
    wrong = audit(ledger, read(metrics))
    assert any(line.startswith(f"{name}, streams opened") for line in wrong)
    assert any(line.startswith(f"{name}, streams closed") for line in wrong)
    assert ("asr_open_channels" in str(wrong)) == (name == "asr")


def test_what_a_client_cannot_know_is_no_fault() -> None:
    ledger, metrics = counted()
    ledger.of("tones").unsure = ledger.of("tones").unsure_posts = 1
    assert audit(ledger, read(metrics)) == []
    module = metrics.module("Py", "tones")
    module.connected()
    module.opened()
    module.closed(3)
    assert audit(ledger, read(metrics)) == []
    ledger.of("tones").unsure = 0
    assert audit(ledger, read(metrics)) == ["tones, streams opened: the server counts 3, the clients 2 to 2"]


def test_sockets_that_are_not_closed_or_lost_are_missed() -> None:
    ledger, metrics = counted()
    ledger.of("lm").sockets += 1
    ledger.lost = ledger.wrong_keys = 1
    assert [line.split(":")[0] for line in audit(ledger, read(metrics))] == [
        "lm_connect", "ws_close_total", "ws_close_total, lost", "auth_error_total",
    ]  # fmt: skip


@pytest.mark.parametrize(("leak", "slope", "share"), [(0, 0, 0), (2**20, 3600, 300 / 400)])
def test_growth_is_that_of_the_second_half(leak: int, slope: float, share: float) -> None:
    samples = [Sample(second, (100 + min(second, 300)) * 2**20, 10, 5) for second in range(300)]  # the first half grows
    samples += [Sample(300 + second, 400 * 2**20 + leak * second, 10, 5) for second in range(301)]
    assert growth(samples) == (pytest.approx(slope, abs=1), pytest.approx(share, abs=0.01))


QUIET = [Sample(second, 400 * 2**20, 20 + second % 5, 18, 30 + second % 9) for second in range(600)]
BEFORE = Sample(0, 390 * 2**20, 15, 17, 4)
IDLE = {"serve": 1, "watch": 3}


def changed(**more: float) -> list[Sample]:
    """Samples to which each second adds so much."""
    return [
        replace(each, **{name: int(getattr(each, name) + by * each.seconds) for name, by in more.items()})
        for each in QUIET
    ]


def test_a_server_that_stays_as_it_is_does_not_leak() -> None:
    assert leaks(QUIET, BEFORE, BEFORE, IDLE, IDLE) == []
    assert leaks(QUIET, BEFORE, replace(BEFORE, files=14), IDLE, {"serve": 1}) == []  # fewer is no fault


@pytest.mark.parametrize(
    ("samples", "after", "tasks", "fault"),
    [
        (changed(rss=2**17), BEFORE, IDLE, "memory grew"),
        (changed(files=0.05), BEFORE, IDLE, "files: "),
        (changed(threads=0.05), BEFORE, IDLE, "threads: "),
        (changed(tasks=0.1), BEFORE, IDLE, "tasks: "),
        (QUIET, replace(BEFORE, files=16), IDLE, "1 files are still open"),
        (QUIET, replace(BEFORE, threads=19), IDLE, "threads have become more"),
        (QUIET, BEFORE, IDLE | {"Pump._read": 2}, "2 tasks of Pump._read are still there"),
        (QUIET, BEFORE, IDLE | {"watch": 4}, "1 tasks of watch are still there"),
    ],
)
def test_each_kind_of_leak_is_seen(samples: list[Sample], after: Sample, tasks: dict[str, int], fault: str) -> None:
    assert any(line.startswith(fault) for line in leaks(samples, BEFORE, after, IDLE, tasks))


def answers(taken: Callable[[float], float]) -> list[tuple[float, float]]:
    return [(when / 10, taken(when / 10)) for when in range(3000)]


def test_delays_are_those_of_the_first_and_the_last_third() -> None:
    first, last = delays(answers(lambda when: 0.1 if when < 150 else 0.3), [(20.0, 0.01), (290.0, 0.02)])
    assert (first.p50, first.p99, first.late) == pytest.approx((0.1, 0.1, 0.01))
    assert (last.p50, last.p99, last.late) == pytest.approx((0.3, 0.3, 0.02))
    assert abs(first.count - last.count) <= 2
    assert abs(first.count - 1000) <= 2


@pytest.mark.parametrize(
    ("taken", "fault"),
    [
        (lambda when: 0.02 + when % 7 / 100, ""),
        (lambda when: 0.04 + when / 1000, "answers got later: p99 "),
        (lambda when: 0.03 if when < 250 or round(10 * when) % 20 else 0.5, "answers got later: p99 30 ms"),
    ],
)
def test_answers_that_get_later_are_seen(taken: Callable[[float], float], fault: str) -> None:
    wrong = steadiness(*delays(answers(taken), []))
    assert [line.startswith(fault) for line in wrong] == [True] * bool(fault)


def test_a_soak_that_timed_nothing_shows_nothing() -> None:
    assert "only" in steadiness(*delays([(0.0, 0.1), (100.0, 0.1)], []))[0]


def test_tasks_are_counted_in_a_real_process(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import asyncio, signal\nfrom soaking.launch import count\n"
        "async def left_behind(): await asyncio.sleep(60)\n"
        "async def main():\n"
        "    signal.signal(signal.SIGUSR1, count)\n"
        "    kept = [asyncio.create_task(left_behind()) for _ in range(3)]\n"
        "    print('ready', flush=True)\n    await asyncio.sleep(60)\n"
        "import uvloop; uvloop.run(main())\n"
    )
    server = Server.__new__(Server)
    server._tasks = tmp_path / "tasks.json"
    environment = os.environ | {"SOAK_TASKS": str(server._tasks)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            server.process = process
            assert server.tasks() == {"left_behind": 3, "run.<locals>.wrapper": 1}
        finally:
            process.kill()


def test_the_server_has_every_module_type_but_the_one_without_weights(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    kinds = {module.type for module in config.modules.values()}
    assert kinds == {"Asr", "BatchedAsr", "PyBatchedAsr", "Tts", "Py", "PyPost", "Lm", "Mimi"}
    assert {module.send_timeout_seconds for module in config.modules.values()} == {4.0}
