"""The worker as a process: it starts, is told to end, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets

from moshi_server.app.serve import EXIT_FAILED, banner
from moshi_server.app.worker import listen
from moshi_server.cli.configs import find
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.errors import ConfigError

from ..fakes import say
from .server import KEY, PATH, audio, close_of, events, free_port, message

ROOT = Path(__file__).parents[2]
MODULE = """
type = "{type}"
path = "{path}"
lm_model_file = "{folder}/lm.safetensors"
text_tokenizer_file = "{folder}/text.model"
audio_tokenizer_file = "{folder}/mimi.safetensors"
asr_delay_in_tokens = 6
batch_size = 2
[modules.{name}.model]
audio_vocab_size = 2049
text_in_vocab_size = 8001
text_out_vocab_size = 8000
audio_codebooks = 32
[modules.{name}.model.transformer]
d_model = 64
num_heads = 4
num_layers = 1
dim_feedforward = 256
causal = true
norm_first = true
bias_ff = false
bias_attn = false
context = 50
max_period = 100000
use_conv_block = false
use_conv_bias = true
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
conv_layout = false
conv_kernel_size = 3
kv_repeat = 1
max_seq_len = 4096
"""


def write_config(folder: Path, *, grace: float = 5, extra: str = "") -> Path:
    for name in ("lm.safetensors", "text.model", "mimi.safetensors"):
        (folder / name).touch()
    (folder / "static").mkdir()
    (folder / "static" / "index.html").write_text("<p>hello</p>")
    text = f'static_dir = "{folder}/static"\nlog_dir = "{folder}/logs"\ninstance_name = "test"\n'
    text += f'authorized_ids = ["{KEY}"]\nshutdown_grace_seconds = {grace}\n{extra}\n'
    for name, kind, path in (("asr", "BatchedAsr", PATH), ("solo", "Asr", "/api/solo")):
        text += f"[modules.{name}]" + MODULE.format(name=name, type=kind, path=path, folder=folder)
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


class Process:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    def connect(self, path: str = PATH, key: str = KEY) -> websockets.connect:
        return websockets.connect(f"ws://127.0.0.1:{self.port}{path}?auth_id={key}", compression=None)

    async def health(self) -> int:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{self.port}/api/health")).status_code

    async def text(self, path: str) -> str:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{self.port}{path}")).text

    async def ready(self) -> None:
        for _ in range(600):
            assert self.process.returncode is None, "the worker has ended"
            with contextlib.suppress(httpx.HTTPError):
                if await self.health() == 200:
                    return
            await asyncio.sleep(0.05)
        raise AssertionError("the worker never became ready")

    async def ended(self, seconds: float = 15) -> tuple[int, str]:
        _, error = await asyncio.wait_for(self.process.communicate(), seconds)
        assert self.process.returncode is not None
        return self.process.returncode, error.decode()


@contextlib.asynccontextmanager
async def worker(config: Path, **env: str) -> AsyncIterator[Process]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.app.fake_worker", str(config), str(port)),
        cwd=ROOT,
        env={**os.environ, **env},
        stderr=asyncio.subprocess.PIPE,
    )
    running = Process(process, port)
    try:
        await running.ready()
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_8_a_signal_lets_running_streams_finish(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(write_config(tmp_path)) as running:
        async with running.connect() as client:
            await client.send(audio(say(81)))
            await events(client, "Step")
            running.process.send_signal(number)
            while await running.health() == 200:
                await asyncio.sleep(0.02)
            async with running.connect() as late:
                got, code, _ = await close_of(late)
                assert code == 1001
                assert got[-1]["type"] == "Error"
            await client.send(audio(say(82)))
            await client.send(message("Flush"))
            words = [event["text"] for event in await events(client, "Flush") if event["type"] == "Word"]
            assert words == ["<81><82>"]
        code, log = await running.ended()
        assert code == 0, log
        assert "Traceback" not in log


async def test_8_streams_that_do_not_finish_are_closed_with_1001_after_the_grace_time(tmp_path: Path) -> None:
    async with worker(write_config(tmp_path, grace=0.5)) as running:
        async with running.connect() as one, running.connect("/api/solo") as two:
            await events(one, "Ready")
            await events(two, "Ready")
            running.process.terminate()
            for client in (one, two):
                got, code, reason = await close_of(client)
                assert (code, reason) == (1001, "the server is shutting down")
                assert got[-1] == {"type": "Error", "message": "the server is shutting down"}
        code, log = await running.ended()
        assert code == 0, log
        assert "Traceback" not in log


async def test_a_second_signal_ends_it_now(tmp_path: Path) -> None:
    async with worker(write_config(tmp_path, grace=60)) as running, running.connect() as client:
        await events(client, "Ready")
        running.process.terminate()
        while await running.health() == 200:
            await asyncio.sleep(0.02)
        running.process.terminate()
        assert (await close_of(client))[1] == 1001
        code, log = await running.ended()
        assert code == 0, log
        assert "Traceback" not in log


async def failed_stream(running: Process) -> int | None:
    """What a stream's close code is whose module fails."""
    async with running.connect() as client:
        for _ in range(5):
            with contextlib.suppress(websockets.ConnectionClosed):
                await client.send(audio(say(81)))
        await close_of(client, 15)
        return client.close_code


