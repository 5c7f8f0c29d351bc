"""Runs inputs and watches them: what comes out that must not, processor time, hangs, memory; it makes no inputs."""

from __future__ import annotations

import gc
import mmap
import re
import resource
import signal
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .target import Target

SLOW_SECONDS = 0.1
"""Processor time that no input may take; of the process, so that a busy machine does not lie."""
HANG_SECONDS = 10.0
"""Processor time after which an input is given up: the system ends the process, whatever it is doing."""
GROWTH_BYTES = 6 * 2**20
"""What the second half of many rounds over the same inputs may add to the memory: the allocator's play."""


@dataclass(slots=True)
class Finding:
    """One fault: what happened and where, how often, and the shortest input that does it."""

    kind: str
    what: str
    data: bytes
    count: int = 1


class Journal:
    """The input under way, kept outside of the process's own memory, for when it does not come back."""

    def __init__(self, path: Path, size: int = 1 << 20) -> None:
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def write(self, data: bytes) -> None:
        kept = data[: len(self._map) - 4]
        self._map[: 4 + len(kept)] = len(kept).to_bytes(4, "little") + kept

    def read(self) -> bytes:
        return self._map[4 : 4 + int.from_bytes(self._map[:4], "little")]


class Watch:
    """Feeds one target, and keeps what it finds."""

    def __init__(self, target: Target, journal: Journal | None = None, *, limit: float = SLOW_SECONDS) -> None:
        self.target = target
        self.findings: dict[str, Finding] = {}
        self.inputs = 0
        self.slowest = 0.0
        """Processor seconds of the slowest input, of three goes where the first was over the limit."""
        self._journal = journal
        self._limit = limit

    def run(self, data: bytes) -> None:
        """One input. What it raises is kept and goes no further, so that a fault does not end the search."""
        self.inputs += 1
        if self._journal is not None:
            self._journal.write(data)
            signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        begun = time.process_time()
        self._feed(data)
        seconds = time.process_time() - begun
        if seconds > self._limit:
            # A collection or a page fault may fall to any input: only what is slow each time is.
            for _ in range(2):
                begun = time.process_time()
                self._feed(data)
                seconds = min(seconds, time.process_time() - begun)
            if seconds > self._limit:
                self._keep("slow", f"{self.target.name} takes over {1000 * self._limit:g} ms", data)
        self.slowest = max(self.slowest, seconds)

    def _feed(self, data: bytes) -> None:
        try:
            self.target.feed(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            # Where it came out, or was seen to disagree.
            frame = [each for each in traceback.extract_tb(error.__traceback__) if each.name != "agree"][-1]
            what = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:300]}"
            self._keep("raised", what, data, key=f"{type(error).__name__} {frame.filename}:{frame.lineno}")

    def _keep(self, kind: str, what: str, data: bytes, key: str = "") -> None:
        known = self.findings.get(f"{kind} {key or what}")
        if known is None:
            self.findings[f"{kind} {key or what}"] = Finding(kind, what, data)
            return
        known.count += 1
        if len(data) < len(known.data):
            known.what, known.data = what, data


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def highest() -> int:
    """Bytes that this program held at most. `getrusage` would count those of the process that started it, too."""
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) * 1024


def growth(target: Target, inputs: Sequence[bytes], rounds: int, journal: Journal | None = None) -> tuple[int, int]:
    """Feed the same inputs many times: bytes that the second half of the rounds added, and the peak above the start."""
    watch, base, half = Watch(target, journal, limit=float("inf")), resident(), 0
    for number in range(rounds):
        for data in inputs:
            watch.run(data)
        if number == rounds // 2:
            gc.collect()
            half = resident()
    gc.collect()
    return resident() - half, highest() - base


def pick(inputs: Iterable[bytes], most: int) -> list[bytes]:
    """Some of many, spread evenly over their lengths."""
    ordered = sorted(inputs, key=lambda data: (len(data), data))
    step = max(1, -(-len(ordered) // most))
    return ordered[::step]
