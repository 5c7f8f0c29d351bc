"""How many times faster than real time the embedded model hears: one stream, and sixteen stepped together.

    taskset -c 0 python benchmarks/demo_speed.py

Everything from samples to events runs (engine, batching, words), without sockets. Printed is seconds of audio for each
second of the process's own CPU time and of the clock, the best and the median of several runs: on a shared machine the
clock measures the neighbours too.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import numpy as np

from moshi_server import hub
from moshi_server.audio import SAMPLE_RATE, read_audio
from moshi_server.cli.configs import locate
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.events import Audio, Flush, Word


async def hear(engine: Engine, pcm: np.ndarray) -> int:
    session = await engine.open()
    words = 0

    async def feed() -> None:
        for start in range(0, len(pcm), SAMPLE_RATE):
            await session.send(Audio(pcm[start : start + SAMPLE_RATE]))
        await session.send(Flush())

    task = asyncio.create_task(feed())
    done = False
    while not done:
        events = await session.receive()
        words += sum(isinstance(event, Word) for event in events)
        done = Flush() in events
    await task
    session.close()
    return words


async def measure(engine: Engine, pcm: np.ndarray, streams: int, runs: int) -> None:
    cpu, wall = [], []
    for _ in range(runs):
        start, start_cpu = time.perf_counter(), time.process_time()
        words = await asyncio.gather(*(hear(engine, pcm) for _ in range(streams)))
        cpu.append(streams * len(pcm) / SAMPLE_RATE / (time.process_time() - start_cpu))
        wall.append(streams * len(pcm) / SAMPLE_RATE / (time.perf_counter() - start))
    print(
        f"{streams} streams of {len(pcm) / SAMPLE_RATE:.0f} s, {words[0]} words each: "
        f"{np.median(cpu):.1f} (best {max(cpu):.1f}) s of audio a CPU second, "
        f"{np.median(wall):.1f} (best {max(wall):.1f}) a second of the clock"
    )


async def run(options: argparse.Namespace) -> None:
    built = build_engines(load_config(locate(Path("demo"))), device="cpu", hooks_for=lambda _, __: EngineHooks())
    engine = built[0].engine
    engine.start()
    await engine.wait_ready()
    samples = sorted(hub.resolve("demo://samples").glob("*.flac"))
    pcm = np.tile(np.concatenate([read_audio(sample) for sample in samples]), options.repeat)
    for streams in (1, 16):
        await measure(engine, pcm, streams, options.runs)
    await asyncio.to_thread(engine.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=4, help="how often the two recordings are repeated")
    parser.add_argument("--runs", type=int, default=5)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