async def test_8_a_model_that_fails_for_good_ends_the_worker_with_a_status_of_its_own(tmp_path: Path) -> None:
    async with worker(write_config(tmp_path, extra="exit_on_failure = true"), FAKE_STEP="fails") as running:
        async with running.connect("/api/solo") as other:
            await other.send(audio(say(82)))
            await events(other, "Step")
            for _ in range(3):
                assert await failed_stream(running) == 1011
            # The other module's stream may end first; meanwhile the worker says that it has failed.
            while "failed" not in await running.text("/live"):
                await asyncio.sleep(0.02)
            assert await running.health() == 503
            await other.send(message("Flush"))
            await events(other, "Flush")
        code, log = await running.ended()
    assert code == EXIT_FAILED, log
    assert "ending, since a model has failed for good" in log


async def test_8_a_step_that_hangs_is_noticed_and_ends_the_worker(tmp_path: Path) -> None:
    config = write_config(tmp_path, extra="exit_on_failure = true")
    config.write_text(config.read_text().replace("[modules.asr]", "[modules.asr]\nstep_timeout_seconds = 1.0"))
    async with worker(config, FAKE_STEP="hangs") as running:
        async with running.connect() as client:
            await client.send(audio(say(81)))
            _, code, reason = await close_of(client, 15)
        assert code == 1011
        assert "a model step has not come back for 1 s" in reason
        code, log = await running.ended()
    assert code == EXIT_FAILED, log


async def test_8_without_being_asked_a_failed_worker_stays_and_says_so(tmp_path: Path) -> None:
    async with worker(write_config(tmp_path), FAKE_STEP="fails") as running:
        for _ in range(3):
            await failed_stream(running)
        while "failed" not in await running.text("/live"):
            await asyncio.sleep(0.02)
        assert await running.health() == 503
        async with running.connect("/api/solo") as other:
            await events(other, "Ready")
        running.process.terminate()
        assert (await running.ended())[0] == 0


async def test_3_keys_come_from_the_file_and_the_environment_and_no_log_has_them(tmp_path: Path) -> None:
    env = {"MOSHI_API_KEY": "from_the_environment_1, from_the_environment_2", "BETTER_AUTH_SECRET": "x" * 40}
    async with worker(write_config(tmp_path), **env) as running:
        for key in (KEY, "from_the_environment_1", "from_the_environment_2"):
            async with running.connect(key=key) as client:
                await events(client, "Ready")
        with pytest.raises(websockets.InvalidStatus):
            await running.connect(key="from_the_environment")
        assert '"better_auth":true' in await running.text("/api/status")
        running.process.terminate()
        _, log = await running.ended()
    assert "from_the_environment_1" not in log
    assert KEY not in log
    assert "from_t...nt_1" in log
    assert "INFO moshi_server.app.serve 3 API key(s)" in log
    assert "WARNING moshi_server.app.serve" not in log


async def test_4_with_no_key_and_no_secret_a_warning_says_how_to_set_one(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace(f'["{KEY}"]', "[]"))
    async with worker(config, MOSHI_API_KEY="", BETTER_AUTH_SECRET="") as running:
        with pytest.raises(websockets.InvalidStatus, match="401"):
            await running.connect()
        running.process.terminate()
        _, log = await running.ended()
    (line,) = (line for line in log.splitlines() if "no API key and no secret are configured" in line)
    assert line.startswith("WARNING moshi_server.app.serve ")
    assert "MOSHI_API_KEY" in line
    assert "BETTER_AUTH_SECRET" in line


async def test_everything_is_served_together(tmp_path: Path) -> None:
    async with worker(write_config(tmp_path, extra="[warmup]\nenabled = false")) as running:
        assert await running.text("/") == "<p>hello</p>"
        info = await running.text("/api/modules_info")
        assert '"type":"batched_asr","path":"/api/asr-streaming","lm":' in info
        assert '"type":"asr","path":"/api/solo"' in info
        metrics = await running.text("/metrics")
        assert "\nwarmup_skipped_total 2.0\n" in metrics
        assert "\nwarmup_success_total 0.0\n" in metrics


async def test_a_taken_port_is_one_line_and_status_1(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.app.fake_worker", str(config), str(port)),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert error.decode().splitlines()[-1].startswith(f"error: port {port} is already in use")
    assert "Traceback" not in error.decode()


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 0)


def test_ipv6_is_listened_on() -> None:
    try:
        listener = listen("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 here")
    with listener:
        assert listener.family == socket.AF_INET6


def test_the_banner_says_what_is_served_where() -> None:
    config = load_config(find("demo"), {})
    built = build_engines(config, device="cpu", hooks_for=lambda *_: EngineHooks())
    lines = banner("http://127.0.0.1:8080", built).splitlines()
    assert lines[0] == "moshi-server is ready. The page: http://127.0.0.1:8080/"
    assert lines[1].split()[:5] == ["asr", "BatchedAsr", "/api/asr-streaming", "16", "at"]
    assert "on cpu" in lines[1]
    assert "f32, weights" in lines[1]
    assert "16 x " in lines[1]
