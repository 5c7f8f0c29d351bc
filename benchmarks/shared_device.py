"""Two modules on one device: how late a live one answers beside one that is always busy, with turns and without.

    python benchmarks/shared_device.py                    # on the CPU, about a minute
    python benchmarks/shared_device.py --device cuda:0

The live module hears a few streams in real time; its answer to a frame is late by the time since the frame was due. The
busy one always has more to do, as text to speech has that runs ahead of what is heard. Three settings are measured in
turn, several times over: the live module alone, both with each stepping when it likes, and both taking turns
(`engine/schedule.py`).

Three pairs: `work`, whose steps are matrix products of a given length; `models`, the embedded speech to text beside
Mimi's decoder (the v0.1 shape, seeded random weights), which is what speech costs at the least; `large`, for a GPU, the
1B speech to text, uncaptured, beside the same decoder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src")]

from moshi_server.engine.asr import AsrOutput, AsrStream, SttRunner  # noqa: E402
from moshi_server.engine.frames import SILENCE  # noqa: E402
from moshi_server.engine.hooks import EngineHooks  # noqa: E402
from moshi_server.engine.rooms import DecodeRunner  # noqa: E402
from moshi_server.engine.runner import Runner  # noqa: E402
from moshi_server.engine.schedule import Schedule  # noqa: E402
from moshi_server.engine.worker import Engine  # noqa: E402
from moshi_server.events import Audio, Codes, Step  # noqa: E402
from moshi_server.model.lm import LmModel  # noqa: E402
from moshi_server.model.mimi import Mimi  # noqa: E402
from moshi_server.model.stt import SttModel  # noqa: E402
from moshi_server.model.synthetic import SHAPES  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402
from moshi_server.model.weights_mimi import load_mimi  # noqa: E402

FRAME_SECONDS = 0.08
SETTINGS = ("alone", "free", "turns")


class WorkRunner:
    """Speech to text without a model: a step is as many matrix products as take so many milliseconds alone."""

    def __init__(self, slots: int, milliseconds: float, device: torch.device) -> None:
        self.slots = slots
        size = 4096 if device.type == "cuda" else 384
        self._matrix = torch.randn(size, size, device=device)
        self._products = 1
        self._step(20)
        times = []
        for _ in range(7):  # the least of several: others use this machine, too
            start = time.perf_counter()
            self._step(50)
            times.append(time.perf_counter() - start)
        self._products = max(1, round(50 * milliseconds / 1000 / min(times)))

    def _step(self, products: int) -> None:
        for _ in range(products):
            result = self._matrix @ self._matrix
        float(result[0, 0])  # waits for the device

    def reset(self, slots: Sequence[int]) -> None:
        return None

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> list[AsrOutput]:
        self._step(self._products)
        return [AsrOutput(3, (0.0,))] * len(slots)

    def warmup(self) -> None:
        return None


@dataclass
class Run:
    """One setting, once: delays of the live module (s), and steps a second of the busy one."""

    delays: list[float] = field(default_factory=list)
    busy: float = 0.0


async def live(engine: Engine, seconds: float, offset: float, run: Run) -> None:
    session = await engine.open()
    frames = round(seconds / FRAME_SECONDS)
    begun = time.monotonic() + offset

    async def send() -> None:
        for index in range(frames):
            await asyncio.sleep(max(0.0, begun + index * FRAME_SECONDS - time.monotonic()))
            await session.send(Audio(SILENCE))

    sending = asyncio.create_task(send())
    heard = 0
    while heard < frames:
        for event in await session.receive():
            if isinstance(event, Step):
                run.delays.append(time.monotonic() - begun - heard * FRAME_SECONDS)
                heard += 1
    await sending
    session.close()


async def keep_busy(engine: Engine, event: Any) -> None:
    session = await engine.open()

    async def read() -> None:
        while await session.receive():
            pass

    reading = asyncio.create_task(read())
    try:
        while True:
            await session.send(event)
    finally:
        reading.cancel()
        session.close()


async def measure(make: Callable[[], list[tuple[Engine, Any]]], setting: str, streams: int, seconds: float) -> Run:
    """The first of the engines is live; the others are busy, each with the event that it is sent."""
    engines = make()
    if setting == "alone":
        engines = engines[:1]
    if setting == "turns":
        schedule = Schedule("the device")
        for engine, _ in engines:
            engine.take_turns(schedule.seat(engine.name))
    for engine, _ in engines:
        engine.start()
    run = Run()
    try:
        for engine, _ in engines:
            await engine.wait_ready()
        busy = [asyncio.create_task(keep_busy(engine, event)) for engine, event in engines[1:] for _ in range(2)]
        await asyncio.sleep(0.3)
        steps, start = BUSY_STEPS[0], time.monotonic()
        offsets = np.linspace(0, FRAME_SECONDS, streams, endpoint=False)
        await asyncio.gather(*(live(engines[0][0], seconds, float(offset), run) for offset in offsets))
        run.busy = (BUSY_STEPS[0] - steps) / (time.monotonic() - start)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    finally:
        for engine, _ in engines:
            await asyncio.to_thread(engine.stop)
    return run


BUSY_STEPS = [0]


def counted() -> EngineHooks:
    def step(seconds: float, active: int) -> None:
        BUSY_STEPS[0] += 1

    return EngineHooks(on_step=step)


def engine_of(name: str, runner: Runner, make_stream: Callable[[], Any], busy: bool) -> Engine:
    return Engine(name, "", runner, make_stream, hooks=counted() if busy else EngineHooks(), warmup=False)


def pair_of_work(device: torch.device, live_ms: float, busy_ms: float) -> Callable[[], list[tuple[Engine, Any]]]:
    runners = [WorkRunner(8, live_ms, device), WorkRunner(8, busy_ms, device)]

    def make() -> list[tuple[Engine, Any]]:
        def stream() -> AsrStream:
            return AsrStream(3, lambda tokens: "")

        second = Audio(np.zeros(24_000, np.float32))
        return [
            (engine_of("live", runners[0], stream, busy=False), None),
            (engine_of("busy", runners[1], stream, busy=True), second),
        ]

    return make


def pair_of_models(device: torch.device, folder: Path) -> Callable[[], list[tuple[Engine, Any]]]:
    from moshi_server.config import load_config
    from moshi_server.engine.build import build_engines

    write_mimi(folder / "mimi.safetensors", seed=1)
    decoder = DecodeRunner(load_mimi(folder / "mimi.safetensors", device=device), 2, device)
    decoder.warmup()
    config = load_config(ROOT / "configs" / "demo.toml")
    (built,) = build_engines(config, device=str(device), hooks_for=lambda *_: EngineHooks())
    stt = built.engine

    def make() -> list[tuple[Engine, Any]]:
        # The model is loaded once; an engine's thread is new each time.
        live_engine = engine_of("stt", stt._runner, stt._make_stream, busy=False)
        codes = Codes(np.arange(32))
        return [(live_engine, None), (engine_of("codec", decoder, decoder.make_stream, busy=True), codes)]

    return make


def pair_of_large(device: torch.device) -> Callable[[], list[tuple[Engine, Any]]]:
    with torch.device(device):
        mimi = Mimi().eval().requires_grad_(False)
        lm = LmModel(SHAPES["stt-1b-en_fr"]).to(torch.bfloat16).eval().requires_grad_(False)
    mimi.quantizer.refresh()
    runner = SttRunner(SttModel(mimi, lm), 8, device)
    decoder = DecodeRunner(mimi, 2, device)
    for each in (runner, decoder):
        each.warmup()

    def make() -> list[tuple[Engine, Any]]:
        def stream() -> AsrStream:
            return AsrStream(3, lambda tokens: "")

        live_engine = engine_of("stt", runner, stream, busy=False)
        return [
            (live_engine, None),
            (engine_of("codec", decoder, decoder.make_stream, busy=True), Codes(np.arange(32))),
        ]

    return make


def percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(np.array(values) * 1000, percent))


def report(name: str, runs: dict[str, list[Run]]) -> None:
    print(f"\n{name}: answer delay in ms of the live module, steps a second of the busy one, medians of the rounds")
    print(f"{'':8}{'p50':>9}{'p99':>9}{'max':>9}{'busy/s':>9}")
    for setting in SETTINGS:
        rounds = runs[setting]
        cells = [statistics.median(percentile(run.delays, percent) for run in rounds) for percent in (50, 99, 100)]
        print(f"{setting:8}" + "".join(f"{cell:9.1f}" for cell in (*cells, statistics.median(r.busy for r in rounds))))
    both = list(zip(runs["turns"], runs["free"], strict=True))
    late = statistics.median(percentile(turns.delays, 99) / percentile(free.delays, 99) for turns, free in both)
    work = statistics.median(turns.busy / free.busy for turns, free in both)
    print(f"turns / free: p99 {late:.2f}, busy steps {work:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--streams", type=int, default=4, help="live streams")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--live-ms", type=float, default=4.0, help="a step of the live module in the pair `work`")
    parser.add_argument("--busy-ms", type=float, default=25.0, help="a step of the busy one")
    parser.add_argument("--threads", type=int, help="torch's, on a CPU (default: all cores)")
    parser.add_argument("--pairs", nargs="*", default=["work", "models"], choices=["work", "models", "large"])
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"{device}, torch {torch.__version__}, {options.streams} live streams, rounds of {options.seconds:g} s")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.pairs:
            if name == "work":
                make = pair_of_work(device, options.live_ms, options.busy_ms)
            else:
                make = pair_of_models(device, Path(folder)) if name == "models" else pair_of_large(device)
            torch.set_num_threads(options.threads or torch.get_num_threads())
            runs: dict[str, list[Run]] = {setting: [] for setting in SETTINGS}
            for _ in range(options.rounds):
                for setting in SETTINGS:
                    runs[setting].append(asyncio.run(measure(make, setting, options.streams, options.seconds)))
            report(f"{name}, {torch.get_num_threads()} threads", runs)


if __name__ == "__main__":
    main()
