"""The model's faults: a step fails once or for good, hangs, finds no memory, in the middle of what streams say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moshi_server.app.factory import hooks_for
from moshi_server.app.module import ServedModule
from moshi_server.client import (
    AsrClient,
    ConnectionLost,
    ConnectionResumed,
    EngineFailedError,
    Reconnect,
    ReconnectingAsrClient,
    ServerUnreachableError,
)
from moshi_server.client.connecting import Opening
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.worker import Engine
from moshi_server.events import Word
from moshi_server.metrics import Metrics

from ..app.server import KEY, PATH, Server, free_port, running, serve
from ..fakes import say, spell
from .conftest import Outage
from .faulty import FAIL, HANG, NO_MEMORY, FaultyRunner, speech
from .table import fault

QUICK = Reconnect(first_seconds=0.02, most_seconds=0.2, give_up_seconds=20)
ROOT = Path(__file__).parents[2]


def client_of(*ports: int) -> Opening[ReconnectingAsrClient]:
    return ReconnectingAsrClient.connect([f"ws://127.0.0.1:{port}" for port in ports], api_key=KEY, reconnect=QUICK)


def asr_client(port: int) -> Opening[AsrClient]:
    return AsrClient.connect(f"ws://127.0.0.1:{port}", api_key=KEY)


async def hear(outage: Outage, kind: int, *ports: int) -> list[object]:
    """One stream with a fault in it, by a client that reconnects; every word must come, once."""
    words, pcm = speech(kind)
    seen: list[object] = []

    def watch(event: object) -> None:
        seen.append(event)
        if isinstance(event, ConnectionLost):
            outage.begins()
        if isinstance(event, ConnectionResumed):
            outage.ends()

    async with client_of(*ports) as client:
        transcript = await client.transcribe(pcm, on_event=watch)
    assert [word.text for word in transcript.words] == words
    return seen


@fault(
    "A model step fails once",
    lost="the streams of that batch; nothing, with clients that reconnect",
    noticed="those clients: close code 1011",
    within=5,
)
async def test_a_step_that_fails_once(outage: Outage) -> None:
    async with (
        serve(FaultyRunner(4)) as server,
        AsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key=KEY) as other,
    ):
        await other.send_audio(say(61, 3, 3))
        seen = await hear(outage, FAIL, server.port)
        (lost,) = [event for event in seen if isinstance(event, ConnectionLost)]
        assert isinstance(lost.reason, EngineFailedError)
        await other.flush()  # it was in another batch: nothing happened to it
        assert [event.text for event in await other.receive() if isinstance(event, Word)] in ([], ["<61>"])
        assert (await server.get("/api/health")).status_code == 200
        assert await server.metric('ws_close_total{code="1011",reason="internal_error"}') == 1


@fault(
    "A model step finds no memory",
    lost="the streams of that batch; nothing, with clients that reconnect",
    noticed="those clients: close code 1011; the log has the card's own words",
    within=5,
)
async def test_a_step_that_finds_no_memory(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FaultyRunner(4)) as server:
        await hear(outage, NO_MEMORY, server.port)
        assert (await server.get("/api/health")).status_code == 200
    assert "CUDA out of memory" in caplog.text


@fault(
    "Every model step fails",
    lost="that module's streams; nothing, with clients that know another worker",
    noticed="clients: 1011; `/live` and `/api/health` 503",
    within=5,
)
async def test_every_step_fails(outage: Outage) -> None:
    broken = FaultyRunner(4)

    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    broken.before_step = fail
    async with serve(broken) as one, serve() as two:
        for _ in range(3):  # three in a row: then it is given up
            with contextlib.suppress(EngineFailedError):
                async with asr_client(one.port) as client:
                    await client.transcribe(say(11))
        assert (await one.get("/live")).status_code == 503
        assert (await one.get("/api/health")).status_code == 503
        outage.begins()
        async with client_of(one.port, two.port) as lasting:
            transcript = await lasting.transcribe(say(11, 999, 3))
        outage.ends()
    assert transcript.text == "<11>"


@contextlib.asynccontextmanager
async def watched(runner: FaultyRunner, step_seconds: float) -> AsyncIterator[Server]:
    """A server whose steps are given so long."""
    metrics = Metrics()
    counted = metrics.module("BatchedAsr")
    engine = Engine("asr0", "BatchedAsr", runner, lambda: AsrStream(3, spell), hooks=hooks_for(counted))
    module = ServedModule("asr0", "BatchedAsr", PATH, engine, counted, step_seconds=step_seconds)
    async with running([module], metrics=metrics) as server:
        yield server


@fault(
    "A model step hangs",
    lost="that module's streams; nothing, with clients that know another worker",
    noticed="the worker, after `step_timeout_seconds`: 1011, `/live` 503",
    within=5,
)
async def test_a_step_that_hangs(outage: Outage) -> None:
    runner = FaultyRunner(4)
    async with watched(runner, 0.5) as one, serve(FaultyRunner(4, times=0)) as two:
        seen = await hear(outage, HANG, one.port, two.port)
        (lost,) = [event for event in seen if isinstance(event, ConnectionLost)]
        assert "has not come back" in str(lost.reason)
        assert (await one.get("/live")).status_code == 503
        runner.go_on.set()


WORKER = "tests.faults.worker"
CONFIG = """
static_dir = "static"
log_dir = "logs"
instance_name = "faulty"
authorized_ids = ["{key}"]
[modules.asr]
type = "BatchedAsr"
path = "{path}"
lm_model_file = "none"
text_tokenizer_file = "none"
audio_tokenizer_file = "none"
asr_delay_in_tokens = 3
batch_size = 4
"""


def started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A process of its own, which ends with status 70 once its model has failed for good."""
    (folder / "config.toml").write_text(CONFIG.format(key=KEY, path=PATH) + demo_model())
    command = [sys.executable, "-m", WORKER, "worker", "--config", str(folder / "config.toml"), "--cpu"]
    command += ["--addr", "127.0.0.1", "--port", str(port), "--exit-on-failure", "--log", "error"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})


