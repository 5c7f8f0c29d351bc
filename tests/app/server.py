"""A real server for tests: uvicorn, our connection class and pump, the real engine, and a runner without a model."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import websockets

from moshi_server.app.factory import create_app, hooks_for
from moshi_server.app.module import ClientLimits, ServedModule
from moshi_server.app.routes import ServerState
from moshi_server.app.worker import Worker, listen
from moshi_server.auth import Authenticator
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.runner import Runner
from moshi_server.engine.worker import Engine, EngineLimits
from moshi_server.metrics import Metrics

from ..fakes import FakeRunner, spell

KEY = "public_token_for_tests"
PATH = "/api/asr-streaming"


@dataclass
class Server:
    """A running server."""

    port: int
    state: ServerState
    worker: Worker
    task: asyncio.Task[None]
    engines: list[Engine] = field(default_factory=list)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ws(self, path: str = PATH, query: str = f"?auth_id={KEY}") -> str:
        return f"ws://127.0.0.1:{self.port}{path}{query}"

    def connect(self, path: str = PATH, query: str = f"?auth_id={KEY}", **options: Any) -> websockets.connect:
        return websockets.connect(self.ws(path, query), compression=None, max_size=None, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.http) as client:
            return await client.get(path, **options)

    async def post(self, body: Any, path: str = PATH, **options: Any) -> httpx.Response:
        options.setdefault("headers", {"kyutai-api-key": KEY})
        async with httpx.AsyncClient(base_url=self.http, timeout=30) as client:
            return await client.post(path, content=body, **options)

    async def metric(self, line: str) -> float:
        """The value of the metric whose exposition line begins so."""
        text = (await self.get("/metrics")).text
        values = [float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.rsplit(" ", 1)[0] == line]
        return values[0] if values else 0.0


@contextlib.asynccontextmanager
async def serve(
    runners: Sequence[Runner] | Runner | None = None,
    *,
    limits: ClientLimits | None = None,
    engine_limits: EngineLimits | None = None,
    auth: Authenticator | None = None,
    require_auth: bool = True,
    paths: Sequence[str] = (PATH,),
    static_dir: Path | None = None,
    grace_seconds: float = 5.0,
    ping_seconds: float = 10.0,
    delay: int = 3,
    send_buffer: int = 0,
    make_stream: Callable[[], Any] | None = None,
    metrics: Metrics | None = None,
    kind: str = "BatchedAsr",
    head_seconds: float = 20.0,
    wait: bool = True,
) -> AsyncIterator[Server]:
    """Start modules at these paths, one runner each, and end them after the block."""
    if runners is None:
        runners = FakeRunner(4, delay)
    runners = list(runners) if isinstance(runners, Sequence) else [runners]
    metrics = metrics or Metrics()
    modules = []
    for index, (runner, path) in enumerate(zip(runners, paths, strict=True)):
        counted = metrics.module(kind)
        engine = Engine(
            f"asr{index}",
            kind,
            runner,
            make_stream or (lambda: AsrStream(delay, spell)),
            limits=engine_limits,
            hooks=hooks_for(counted),
        )
        modules.append(
            ServedModule(
                engine.name,
                engine.kind,
                path,
                engine,
                counted,
                files={"lm": "lm.safetensors", "audio_tokenizer": "mimi.safetensors"},
                auth=require_auth,
                limits=limits or ClientLimits(),
            )
        )
    options = {"auth": auth, "metrics": metrics, "static_dir": static_dir, "grace_seconds": grace_seconds}
    options |= {"ping_seconds": ping_seconds, "send_buffer": send_buffer, "wait": wait}
    options |= {"head_seconds": head_seconds}
    async with running(modules, **options) as server:
        yield server


@contextlib.asynccontextmanager
async def running(
    modules: Sequence[ServedModule],
    *,
    metrics: Metrics,
    auth: Authenticator | None = None,
    static_dir: Path | None = None,
    grace_seconds: float = 5.0,
    ping_seconds: float = 10.0,
    send_buffer: int = 0,
    head_seconds: float = 20.0,
    wait: bool = True,
) -> AsyncIterator[Server]:
    """Start these modules, and end them after the block."""
    state = ServerState(modules, auth or Authenticator([KEY]), metrics, instance="test")
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    app = create_app(state, static_dir=static_dir)
    worker = Worker(
        app, state, listener, grace_seconds=grace_seconds, ping_seconds=ping_seconds, head_seconds=head_seconds
    )
    task = asyncio.create_task(worker.run())
    server = Server(listener.getsockname()[1], state, worker, task, [module.engine for module in modules])
    try:
        for engine in server.engines if wait else []:
            with contextlib.suppress(Exception):
                await engine.wait_ready()
        await answering(server)
        yield server
    finally:
        worker.grace_seconds = 0.0
        worker.end()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)
        listener.close()


async def answering(server: Server) -> None:
    """Wait until the server answers requests."""
    for _ in range(200):
        with contextlib.suppress(httpx.HTTPError):
            await server.get("/api/health")
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the server does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def audio(pcm: np.ndarray) -> bytes:
    return msgpack.packb({"type": "Audio", "pcm": pcm.tolist()}, use_single_float=True)


def message(kind: str, **fields: Any) -> bytes:
    return msgpack.packb({"type": kind, **fields}, use_single_float=True)


async def events(socket: websockets.ClientConnection, until: str, seconds: float = 10) -> list[dict[str, Any]]:
    """Messages up to and including the first of this type."""
    got: list[dict[str, Any]] = []
    async with asyncio.timeout(seconds):
        while not got or got[-1]["type"] != until:
            got.append(msgpack.unpackb(await socket.recv()))
    return got


async def close_of(socket: websockets.ClientConnection, seconds: float = 10) -> tuple[list[dict[str, Any]], int, str]:
    """Every message until the server closes, then the close code and reason."""
    got: list[dict[str, Any]] = []
    async with asyncio.timeout(seconds):
        try:
            while True:
                got.append(msgpack.unpackb(await socket.recv()))
        except websockets.ConnectionClosed:
            pass
    assert socket.close_code is not None
    return got, socket.close_code, socket.close_reason or ""


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
