"""Who is refused while a slot is free elsewhere? Thousands of workers, several ways to choose one, simulated.

    python benchmarks/admission.py                        # 10 000 workers of 100 slots, some minutes
    python benchmarks/admission.py --workers 4 --slots 16 --ready

Streams come at random (Poisson) and stay for a random time (exponential), so many that ``--load`` of all slots are
taken on average. Each comes to one of ``--proxies`` proxies, which chooses a worker by what it knows; a worker that is
full says 503, and the proxy asks another one, ``--retries`` times. What is counted are tries, and streams refused
although some worker had a free slot. It knows no network, no model and no server of ours: only the rules.

Two rows have exact answers (Erlang's formula): workers chosen at random each lose what a worker alone would, and no way
of choosing loses less than all slots as one pool. Both are printed: the simulation is checked by them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

MEAN_SECONDS = 300.0


class Policy(Protocol):
    """How a proxy chooses. ``used`` is the truth, at which a policy may look as often as it could know it."""

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        """A worker to ask; ``tried`` have just said that they are full."""
        ...

    def begun(self, worker: int, proxy: int) -> None:
        """A stream of this proxy's has begun."""

    def ended(self, worker: int, proxy: int) -> None:
        """A stream of this proxy's has ended."""

    def look(self, used: Sequence[int], now: float) -> None:
        """Called before each stream that comes."""


class Random:
    """Any worker, each as likely."""

    def __init__(self, workers: int, dice: random.Random) -> None:
        self.workers, self.dice = workers, dice

    def draw(self, tried: Sequence[int]) -> int:
        while (worker := int(self.dice.random() * self.workers)) in tried and len(tried) < self.workers:
            pass
        return worker

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        return self.draw(tried)

    def begun(self, worker: int, proxy: int) -> None: ...

    def ended(self, worker: int, proxy: int) -> None: ...

    def look(self, used: Sequence[int], now: float) -> None: ...


class Two(Random):
    """The better of two at random (power of two choices), by the proxy's own streams."""

    def __init__(self, workers: int, dice: random.Random, proxies: int) -> None:
        super().__init__(workers, dice)
        self.own = [[0] * workers for _ in range(proxies)]

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        own, one, other = self.own[proxy], self.draw(tried), self.draw(tried)
        return one if own[one] <= own[other] else other

    def begun(self, worker: int, proxy: int) -> None:
        self.own[proxy][worker] += 1

    def ended(self, worker: int, proxy: int) -> None:
        self.own[proxy][worker] -= 1


class Least(Random):
    """Least connections, by the proxy's own streams; among equals at random.

    Each proxy keeps a heap of counts; an entry whose count is no longer true is dropped when it comes up.
    """

    def __init__(self, workers: int, dice: random.Random, proxies: int) -> None:
        super().__init__(workers, dice)
        self.own = [[0] * workers for _ in range(proxies)]
        self.heaps = [[(0, dice.random(), worker) for worker in range(workers)] for _ in range(proxies)]
        for heap in self.heaps:
            heapq.heapify(heap)

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        own, heap, passed = self.own[proxy], self.heaps[proxy], []
        found = -1
        while heap and found < 0:
            entry = heapq.heappop(heap)
            if entry[0] == own[entry[2]]:
                passed.append(entry)
                if entry[2] not in tried:
                    found = entry[2]
        for entry in passed:
            heapq.heappush(heap, entry)
        return found if found >= 0 else self.draw(())

    def _count(self, worker: int, proxy: int, by: int) -> None:
        own, heap = self.own[proxy], self.heaps[proxy]
        own[worker] += by
        heapq.heappush(heap, (own[worker], self.dice.random(), worker))
        if len(heap) > 4 * self.workers + 64:
            heap[:] = [(count, self.dice.random(), each) for each, count in enumerate(own)]
            heapq.heapify(heap)

    def begun(self, worker: int, proxy: int) -> None:
        self._count(worker, proxy, 1)

    def ended(self, worker: int, proxy: int) -> None:
        self._count(worker, proxy, -1)


