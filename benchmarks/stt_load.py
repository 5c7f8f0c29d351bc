"""Holds N real-time streams against a running worker and reports how late each frame's answer came.

    python benchmarks/stt_load.py --url ws://127.0.0.1:8080/api/asr-streaming --streams 16 --seconds 30

Each virtual client sends one 80 ms frame every 80 ms over a WebSocket of its own, in float32 MessagePack as the
published clients do, starting at a random moment. The answer to frame i is its `Step` message; the delay runs from the
moment frame i was due to be sent. A stream is late when an answer comes more than one frame (80 ms) after that.

With no --url it starts a worker of its own on the embedded model. --peer names a second URL (any server that speaks
the protocol, upstream's too): both are measured in turn, and the ratio of their delays is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field

import numpy as np
import ormsgpack
import websockets

from moshi_server.audio import FRAME_SIZE, SAMPLE_RATE, read_audio

FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE


@dataclass
class Stream:
    delays: list[float] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    error: str = ""


async def hold(url: str, key: str, frames: list[bytes], start: float) -> Stream:
    stream = Stream()
    try:
        async with websockets.connect(
            url, additional_headers={"kyutai-api-key": key}, compression=None, open_timeout=30
        ) as socket_:
            await socket_.recv()
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            begun = time.monotonic()
            due = [begun + index * FRAME_SECONDS for index in range(len(frames))]

            async def send() -> None:
                for moment, frame in zip(due, frames, strict=True):
                    await asyncio.sleep(max(0.0, moment - time.monotonic()))
                    await socket_.send(frame)

            async def receive() -> None:
                while len(stream.delays) < len(frames):
                    message = ormsgpack.unpackb(await asyncio.wait_for(socket_.recv(), 30))
                    if message["type"] == "Step":
                        stream.delays.append(time.monotonic() - due[len(stream.delays)])
                    elif message["type"] == "Word":
                        stream.words.append(message["text"])
                    elif message["type"] == "Error":
                        raise RuntimeError(message["message"])

            await asyncio.gather(send(), receive())
    except Exception as error:
        stream.error = f"{type(error).__name__}: {error}"
    return stream


def pack(pcm: np.ndarray) -> list[bytes]:
    usable = len(pcm) // FRAME_SIZE * FRAME_SIZE
    return [
        ormsgpack.packb({"type": "Audio", "pcm": frame}, option=ormsgpack.OPT_SERIALIZE_NUMPY)
        for frame in pcm[:usable].reshape(-1, FRAME_SIZE)
    ]


async def load(url: str, key: str, pcm: np.ndarray, streams: int) -> list[Stream]:
    start = time.monotonic() + 1.0
    frames = pack(pcm)
    rng = random.Random(0)
    return await asyncio.gather(*(hold(url, key, frames, start + rng.random()) for _ in range(streams)))


def report(name: str, streams: list[Stream]) -> dict[str, float]:
    failed = [stream.error for stream in streams if stream.error]
    delays = np.array([delay for stream in streams for delay in stream.delays]) * 1000
    if not len(delays):
        raise SystemExit(f"{name}: no stream was served: {failed[:3]}")
    p50, p90, p99 = np.percentile(delays, (50, 90, 99))
    late = sum(any(delay > FRAME_SECONDS for delay in stream.delays) for stream in streams)
    print(
        f"{name}: {len(streams)} streams, {len(delays)} frames; answer delay p50 {p50:.1f} ms, p90 {p90:.1f} ms, "
        f"p99 {p99:.1f} ms, max {delays.max():.1f} ms; late frames {np.mean(delays > FRAME_SECONDS * 1000):.4%} "
        f"in {late} streams; failed {len(failed)} {failed[:3] or ''}"
    )
    return {"p50": p50, "p90": p90, "p99": p99, "max": float(delays.max()), "late": late, "failed": len(failed)}


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
        figures = {"ours": report("ours", asyncio.run(load(url, options.api_key, pcm, options.streams)))}
        if options.peer:
            figures["peer"] = report("peer", asyncio.run(load(options.peer, options.api_key, pcm, options.streams)))
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
