"""Workers are killed under streams in real time: does every word of the recording arrive, once and in order?

    python benchmarks/survive.py --workers 2 --streams 50

Some workers on the embedded model, with nothing before them; so many real-time streams of `ReconnectingAsrClient`, each
of which knows all addresses and plays the recordings that come with the package in an order of its own. At random
moments (`--seed`) a worker is killed with SIGKILL, and started again after a while. Each stream's words are compared
with those that the same recording gives in one piece, undisturbed, and with what is spoken. Exit status 1 if a word is
missing, doubled, out of order, or at another time. Run it on a machine that does nothing else: streams that the
processor cannot keep up with come late (the report says how late), but lose nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moshi_server.audio import FRAME_RATE, SAMPLE_RATE, read_audio
from moshi_server.cli.configs import locate
from moshi_server.cli.demo import API_KEY, samples
from moshi_server.client import ConnectionLost, ConnectionResumed, ReconnectingAsrClient, Transcript
from moshi_server.events import Step

PAUSE_SECONDS = 0.6
ON_TIME = 1.5
"""Seconds from a frame's end to its step, below which a stream is as it was before a loss."""
SAME_TIME = 0.25


class Worker:
    """One worker process at a port of its own, which may be killed and started again."""

    def __init__(self, config: Path, number: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.number = number
        self.kills = 0
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "moshi_server.cli", "worker", "--config", str(self._config), "--cpu"]
        command += ["--addr", "127.0.0.1", "--port", str(self.port), "--log", "error"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, cwd=self._config.parent, env=environment)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    async def wait_healthy(self, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not await asyncio.to_thread(self.healthy):
            if time.monotonic() > end or (self._process and self._process.poll() is not None):
                raise RuntimeError(f"worker {self.number} has not started")
            await asyncio.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@dataclass
class Story:
    """What one stream went through; times in seconds."""

    words: list[tuple[str, float]] = field(default_factory=list)
    steps: int = 0
    losses: int = 0
    away: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    normal: list[float] = field(default_factory=list)
    """From each loss until steps were on time again."""
    latest: float = 0.0
    error: str = ""


def recording(order: Sequence[Path], seconds: float) -> tuple[NDArray[np.float32], list[str]]:
    """Whole recordings one after another, until they last so long, and the words that are spoken in them."""
    parts: list[NDArray[np.float32]] = []
    spoken: list[str] = []
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        path = order[len(parts) // 2 % len(order)]
        parts += [read_audio(path), pause]
        spoken += path.with_suffix(".txt").read_text(encoding="utf-8").split()
    return np.concatenate(parts), spoken


async def play(urls: Sequence[str], pcm: NDArray[np.float32], wait: float, story: Story) -> None:
    """One real-time stream, its losses and its lateness."""
    await asyncio.sleep(wait)
    lost_at = 0.0
    async with ReconnectingAsrClient.connect(urls, api_key=API_KEY, timeout=20) as client:
        begun = time.monotonic()

        def watch(event: object) -> None:
            nonlocal lost_at
            now = time.monotonic()
            match event:
                case ConnectionLost():
                    story.losses += 1
                    lost_at = lost_at or now
                case ConnectionResumed():
                    story.away.append(event.seconds)
                    story.again.append(event.again)
                case Step(step_idx=index):
                    story.steps += 1
                    late = now - begun - index / FRAME_RATE
                    story.latest = max(story.latest, late)
                    if lost_at and late < ON_TIME:
                        story.normal.append(now - lost_at)
                        lost_at = 0.0

        transcript = await client.transcribe(pcm, realtime=True, on_event=watch)
        story.words = words_of(transcript)


async def kill_some(workers: Sequence[Worker], args: argparse.Namespace, chance: random.Random) -> None:
    """Kill one after another at random moments; each is started again after `--down` seconds."""

    async def one(worker: Worker) -> None:
        worker.kill()
        worker.kills += 1
        print(f"worker {worker.number} is killed", file=sys.stderr)
        await asyncio.sleep(args.down)
        worker.start()

    back: set[asyncio.Task[None]] = set()  # the event loop itself holds no task
    for _ in range(args.kills):
        await asyncio.sleep(chance.uniform(0.5, 1.5) * args.seconds / (args.kills + 1))
        while len(alive := [worker for worker in workers if await asyncio.to_thread(worker.healthy)]) <= args.spare:
            await asyncio.sleep(0.2)
        back.add(asyncio.create_task(one(chance.choice(alive))))


def words_of(transcript: Transcript) -> list[tuple[str, float]]:
    return [(word.text, word.start) for word in transcript.words]


def differences(expected: Sequence[str], got: Sequence[str]) -> tuple[int, int]:
    """How many words are missing, and how many are too many."""
    missing = extra = 0
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
        if tag != "equal":
            missing, extra = missing + i2 - i1, extra + j2 - j1
    return missing, extra


def report(stories: Sequence[Story], wholes: Sequence[list[tuple[str, float]]], said: Sequence[list[str]]) -> dict:
    """The figures of a run, and whether all is as it must be."""
    missing = extra = moved = away_from_spoken = 0
    for story, whole, spoken in zip(stories, wholes, said, strict=True):
        lost, doubled = differences([text for text, _ in whole], [text for text, _ in story.words])
        missing, extra = missing + lost, extra + doubled
        if not lost and not doubled:
            moved += sum(abs(a - b) > SAME_TIME for (_, a), (_, b) in zip(whole, story.words, strict=True))
        away_from_spoken += sum(differences(spoken, [text for text, _ in story.words]))

    def spread(values: Iterator[float]) -> list[float]:
        ordered = sorted(values) or [0.0]
        return [round(ordered[min(len(ordered) - 1, int(len(ordered) * q))], 2) for q in (0.5, 0.9, 1.0)]

    return {
        "words": sum(map(len, wholes)),
        "spoken": sum(map(len, said)),
        "missing": missing,
        "doubled or wrong": extra,
        "at another time": moved,
        "not as spoken": away_from_spoken,
        "streams that ended": [story.error for story in stories if story.error],
        "losses": sum(story.losses for story in stories),
        "streams with a loss": sum(bool(story.losses) for story in stories),
        "seconds without a server (p50, p90, max)": spread(s for story in stories for s in story.away),
        "seconds heard again (p50, p90, max)": spread(s for story in stories for s in story.again),
        "seconds until on time again (p50, p90, max)": spread(s for story in stories for s in story.normal),
        "latest step of a stream, seconds (p50, p90, max)": spread(story.latest for story in stories),
    }


async def run(args: argparse.Namespace, folder: Path) -> dict:
    chance = random.Random(args.seed)
    config = folder / "survive.toml"
    text = locate(Path("demo")).read_text(encoding="utf-8").replace("batch_size = 16", f"batch_size = {args.streams}")
    config.write_text(text, encoding="utf-8")
    workers = [Worker(config, number) for number in range(args.workers)]
    try:
        for worker in workers:
            worker.start()
        orders = [chance.sample(samples(), len(samples())) for _ in range(min(args.streams, args.orders))]
        played = [recording(order, args.seconds) for order in orders]
        await asyncio.gather(*(worker.wait_healthy() for worker in workers))
        print(f"{args.workers} workers are ready", file=sys.stderr)
        wholes = []
        for pcm, _ in played:
            async with ReconnectingAsrClient.connect(workers[0].url, api_key=API_KEY) as client:
                wholes.append(words_of(await client.transcribe(pcm)))
        stories = [Story() for _ in range(args.streams)]

        async def one(index: int) -> None:
            urls = [workers[(index + shift) % len(workers)].url for shift in range(len(workers))]
            try:
                await play(urls, played[index % len(played)][0], chance.uniform(0, 1), stories[index])
            except Exception as error:
                stories[index].error = repr(error)

        print(f"{args.streams} streams begin", file=sys.stderr)
        killing = asyncio.create_task(kill_some(workers, args, random.Random(args.seed + 1)))
        begun = time.monotonic()
        await asyncio.gather(*(one(index) for index in range(args.streams)))
        seconds = time.monotonic() - begun
        killing.cancel()
        which = [index % len(played) for index in range(args.streams)]
        figures = report(stories, [wholes[i] for i in which], [played[i][1] for i in which])
        head = {"workers": args.workers, "streams": args.streams, "seconds": round(seconds, 1), "seed": args.seed}
        return head | {"kills": sum(worker.kills for worker in workers)} | figures
    finally:
        for worker in workers:
            worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each stream plays, at least")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--spare", type=int, default=1, help="so many workers are left alive; 0: none, for a while")
    parser.add_argument("--down", type=float, default=1.0, help="seconds from a kill until the worker is started again")
    parser.add_argument("--orders", type=int, default=6, help="so many different recordings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="keep the figures")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no worker is left behind
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(args, Path(folder)))
    for name, value in figures.items():
        print(f"{name:50} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    wrong = ("missing", "doubled or wrong", "at another time", "streams that ended")
    raise SystemExit(any(figures[name] for name in wrong))


if __name__ == "__main__":
    main()