class Stale(Random):
    """By the true numbers of all streams, as they were up to ``every`` seconds ago: the least, or the better of two."""

    def __init__(self, workers: int, dice: random.Random, every: float, two: bool) -> None:
        super().__init__(workers, dice)
        self.every, self.two, self.next = every, two, 0.0
        self.seen: list[int] = [0] * workers
        self.order: list[int] = list(range(workers))
        self.least = workers

    def look(self, used: Sequence[int], now: float) -> None:
        if now < self.next:
            return
        self.next = now + self.every
        self.seen = list(used)
        if not self.two:
            self.order = sorted(range(self.workers), key=self.seen.__getitem__)
            lowest = self.seen[self.order[0]]
            self.least = next((i for i, worker in enumerate(self.order) if self.seen[worker] > lowest), self.workers)

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        if self.two:
            one, other = self.draw(tried), self.draw(tried)
            return one if self.seen[one] <= self.seen[other] else other
        for _ in range(4):
            worker = self.order[int(self.dice.random() * self.least)]
            if worker not in tried:
                return worker
        return next((worker for worker in self.order if worker not in tried), self.order[0])


class Gated(Least):
    """Least connections among those that were not full when last asked, every ``every`` seconds (a check of /ready)."""

    def __init__(self, workers: int, dice: random.Random, proxies: int, slots: int, every: float) -> None:
        super().__init__(workers, dice, proxies)
        self.slots, self.every, self.next = slots, every, 0.0
        self.out: list[int] = []

    def look(self, used: Sequence[int], now: float) -> None:
        if now >= self.next:
            self.next = now + self.every
            self.out = [worker for worker, count in enumerate(used) if count >= self.slots]

    def pick(self, proxy: int, tried: Sequence[int]) -> int:
        return NOBODY if len(self.out) == self.workers else super().pick(proxy, [*self.out, *tried])


NOBODY = -1


@dataclass
class Row:
    """What one way of choosing gave.

    Attributes:
        came: streams that were counted.
        refused_while_free: share of them, refused although a worker had a free slot.
        refused_when_full: share of them, refused when there was none.
        tries: workers asked, on average.
        spread: the fullest worker's streams over the mean, at the end.
    """

    name: str
    came: int
    refused_while_free: float
    refused_when_full: float
    tries: float
    spread: float
    seconds: float


def simulate(
    name: str,
    policy: Policy,
    dice: random.Random,
    *,
    workers: int,
    slots: int,
    proxies: int,
    load: float,
    retries: int,
    lifetimes: float = 1.0,
) -> Row:
    """Fill to the load, let two mean lifetimes pass, and count over ``lifetimes`` more."""
    began = time.perf_counter()
    used, streams = [0] * workers, list[tuple[int, int]]()
    target = round(load * workers * slots)
    per_second = target / MEAN_SECONDS
    free = workers * slots
    came = tries = while_free = when_full = 0
    now = 0.0

    def arrive() -> tuple[int, bool]:
        """How many were asked, and whether one took it."""
        nonlocal free
        proxy = int(dice.random() * proxies)
        policy.look(used, now)
        tried: list[int] = []
        while len(tried) <= retries:
            worker = policy.pick(proxy, tried)
            if worker == NOBODY:
                return len(tried), False
            if used[worker] < slots:
                used[worker] += 1
                free -= 1
                streams.append((worker, proxy))
                policy.begun(worker, proxy)
                return len(tried) + 1, True
            tried.append(worker)
        return len(tried), False

    for _ in range(target):
        now += 1.0 / per_second / 4
        arrive()
    filled = now
    counting_from, end = filled + 2 * MEAN_SECONDS, filled + MEAN_SECONDS * (2 + lifetimes)
    while now < end:
        rate = per_second + len(streams) / MEAN_SECONDS
        now += dice.expovariate(rate)
        if dice.random() * rate < per_second:
            had_free = free > 0
            asked, taken = arrive()
            if now >= counting_from:
                came += 1
                tries += asked
                while_free += not taken and had_free
                when_full += not taken and not had_free
        else:
            index = int(dice.random() * len(streams))
            worker, proxy = streams[index]
            streams[index] = streams[-1]
            streams.pop()
            used[worker] -= 1
            free += 1
            policy.ended(worker, proxy)
    spread = max(used) / (sum(used) / workers)
    return Row(name, came, while_free / came, when_full / came, tries / came, spread, time.perf_counter() - began)


