"""Streams of all modules come and go for a while, a fifth of them rudely: does the server leak, and does it account?

    python benchmarks/soak.py --minutes 10

A worker with every module type (the embedded model, the examples' scripts, small random checkpoints) runs in a process
of its own. Virtual users visit it: the SDK's clients, posts, OpenAI's routes, rooms; some reset their connection, send
garbage, stop reading, leave without a close, have a wrong key, or ask for what is not there. At the end every slot must
be free, each module's streams opened and closed as often as the clients know of, and files and asyncio tasks as many as
before. Over the second half memory must not grow by more than 5 %; from the first third to the last, files, threads and
tasks must not become more, and the 99th percentile of the answer delay of real-time streams not 1.5 times as long. Exit
status 1 if anything is amiss. It needs Linux (`/proc`), a checkout and the `dev` extra; `PocketTts` is left out, since
its weights are not here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soaking.polite import POLITE, TIMED
from soaking.rude import RUDE
from soaking.server import KEY, Sample, Server
from soaking.verdict import audit, delays, growth, leaks, steadiness, thirds
from soaking.visitor import Ledger, Visitor


async def visit(server: Server, ledger: Ledger, options: argparse.Namespace) -> list[Sample]:
    """Let the users come and go, and look at the server meanwhile."""
    end = time.monotonic() + 60 * options.minutes

    def over() -> bool:
        return time.monotonic() >= end

    visitors = [
        Visitor(server.address, KEY, ledger, random.Random(f"{options.seed} {number}"), POLITE, RUDE)
        for number in range(options.users)
    ]
    visitors += [
        Visitor(server.address, KEY, ledger, random.Random(f"{options.seed} timed {number}"), TIMED, TIMED)
        for number in range(options.timed)
    ]
    users = asyncio.gather(*(visitor.come_and_go(over) for visitor in visitors))
    samples = []
    while not over() and server.process.poll() is None:
        samples.append(await asyncio.to_thread(server.sample))
        due = time.monotonic() + min(3.0, max(0.2, 60 * options.minutes / 40))
        while time.monotonic() < due:  # how punctual is this process itself?
            asked = time.monotonic()
            await asyncio.sleep(0.08)
            ledger.ticks.append((time.monotonic(), time.monotonic() - asked - 0.08))
    await users
    return samples


def settle(server: Server) -> dict[str, int]:
    """Wait until all slots are free and what is left of connections has gone; the slots that are still held."""
    held: dict[str, int] = {}
    for _ in range(60):
        held = {name: used for name, used in server.used().items() if used}
        if not held:
            break
        time.sleep(0.5)
    time.sleep(6)  # a client that has left is waited for so long
    return held


def table(ledger: Ledger, metrics: dict[str, float]) -> str:
    lines = [f"{'visit':28} outcomes"]
    lines += [
        f"{name:28} " + ", ".join(f"{what} {count}" for what, count in sorted(outcomes.items()))
        for name, outcomes in sorted(ledger.outcomes.items())
    ]
    lines.append(f"\n{'module':10} {'sockets':>8} {'posts':>6} {'opened, clients':>16} {'server':>7} {'closed':>7}")
    for name in sorted(metrics):
        if name.startswith("module_streams_opened_total"):
            module = name.split('"')[1]
            account = ledger.of(module)
            known = f"{account.opened}" + (f" to {account.opened + account.unsure}" if account.unsure else "")
            closed = metrics[name.replace("opened", "closed")]
            lines.append(
                f"{module:10} {account.sockets:8} {account.posts:6} {known:>16} {metrics[name]:7g} {closed:7g}"
            )
    lines.append("")
    lines += [f"{name} {value:g}" for name, value in sorted(metrics.items()) if name.startswith("ws_close_total")]
    lines += [f"{name} {value:g}" for name, value in sorted(metrics.items()) if name.startswith("connection_error")]
    return "\n".join(lines)


def soak(folder: Path, options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Run it; what is amiss, and all figures."""
    server, ledger = Server(folder), Ledger()
    try:
        before, tasks_before = server.sample(), server.tasks()
        samples = asyncio.run(visit(server, ledger, options))
        if server.process.poll() is not None:
            return [f"the server has ended:\n{server.output.read_text()[-3000:]}"], {}
        held = settle(server)
        metrics, after, tasks_after = server.metrics(), server.sample(), server.tasks()
        status = server.stop()
    finally:
        server.process.kill()
        server.process.wait()
    slope, share = growth(samples)
    print(table(ledger, metrics))
    visits = sum(outcomes.total() for outcomes in ledger.outcomes.values())
    rude = sum(ledger.outcomes[kind.__name__].total() for kind in RUDE if kind.__name__ in ledger.outcomes)
    half = samples[len(samples) // 2 :]
    print(
        f"\n{options.minutes:g} minutes, {visits} visits of {options.users} and {options.timed} users, {rude} of them"
        f" rude ({rude / visits:.0%})\n"
        f"memory: {before.rss / 2**20:.1f} MB before, {half[0].rss / 2**20:.1f} at half time,"
        f" {half[-1].rss / 2**20:.1f} at the end, {after.rss / 2**20:.1f} after;"
        f" second half {slope:+.1f} MB/hour ({share:+.2%})"
    )
    for name in ("files", "threads", "tasks"):
        first, last = thirds(samples, name)
        most = max(getattr(sample, name) for sample in samples)
        print(
            f"{name}: {getattr(before, name)} before, {first:g} in the first third, {last:g} in the last (medians),"
            f" at most {most}, {getattr(after, name)} after"
        )
    first_third, last_third = delays(ledger.delays, ledger.ticks)
    for name, part in (("first", first_third), ("last", last_third)):
        print(
            f"answers, {name} third: {part.count}, p50 {1000 * part.p50:.0f} ms, p99 {1000 * part.p99:.0f} ms"
            f" (the clients' own clock was late by {1000 * part.late:.0f} ms at p99)"
        )
    print("load of the machine: {:.1f} in the first third, {:.1f} in the last".format(*thirds(samples, "load")))
    amiss = ledger.faults + audit(ledger, metrics)
    amiss += [f"{used} slots of {name} are still held" for name, used in held.items()]
    amiss += leaks(samples, before, after, tasks_before, tasks_after) + steadiness(first_third, last_third)
    if status:
        amiss.append(f"the server's exit status is {status}")
    amiss += [f"the log says: {line}" for line in server.complaints()[:20]]
    figures = {
        "minutes": options.minutes,
        "visits": visits,
        "mb_per_hour": slope,
        "growth": share,
        "before": asdict(before),
        "after": asdict(after),
        "tasks_before": tasks_before,
        "tasks_after": tasks_after,
        "delays": [asdict(first_third), asdict(last_third)],
        "samples": [asdict(sample) for sample in samples],
        "outcomes": ledger.outcomes,
        "accounts": {name: asdict(account) for name, account in ledger.accounts.items()},
        "metrics": {name: value for name, value in metrics.items() if "_bucket" not in name},
    }
    return amiss, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--users", type=int, default=10, help="that visit at the same time")
    parser.add_argument("--timed", type=int, default=2, help="users beside them that only time answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--keep", help="work in this folder, which must be empty, and leave it (with its logs)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        amiss, figures = soak(Path(options.keep or temporary), options)
    if options.json:
        Path(options.json).write_text(json.dumps({**figures, "amiss": amiss}, indent=1))
    for line in amiss:
        print(f"AMISS {line}")
    print("amiss" if amiss else "nothing is amiss")
    raise SystemExit(bool(amiss))


if __name__ == "__main__":
    main()
