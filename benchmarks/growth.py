"""How a step of the embedded model grows with the streams that run, and with the slots that are configured.

    python benchmarks/growth.py

Measured is the runner's whole step, samples to tokens, on one thread, in short blocks that take turns. Printed are
medians, as ratios to one stream of one slot: what 8 streams cost together, and what slots cost that nobody uses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from moshi_server.cli.configs import locate
from moshi_server.config import load_config
from moshi_server.engine.build import build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.events import Audio

FRAME = 1920


def engine_of(slots: int) -> Engine:
    config = load_config(locate(Path("demo")))
    modules = {name: module.model_copy(update={"batch_size": slots}) for name, module in config.modules.items()}
    config = config.model_copy(update={"modules": modules})
    engine = build_engines(config, device="cpu", hooks_for=lambda _, __: EngineHooks())[0].engine
    engine._runner.warmup()
    return engine


class Case:
    """So many streams running, of so many slots."""

    def __init__(self, engine: Engine, streams: int) -> None:
        self.runner = engine._runner
        self.streams: list[Any] = [engine._make_stream() for _ in range(streams)]
        self.times: list[float] = []
        self.rng = np.random.default_rng(0)

    def block(self, steps: int) -> None:
        slots = list(range(len(self.streams)))
        self.runner.reset(slots)
        for _ in range(steps):
            inputs = []
            for stream in self.streams:
                stream.put(Audio(self.rng.normal(0, 0.1, FRAME).astype(np.float32)), 0.0)
                inputs.append(stream.take(0.0))
            start = time.perf_counter()
            self.runner.step(slots, inputs)
            self.times.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15, help="steps of a block")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    engines = {slots: engine_of(slots) for slots in options.slots}
    cases = {(n, slots): Case(engines[slots], n) for slots in engines for n in options.streams if n <= slots}
    for _ in range(options.rounds):
        for case in cases.values():
            case.block(options.steps)
    one = min(cases)
    base = cases[one].median
    print(f"one stream of {one[1]}: {base * 1000:.2f} ms a step")
    for (streams, slots), case in cases.items():
        ratio = case.median / base
        print(
            f"{streams:3} streams of {slots:3} slots: {case.median * 1000:7.2f} ms, {ratio:5.2f} times one of {one[1]}"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({f"{n} of {slots}": case.median for (n, slots), case in cases.items()}, file, indent=1)


if __name__ == "__main__":
    main()