def erlang_b(offered: float, slots: int) -> float:
    """The share refused by one worker of so many slots that is offered so many streams at once on average."""
    inverse = 1.0
    for count in range(1, slots + 1):
        inverse = 1.0 + inverse * count / offered
    return 1.0 / inverse


def rows(options: argparse.Namespace) -> list[Row]:
    """Each way of choosing, simulated from the same seed."""
    workers, slots, proxies = options.workers, options.slots, options.proxies
    shared = {"workers": workers, "slots": slots, "load": options.load, "lifetimes": options.lifetimes}

    def run(name: str, make: type[Random], *rest: object, many: int = proxies, retries: int | None = None) -> Row:
        dice = random.Random(options.seed)
        policy = make(workers, dice, *rest)
        again = options.retries if retries is None else retries
        row = simulate(name, policy, dice, proxies=many, retries=again, **shared)
        print(
            f"{row.name:<58}{share(row.refused_while_free):>10}{share(row.refused_when_full):>10}"
            f"{row.tries:>8.3f}{row.spread:>8.2f}{row.seconds:>7.0f} s",
            flush=True,
        )
        return row

    print(f"{'':<58}{'refused':>10}{'refused':>10}{'':>8}{'fullest':>8}")
    print(f"{'':<58}{'while free':>10}{'when full':>10}{'tries':>8}{'/ mean':>8}")
    more = f"{options.retries} more tries"
    got = [run("random, no more tries", Random, retries=0)]
    print(f"{'  the same by Erlang':<58}{share(erlang_b(options.load * slots, slots)):>10}")
    pool = erlang_b(options.load * slots * workers, slots * workers)
    print(f"{'  all slots as one pool, by Erlang':<58}{'0':>10}{share(pool):>10}")
    got.append(run(f"random, {more}", Random))
    for many in sorted({1, proxies}):
        of = "one proxy" if many == 1 else f"each of {many} proxies by its own"
        got.append(run(f"better of two, {of}, no more tries", Two, many, many=many, retries=0))
        got.append(run(f"better of two, {of}, {more}", Two, many, many=many))
        got.append(run(f"least connections, {of}, no more tries", Least, many, many=many, retries=0))
        got.append(run(f"least connections, {of}, {more}", Least, many, many=many))
    for every in options.stale:
        got.append(run(f"least of all, as of {every:g} s ago, {more}", Stale, every, False))
        got.append(run(f"better of two of all, as of {every:g} s ago, {more}", Stale, every, True))
    if options.ready:
        for again in (0, options.retries):
            gate = f"least connections among those ready 1 s ago, {again} more tries"
            got.append(run(gate, Gated, 1, slots, 1.0, many=1, retries=again))
    return got


def share(value: float) -> str:
    """A share as a person reads it."""
    if value == 0:
        return "0"
    return f"{value:.2%}" if value >= 1e-4 else f"{value * 1e6:.0f} ppm"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--workers", type=int, default=10_000)
    made.add_argument("--slots", type=int, default=100, help="of each worker")
    made.add_argument("--proxies", type=int, default=100)
    made.add_argument("--load", type=float, default=0.9, help="streams wanted, of all slots")
    made.add_argument("--retries", type=int, default=3)
    made.add_argument("--stale", type=float, nargs="*", default=[1.0], help="ages of shared counts, in seconds")
    made.add_argument("--ready", action="store_true", help="also least connections behind a check of /ready")
    made.add_argument("--lifetimes", type=float, default=1.0, help="how long to count, in mean lives of a stream")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--json", help="write the figures to this file")
    return made


def main() -> None:
    options = parser().parse_args()
    total = options.workers * options.slots
    print(
        f"{options.workers} workers of {options.slots} slots, {options.load:.0%} of {total} wanted, seed {options.seed}"
    )
    got = rows(options)
    assert all(math.isfinite(row.tries) for row in got)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in got], file, indent=1)


if __name__ == "__main__":
    main()
