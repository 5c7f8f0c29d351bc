"""What must hold of a soak: the server's account against the clients', what may grow, and how late answers may get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .server import Sample
from .visitor import HEARING, Ledger

MAX_GROWTH = 0.05
"""Of the resident memory, over the second half."""
MAX_DRIFT = (0.25, 3.0)
"""By what share, and how many more, the last third's median of files, threads and tasks may be above the first's."""
MAX_SLOWER = 1.5
SLACK_SECONDS = 0.02
"""The last third's 99th percentile may be so many times the first's, and so much more."""
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


def thirds(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """The median of one of the numbers over the first third and over the last."""
    size = max(1, len(samples) // 3)
    values = [float(getattr(sample, name)) for sample in samples]
    return float(np.median(values[:size])), float(np.median(values[-size:]))


@dataclass(frozen=True, slots=True)
class Delays:
    """Answer delays of one part of the time, in seconds; ``late`` is how late the clients' own clock woke them."""

    count: int
    p50: float
    p99: float
    late: float


def delays(answers: Sequence[tuple[float, float]], ticks: Sequence[tuple[float, float]]) -> tuple[Delays, Delays]:
    """Of the first third of the time, and of the last.

    Args:
        answers: when each answer came, and how long it took (s).
        ticks: when a client woke, and how much later than it meant to (s).
    """
    begun, ended = answers[0][0], answers[-1][0]
    third = (ended - begun) / 3

    def part(start: float, stop: float) -> Delays:
        chosen = [taken for when, taken in answers if start <= when <= stop]
        woken = [late for when, late in ticks if start <= when <= stop] or [0.0]
        p50, p99 = np.percentile(chosen or [np.inf], (50, 99))
        return Delays(len(chosen), float(p50), float(p99), float(np.percentile(woken, 99)))

    return part(begun, begun + third), part(ended - third, ended)


def steadiness(first: Delays, last: Delays) -> list[str]:
    """Whether answers got later."""
    if min(first.count, last.count) < 100:
        return [f"only {first.count} and {last.count} answers were timed in the first and the last third"]
    if last.p99 > MAX_SLOWER * first.p99 + SLACK_SECONDS:
        return [
            f"answers got later: p99 {1000 * first.p99:.0f} ms in the first third, {1000 * last.p99:.0f} ms in the last"
        ]
    return []


def leaks(
    samples: Sequence[Sample], before: Sample, after: Sample, tasks: Mapping[str, int], tasks_after: Mapping[str, int]
) -> list[str]:
    """What the server holds that it did not before, or more and more of.

    Args:
        samples: while the users came and went.
        before: with nobody there yet, as ``tasks``, by name.
        after: once everyone has gone, as ``tasks_after``.
    """
    wrong = []
    _, share = growth(samples)
    if share > MAX_GROWTH:
        wrong.append(f"memory grew by {share:.1%} in the second half; {MAX_GROWTH:.0%} are allowed")
    if after.files > before.files:
        wrong.append(f"{after.files - before.files} files are still open")
    if after.threads > max(sample.threads for sample in samples[len(samples) // 2 :]):
        wrong.append("threads have become more")
    left = Counter(tasks_after) - Counter(tasks)
    wrong += [f"{count} tasks of {name} are still there" for name, count in sorted(left.items())]
    for name in ("files", "threads", "tasks"):
        first, last = thirds(samples, name)
        if last > first * (1 + MAX_DRIFT[0]) + MAX_DRIFT[1]:
            wrong.append(f"{name}: {first:g} in the first third, {last:g} in the last")
    return wrong


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
