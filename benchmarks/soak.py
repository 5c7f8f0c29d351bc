"""Streams of all modules come and go for a while, a fifth of them rudely: does the server leak, and does it account?

    python benchmarks/soak.py --minutes 10

A worker with every module type (the embedded model, the examples' scripts, small random checkpoints) runs in a process
of its own. Virtual users visit it: the SDK's clients, posts, OpenAI's routes, rooms; some reset their connection, send
garbage, stop reading, leave without a close, have a wrong key, or ask for what is not there. At the end every slot must
be free, each module's streams opened and closed as often as the clients know of, and the files open as before; in the
second half memory must not grow by more than 5 %. Exit status 1 if anything is amiss. It needs Linux (`/proc`), a
checkout and the `dev` extra; `PocketTts` is left out, since its weights are not here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from soaking.polite import POLITE
from soaking.rude import RUDE
from soaking.server import KEY, Sample, Server
from soaking.visitor import HEARING, Ledger, Visitor

MAX_GROWTH = 0.05
FAMILIES = {
    "asr": tuple(HEARING),
    "py": ("tts", "tones"),
    "lm": ("lm",),
}
STEPS = {"asr": "asr_connection_num_steps", "py": "py_model_connection_num_steps", "lm": "lm_connection_num_steps"}


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """A line through the resident memory of the second half: MB an hour, and the growth over that half as a share."""
    half = samples[len(samples) // 2 :]
    times = np.array([sample.seconds for sample in half])
    slope, start = np.polyfit(times - times[0], [float(sample.rss) for sample in half], 1)
    return float(slope) * 3600 / 2**20, float(slope * (times[-1] - times[0]) / start)


def audit(ledger: Ledger, metrics: dict[str, float]) -> list[str]:
    """Where the server's account differs from the clients'."""
    wrong: list[str] = []

    def compare(what: str, counted: float, least: float, unsure: float = 0) -> None:
        if not least <= counted <= least + unsure:
            wrong.append(f"{what}: the server counts {counted:g}, the clients {least:g} to {least + unsure:g}")

    kinds = {name.split('"')[1]: name for name in metrics if name.startswith("module_streams_opened_total")}
    for module, name in kinds.items():
        account = ledger.of(module)
        opened, closed = metrics[name], metrics[name.replace("opened", "closed")]
        compare(f"{module}, streams opened", opened, account.opened, account.unsure)
        compare(f"{module}, streams closed", closed, opened)
    for family, modules in FAMILIES.items():
        accounts = [ledger.of(module) for module in modules]
        came = sum(account.sockets + account.posts for account in accounts)
        compare(
            f"{family}_connect", metrics[f'{family}_connect{{handler="all"}}'], came,
            sum(account.unsure_posts for account in accounts),
        )  # fmt: skip
        opened = sum(metrics[kinds[module]] for module in modules)
        compare(STEPS[family], metrics[f"{STEPS[family]}_count"], opened)
        compare(f"{family}_open_channels", metrics[f'{family}_open_channels{{handler="all"}}'], 0)
    post = ledger.of("spectrum")
    compare("py_post_connect", metrics['py_post_connect{handler="all"}'], post.posts, post.unsure_posts)
    sockets = sum(account.sockets for account in ledger.accounts.values())
    closes = sum(value for name, value in metrics.items() if name.startswith("ws_close_total"))
    compare("ws_close_total", closes, sockets)
    lost = metrics.get('ws_close_total{code="1006",reason="connection_lost"}', 0)
    compare("ws_close_total, lost", lost, ledger.lost, ledger.unsure_lost)
    compare("auth_error_total", metrics.get('auth_error_total{error_type="invalid_key"}', 0), ledger.wrong_keys)
    return wrong


async def visit(server: Server, ledger: Ledger, options: argparse.Namespace) -> list[Sample]:
    """Let the users come and go, and look at the server meanwhile."""
    end = time.monotonic() + 60 * options.minutes

    def over() -> bool:
        return time.monotonic() >= end

    visitors = [
        Visitor(server.address, KEY, ledger, random.Random(f"{options.seed} {number}"), POLITE, RUDE)
        for number in range(options.users)
    ]
    users = asyncio.gather(*(visitor.come_and_go(over) for visitor in visitors))
    samples = []
    while not over() and server.process.poll() is None:
        samples.append(server.sample())
        await asyncio.sleep(min(3.0, max(0.2, 60 * options.minutes / 40)))
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
        before = server.sample()
        samples = asyncio.run(visit(server, ledger, options))
        if server.process.poll() is not None:
            return [f"the server has ended:\n{server.output.read_text()[-3000:]}"], {}
        held = settle(server)
        metrics, after = server.metrics(), server.sample()
        status = server.stop()
    finally:
        server.process.kill()
        server.process.wait()
    slope, share = growth(samples)
    print(table(ledger, metrics))
    visits = sum(outcomes.total() for outcomes in ledger.outcomes.values())
    half = samples[len(samples) // 2 :]
    print(
        f"\n{options.minutes:g} minutes, {visits} visits of {options.users} users\n"
        f"memory: {before.rss / 2**20:.1f} MB before, {half[0].rss / 2**20:.1f} at half time,"
        f" {half[-1].rss / 2**20:.1f} at the end, {after.rss / 2**20:.1f} after;"
        f" second half {slope:+.1f} MB/hour ({share:+.2%})\n"
        f"files: {before.files} before, at most {max(sample.files for sample in samples)}, {after.files} after\n"
        f"threads: {before.threads} before, {half[0].threads} at half time, {after.threads} after"
    )
    amiss = ledger.faults + audit(ledger, metrics)
    amiss += [f"{used} slots of {name} are still held" for name, used in held.items()]
    if after.files > before.files:
        amiss.append(f"{after.files - before.files} files are still open")
    if after.threads > max(sample.threads for sample in half):
        amiss.append("threads have become more")
    if share > MAX_GROWTH:
        amiss.append(f"memory grew by {share:.1%} in the second half; {MAX_GROWTH:.0%} are allowed")
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
