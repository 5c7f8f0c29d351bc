"""Holds N real-time streams against a running worker, and against a second server in turn, and compares their delays.

    python benchmarks/stt_load.py --url ws://127.0.0.1:8080/api/asr-streaming --streams 16 --seconds 30

The virtual users are those of `moshi-server bench`, whose page says what an answer's delay is. A frame is late when its
answer comes more than one frame (80 ms) after it was sent.

With no --url it starts a worker of its own on the embedded model. --peer names a second URL (any server that speaks
the protocol, upstream's too): both are measured in turn, and the ratio of their delays is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np

from moshi_server.audio import SAMPLE_RATE, read_audio
from moshi_server.bench.crowd import Plan
from moshi_server.bench.report import Trial
from moshi_server.bench.run import SttBench
from moshi_server.bench.stt import FRAME_SECONDS, frames_of


def load(url: str, key: str, pcm: np.ndarray, streams: int, seconds: float) -> Trial:
    bench = SttBench(url, key, frames_of(pcm), limit=FRAME_SECONDS)
    return asyncio.run(bench.attempt(Plan(streams, seconds)))


def report(name: str, trial: Trial) -> dict[str, float]:
    delays = trial.delays
    if delays is None:
        raise SystemExit(f"{name}: no stream was served: {trial.why}")
    failed = sum(trial.errors.values())
    print(
        f"{name}: {trial.streams} streams, {delays.count} frames; answer delay p50 {delays.p50:.1f} ms, "
        f"p90 {delays.p90:.1f} ms, p99 {delays.p99:.1f} ms, max {delays.max:.1f} ms; "
        f"late frames {trial.over_limit:.4%}; failed {failed} {list(trial.errors)[:3] or ''}"
    )
    if trial.generator.complaint:
        print(f"note: {trial.generator.complaint}")
    return {
        "p50": delays.p50,
        "p90": delays.p90,
        "p99": delays.p99,
        "max": delays.max,
        "late": trial.over_limit,
        "failed": failed,
    }


def own_worker(streams: int) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f"-m moshi_server worker --config demo --addr 127.0.0.1 --port {port} --silent"
    process = subprocess.Popen([sys.executable, *command.split()])
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=1):
                return process, f"ws://127.0.0.1:{port}/api/asr-streaming"
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the worker for {streams} streams did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the module's WebSocket; the default starts a worker on the embedded model")
    parser.add_argument("--peer", help="a second server to compare with")
    parser.add_argument("--api-key", default="public_token")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--audio", help="a recording to repeat; the default is noise with pauses")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    samples = int(options.seconds * SAMPLE_RATE)
    if options.audio:
        pcm = np.resize(read_audio(options.audio), samples).astype(np.float32)
    else:
        rng = np.random.default_rng(0)
        pcm = rng.normal(0, 0.05, samples).astype(np.float32) * (np.arange(samples) // SAMPLE_RATE % 2)
        pcm = pcm.astype(np.float32)
    process = None
    url = options.url
    if url is None:
        process, url = own_worker(options.streams)
    try:
        figures = {"ours": report("ours", load(url, options.api_key, pcm, options.streams, options.seconds))}
        if options.peer:
            figures["peer"] = report("peer", load(options.peer, options.api_key, pcm, options.streams, options.seconds))
            print(
                f"ratio ours / peer: p50 {figures['ours']['p50'] / figures['peer']['p50']:.2f}, "
                f"p99 {figures['ours']['p99'] / figures['peer']['p99']:.2f}"
            )
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