def demo_model() -> str:
    text = (ROOT / "configs" / "demo.toml").read_text(encoding="utf-8")
    return text[text.index("[modules.asr.model]") :]


@pytest.mark.timeout(240)
@fault(
    "A model fails for good, and the worker is started again",
    lost="nothing, with clients that reconnect",
    noticed="whoever starts it (systemd, Kubernetes): status 70",
    within=90,
)
async def test_a_worker_whose_model_failed_ends_and_its_successor_goes_on(tmp_path: Path, outage: Outage) -> None:
    port = free_port()
    words, pcm = speech()
    first = started(tmp_path, port)
    second: subprocess.Popen[bytes] | None = None
    try:
        async with closing(await first_client(port)) as client:
            await client.send_audio(pcm[: len(pcm) // 2])
            got: list[object] = []
            while not any(isinstance(event, Word) for event in got):
                got += await client.receive()
            outage.begins()
            first.send_signal(signal.SIGUSR1)  # from now on each of its steps fails
            for _ in range(3):
                with contextlib.suppress(EngineFailedError, ServerUnreachableError):
                    async with asr_client(port) as other:
                        await other.transcribe(say(11))
            assert await asyncio.to_thread(first.wait, 60) == 70
            second = started(tmp_path, port)
            while not any(isinstance(event, ConnectionResumed) for event in got):
                got += await client.receive()
            outage.ends()
            transcript = await client.transcribe(pcm[len(pcm) // 2 :], on_event=got.append)
        assert transcript.words
        assert [event.text for event in got if isinstance(event, Word)] == words
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


@contextlib.asynccontextmanager
async def closing(client: ReconnectingAsrClient) -> AsyncIterator[ReconnectingAsrClient]:
    try:
        yield client
    finally:
        await client.close()


async def first_client(port: int) -> ReconnectingAsrClient:
    """A client of a worker that takes its time to start."""
    how = Reconnect(first_seconds=0.2, most_seconds=0.5, give_up_seconds=100)
    async with asyncio.timeout(100):
        while True:
            with contextlib.suppress(ServerUnreachableError):
                return await ReconnectingAsrClient.connect(f"ws://127.0.0.1:{port}", api_key=KEY, reconnect=how)
            await asyncio.sleep(0.2)
