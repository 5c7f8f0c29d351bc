"""A real Prometheus scrapes a worker and answers for each metric; `promtool` finds nothing to say of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from moshi_server.app.websocket import CloseCode
from moshi_server.metrics import Metrics, SystemReading

from ..app.server import KEY, PATH, Server, audio, close_of, events, free_port, message, serve, until
from ..fakes import FakeRunner, say

OPS = Path(__file__).parents[2] / "ops"
HISTOGRAMS = (
    "asr_model_step_duration",
    "asr_connection_num_steps",
    "py_model_step_duration",
    "py_model_connection_num_steps",
    "py_post_model_duration",
    "warmup_duration_seconds",
)
SPECIFIED = (
    *('asr_connect{handler="all"}', 'asr_open_channels{handler="all"}'),
    *('py_connect{handler="all"}', 'py_total_steps{handler="all"}', 'py_active_steps{handler="all"}'),
    *('py_missing_words_steps{handler="all"}', 'py_could_have_run_steps{handler="all"}'),
    *('py_open_channels{handler="all"}', 'py_post_connect{handler="all"}'),
    *(f"{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "count", "sum")),
    *("warmup_success_total", "warmup_failure_total", "warmup_skipped_total"),
    'auth_error_total{error_type="missing_credentials"}',
    'ws_close_total{code="4000",reason="at_capacity"}',
    'connection_error_total{error_type="capacity",module="asr0"}',
    *("system_free_vram_bytes", "system_used_vram_bytes", "system_total_vram_bytes", "system_gpu_utilization_percent"),
)
OURS = (
    "asr_words_total",
    'module_slots{module="asr0"}',
    'module_slots_used{module="asr0"}',
    "process_cpu_seconds_total",
)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


@contextlib.asynccontextmanager
async def busy_server() -> AsyncIterator[Server]:
    """A server on which everything that is counted has happened."""
    metrics = Metrics(lambda: SystemReading(2e9, 6e9, 8e9, 42))
    async with serve(FakeRunner(1), metrics=metrics) as server:
        async with server.connect() as client:
            await client.send(audio(say(3, 200, 3, 3, 999, 3, 300)))
            await client.send(message("Flush"))
            await events(client, "Flush")
            async with server.connect() as second:
                assert (await close_of(second))[1] == CloseCode.AT_CAPACITY
        await until(lambda: server.engines[0].slots_used == 0)
        with pytest.raises(websockets.InvalidStatus):
            await server.connect(query="")
        yield server


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = (await client.get(f"{self.url}/api/v1/query", params={"query": expression})).json()
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]

    async def value(self, expression: str) -> float:
        (result,) = await self.query(expression)
        return float(result["value"][1])


@contextlib.asynccontextmanager
async def prometheus(folder: Path, port_of_worker: int) -> AsyncIterator[Prometheus]:
    """Debian's Prometheus on the shipped configuration, after two scrapes of the worker."""
    command = program("prometheus")
    shutil.copy(OPS / "alerts.yml", folder)
    shipped = (OPS / "prometheus.yml").read_text()
    assert "127.0.0.1:8080" in shipped
    assert "scrape_interval: 5s" in shipped
    config = folder / "prometheus.yml"
    config.write_text(
        shipped.replace("127.0.0.1:8080", f"127.0.0.1:{port_of_worker}").replace("interval: 5s", "interval: 500ms")
    )
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(command, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={address}", "--log.level=error"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        asked = Prometheus(f"http://{address}")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert process.returncode is None, "Prometheus has ended"
            with contextlib.suppress(httpx.TransportError, ValueError):
                if any(float(r["value"][1]) >= 3 for r in await asked.query("count_over_time(asr_connect[1m])")):
                    break
            await asyncio.sleep(0.2)
        yield asked
    finally:
        process.terminate()
        await process.wait()


async def test_8_a_real_prometheus_scrapes_a_worker_and_answers_for_each_metric(tmp_path: Path) -> None:
    program("prometheus")
    async with busy_server() as server, prometheus(tmp_path, server.port) as asked:
        assert await asked.value("up") == 1
        for name in (*SPECIFIED, *OURS):
            assert await asked.query(name), f"Prometheus knows nothing of {name}"
        assert await asked.value("asr_connect") == 2
        assert await asked.value("asr_words_total") == 2
        assert await asked.value("asr_open_channels") == 0
        assert await asked.value('asr_connection_num_steps_bucket{le="+Inf"}') == 1
        assert await asked.value('asr_model_step_duration_bucket{le="0.08"}') >= 7
        assert await asked.value("system_used_vram_bytes") == 6e9
        assert await asked.value('connection_error_total{error_type="capacity"}') == 1
        assert await asked.value("module_slots - module_slots_used") == 1
        await the_dashboard_is_answered(asked)


async def the_dashboard_is_answered(asked: Prometheus) -> None:
    for title, expression in expressions():
        expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        assert await asked.query(expression), f"{title}: nothing for {expression}"


def expressions() -> list[tuple[str, str]]:
    dashboard = json.loads((OPS / "grafana-dashboard.json").read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


async def test_8_promtool_finds_nothing_to_say_of_the_metrics() -> None:
    promtool = program("promtool")
    async with busy_server() as server:
        text = (await server.get("/metrics")).content
    command = [promtool, "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(("what", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_accepts_what_is_shipped(what: str, file: str) -> None:
    done = subprocess.run(
        [program("promtool"), "check", what, file], cwd=OPS, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def names_in(expression: str) -> set[str]:
    return set(
        re.findall(r"\b(?:asr|py|py_post|warmup|auth|ws|connection|system|module|process)_[a-z_]+\b", expression)
    )


async def test_8_dashboard_and_alerts_name_only_metrics_that_exist_and_every_one_specified() -> None:
    async with busy_server() as server:
        text = (await server.get("/metrics")).text
    exported = {re.split("[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    used = set().union(*(names_in(expression) for _, expression in expressions()))
    alerts = set().union(
        *map(names_in, re.findall(r"expr: (?:>\n)?((?:.*\n)+?) +(?:for|labels)", (OPS / "alerts.yml").read_text()))
    )
    assert used - exported == set()
    assert {"asr_model_step_duration_bucket", "auth_error_total"} <= alerts
    assert alerts - exported == set()
    missing = {re.split("[{ ]", name)[0] for name in SPECIFIED} - used
    assert {name for name in missing if not name.endswith(("_sum", "_count", "_bucket"))} == set()


async def test_8_the_paths_of_the_scrape_need_no_credentials() -> None:
    async with serve() as server:
        for path in ("/metrics", "/api/health", "/api/status", "/api/build_info", "/api/modules_info"):
            assert (await server.get(path)).status_code == 200
        assert (await server.post(b"", PATH, headers={})).status_code == 401
        assert KEY not in (await server.get("/metrics")).text
