"""What the server itself costs, without a model: CPU time for each message, how long one waits, how many fit a second.

    python benchmarks/overhead.py --clients 64 256

The server is the real one, from the socket to the batcher and back, on a runner that answers at once. The peer is a
bare uvicorn with the same WebSocket library, which answers every message with a constant and does nothing else. Both
run in processes of their own and are measured in turn; printed are medians of the rounds, and ratios.

Each client sends a message of 1920 float32 samples every 80 ms, as the published clients do. Last, the clients send as
fast as they are answered, with two messages under way each: messages a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from moshi_server.app.worker import listen
from moshi_server.bench.crowd import Plan
from moshi_server.bench.run import SttBench
from moshi_server.bench.socket import Socket, connect
from moshi_server.bench.stt import frames_of
from moshi_server.errors import MoshiServerError
from moshi_server.events import Ready, Step
from moshi_server.protocol import asr

if TYPE_CHECKING:
    from fastapi import FastAPI

    from moshi_server.app.routes import ServerState

STEP = asr.encode(Step(1000, (0.1, 0.2, 0.3, 0.4), 0))
UNDER_WAY = 2
BAR_CPU, BAR_WAIT = 1.5, 20.0


@dataclass
class Round:
    """CPU seconds for 10 000 messages, percentiles of their wait in ms, our own lateness, messages a second at most."""

    cpu: float
    p50: float
    p99: float
    lateness: float
    at_most: float


class Flood(Socket):
    """Sends the next message as soon as one is answered."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.answers = 0
        self.open = True

    def on_message(self, message: bytes) -> None:
        if message.startswith(b"\x84\xa4type\xa4Step"):
            self.answers += 1
            if self.open:
                self.send(self.frame)

    def on_end(self, error: MoshiServerError) -> None:
        if self.open:
            raise SystemExit(f"the server has ended a stream: {error}")


async def flood(url: str, clients: int, frame: bytes, seconds: float) -> float:
    sockets = [Flood(frame) for _ in range(clients)]
    for each in sockets:
        await connect(url, None, each)
    for each in sockets * UNDER_WAY:
        each.send(frame)
    await asyncio.sleep(0.5)
    before, start = sum(each.answers for each in sockets), time.monotonic()
    await asyncio.sleep(seconds)
    answers, took = sum(each.answers for each in sockets) - before, time.monotonic() - start
    for each in sockets:
        each.open = False
        each.leave()
    await asyncio.sleep(0.5)
    return answers / took


async def measure(port: int, process: subprocess.Popen[bytes], clients: int, seconds: float, flooded: bool) -> Round:
    url = f"ws://127.0.0.1:{port}/api/asr-streaming"
    rng = np.random.default_rng(0)
    frames = frames_of(rng.normal(0, 0.1, 1920 * 25).astype(np.float32))
    trial = await SttBench(url, None, frames, pid=process.pid).attempt(Plan(clients, seconds, join_seconds=2.0))
    if trial.errors or trial.delays is None or trial.server is None or trial.generator.lateness is None:
        raise SystemExit(f"the run failed: {trial.why}")
    cpu = trial.server.cpu_seconds / trial.counts["frames"] * 10_000
    at_most = await flood(url, clients, frames[0], min(3.0, seconds)) if flooded else 0.0
    return Round(cpu, trial.delays.p50, trial.delays.p99, trial.generator.lateness.p99, at_most)


def start(kind: str, clients: int) -> tuple[subprocess.Popen[bytes], int]:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    process = subprocess.Popen([sys.executable, __file__, "--serve", kind, str(port), str(clients)])
    for _ in range(300):
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in psutil.net_connections("tcp")):
            time.sleep(0.5)
            return process, port
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server {kind!r} has not started")


# The two servers, each in a process of its own.


def serve_bare(port: int) -> None:
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": asr.encode(Ready())})
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("bytes") is not None:
                await send({"type": "websocket.send", "bytes": STEP})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        log_level="warning",
    )


class NullRunner:
    """Answers at once, and the same."""

    def __init__(self, slots: int) -> None:
        from moshi_server.engine.asr import AsrOutput

        self.slots = slots
        self._output = AsrOutput(3, (0.1, 0.2, 0.3, 0.4))

    def reset(self, slots: Sequence[int]) -> None:
        pass

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        return [self._output] * len(slots)

    def warmup(self) -> None:
        pass


def null_server(clients: int) -> tuple[ServerState, FastAPI]:
    """The real application before a runner without a model."""
    from moshi_server.app.factory import create_app, hooks_for
    from moshi_server.app.module import ServedModule
    from moshi_server.app.routes import ServerState
    from moshi_server.auth import Authenticator
    from moshi_server.engine.asr import AsrStream
    from moshi_server.engine.worker import Engine
    from moshi_server.metrics import Metrics

    metrics = Metrics()
    counted = metrics.module("BatchedAsr")
    engine = Engine("asr", "BatchedAsr", NullRunner(clients), lambda: AsrStream(6, str), hooks=hooks_for(counted))
    module = ServedModule("asr", "BatchedAsr", "/api/asr-streaming", engine, counted, files={}, auth=False)
    state = ServerState([module], Authenticator([]), metrics, instance="overhead")
    return state, create_app(state)


def serve_ours(port: int, clients: int) -> None:
    import uvloop

    from moshi_server.app.worker import Worker

    state, app = null_server(clients)
    uvloop.run(Worker(app, state, listen("127.0.0.1", port)).run())


def median(rounds: list[Round]) -> Round:
    return Round(*(statistics.median(values) for values in zip(*(asdict(one).values() for one in rounds), strict=True)))


def compare(clients: int, rounds: int, seconds: float, flooded: bool) -> dict[str, Any]:
    servers = {kind: start(kind, clients + 8) for kind in ("ours", "bare")}
    got: dict[str, list[Round]] = {kind: [] for kind in servers}
    try:
        for _ in range(rounds):
            for kind, (process, port) in servers.items():
                got[kind].append(asyncio.run(measure(port, process, clients, seconds, flooded)))
    finally:
        for process, _ in servers.values():
            process.terminate()
        for process, _ in servers.values():
            process.wait(20)
    ours, bare = median(got["ours"]), median(got["bare"])
    print(f"{clients} clients, {clients * 12.5:.0f} messages/s, medians of {rounds} rounds of {seconds:g} s")
    for name, row in (("ours", ours), ("bare", bare)):
        most = f"; at most {row.at_most:.0f} messages/s" if flooded else ""
        print(
            f"  {name}: {row.cpu:.2f} CPU s for 10 000 messages, wait p50 {row.p50:.2f} ms, p99 {row.p99:.2f} ms{most}"
            f" (our own lateness p99 {row.lateness:.1f} ms)"
        )
    ratios = f"  ratio: CPU {ours.cpu / bare.cpu:.2f}, p99 {ours.p99 / bare.p99:.2f}"
    print(ratios + (f", messages/s {ours.at_most / bare.at_most:.2f}" if flooded else ""))
    for name, value, bar in (("CPU", ours.cpu, BAR_CPU), ("wait p99", ours.p99, BAR_WAIT)):
        print(f"  bar {name} <= {bar:g}: {'holds' if value <= bar else 'DOES NOT HOLD'}")
    return {"ours": asdict(ours), "bare": asdict(bare)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--no-flood", action="store_true", help="leave the last measurement out")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "PORT", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, port, clients = options.serve
        return serve_bare(int(port)) if kind == "bare" else serve_ours(int(port), int(clients))
    figures = {n: compare(n, options.rounds, options.seconds, not options.no_flood) for n in options.clients}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
