"""What Ray Serve between the clients and the workers costs: CPU time a message, beside a bare worker in the same run.

    python benchmarks/ray_overhead.py --clients 64 --replicas 2

Both are the real application on a runner without a model (`overhead.py`), loaded in turn by the same clients, which
send a frame every 80 ms. Of Ray the proxy's and the replicas' time is counted; what its other processes take is printed
beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import overhead
import psutil
import ray
from fastapi import FastAPI
from ray import serve

from moshi_server.app.foreign import Foreign
from moshi_server.bench.crowd import Plan
from moshi_server.bench.run import SttBench
from moshi_server.bench.stt import frames_of

PORT = 18_650


class NullReplica:
    """The application without a model, for Ray."""

    def __init__(self, clients: int) -> None:
        self._state, self._app = overhead.null_server(clients)

    def __serve_build_asgi_app__(self) -> Foreign:
        self._app.router.lifespan_context = self._life
        return Foreign(self._app)

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        engine = self._state.modules[0].engine
        engine.start()
        await engine.wait_ready()
        yield
        engine.stop()


def cpu_of(kind: Callable[[str], bool]) -> float:
    """CPU seconds that these processes have taken, by the first word of their command line."""
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if kind((process.cmdline() or [""])[0]):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def serving(name: str) -> bool:
    return name.startswith(("ray::ProxyActor", "ray::ServeReplica"))


def keeping(name: str) -> bool:
    return name.startswith("ray::ServeController") or name.endswith(("raylet", "gcs_server"))


def measure(url: str, clients: int, seconds: float, counted: Callable[[], float]) -> tuple[float, float, float]:
    """CPU seconds for 10 000 messages by ``counted``, and how long one waits in ms, p50 and p99."""
    frames = frames_of(np.random.default_rng(0).normal(0, 0.1, 1920 * 25).astype(np.float32))
    before = counted()
    trial = asyncio.run(SttBench(url, None, frames, pid=os.getpid()).attempt(Plan(clients, seconds, join_seconds=2.0)))
    took = counted() - before
    if trial.errors or trial.delays is None:
        raise SystemExit(f"the run failed: {trial.why}")
    return took / trial.counts["frames"] * 10_000, trial.delays.p50, trial.delays.p99


def say(name: str, row: tuple[float, float, float]) -> None:
    print(f"{name}: {row[0]:.2f} CPU s for 10 000 messages, wait p50 {row[1]:.1f} ms, p99 {row[2]:.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    clients = options.clients
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings: dict[str, Any] = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(num_cpus=options.replicas + 2, include_dashboard=False, runtime_env=settings, log_to_driver=False)
    process, port = overhead.start("ours", clients + 8)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        replica = serve.deployment(
            num_replicas=options.replicas, max_ongoing_requests=clients, max_queued_requests=clients
        )(serve.ingress()(NullReplica))
        serve.run(replica.bind(clients), name="null")
        one = psutil.Process(process.pid)
        path = "/api/asr-streaming"
        say("a bare worker", measure(f"ws://127.0.0.1:{port}{path}", clients, options.seconds,
                                     lambda: one.cpu_times().user + one.cpu_times().system))  # fmt: skip
        kept = cpu_of(keeping)
        say(
            f"{options.replicas} replicas",
            measure(f"ws://127.0.0.1:{PORT}{path}", clients, options.seconds, lambda: cpu_of(serving)),
        )
        print(f"  Ray's other processes meanwhile: {cpu_of(keeping) - kept:.1f} CPU s")
    finally:
        process.terminate()
        serve.shutdown()
        ray.shutdown()
        process.wait(20)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
