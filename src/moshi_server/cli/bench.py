"""``moshi-server bench``: how many streams a running server holds in real time, and how fast it answers them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MoshiServerError
from .demo import API_KEY, running_worker, samples
from .options import ApiKey, key_for

if TYPE_CHECKING:
    from ..bench.crowd import Plan
    from ..bench.report import Trial
    from ..bench.run import Bench, Glance

SPEECH_PATH = "/api/tts_streaming"
TEXTS = [
    "Good morning. The train to the coast leaves in ten minutes, from the platform on the other side.",
    "Please write down what you need, and we will look whether it is still there.",
    "It rained the whole night, and by the morning the garden was a lake.",
]
"""What is spoken if no text is given."""


def bench(
    url: Annotated[
        str | None,
        typer.Option("--url", help="A running server, this one or upstream's. Without it a worker is started here."),
    ] = None,
    api_key: ApiKey = None,
    config: Annotated[
        str | None, typer.Option("--config", help="What the worker started here serves; default demo.")
    ] = None,
    streams: Annotated[int, typer.Option("--streams", "-n", min=1, help="Users at a time; where a search begins.")] = 4,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=1, help="How long they stay, all of them.")] = 20.0,
    search: Annotated[bool, typer.Option("--search", help="Find the most streams that hold.")] = False,
    max_streams: Annotated[int, typer.Option("--max-streams", min=1, help="Where a search ends.")] = 1024,
    limit: Annotated[
        float, typer.Option("--limit", min=1, help="Delay of answers (with --tts: gaps; ms) that 99 % must keep.")
    ] = 160.0,
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", help="What the users say; the package's recordings by default.")
    ] = None,
    tts: Annotated[
        bool, typer.Option("--tts", help="Bench text to speech instead: time to the first sound, gaps.")
    ] = False,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="What is to be spoken, with --tts; a few sentences by default.")
    ] = None,
    voice: Annotated[str | None, typer.Option("--voice", help="By which voice, with --tts.")] = None,
    jitter: Annotated[float, typer.Option("--jitter", min=0, help="Messages are up to so late (ms).")] = 0.0,
    join: Annotated[float, typer.Option("--join", min=0, help="Over how many seconds the users come.")] = 1.0,
    stay: Annotated[
        float | None,
        typer.Option("--stay", min=0.5, help="After how many seconds, on average, another user takes one's place."),
    ] = None,
    pid: Annotated[int | None, typer.Option("--pid", help="The server's process, if its port does not tell.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw a picture (PNG) into this file.")] = None,
) -> None:
    """Let virtual users speak to a server in real time, and say how it held. Exit status 1 if nothing held.

    For example: moshi-server bench --search; or: moshi-server bench --url ws://HOST:8080 --api-key KEY --streams 64
    """
    if url is not None and config is not None:
        raise typer.BadParameter("--config is for a worker that is started here: leave it out, or --url")
    if tts and url is None and config is None:
        raise typer.BadParameter("the embedded model does not speak: --tts needs a --url or a --config")
    if (text or voice) and not tts:
        raise typer.BadParameter("--text and --voice are for --tts")
    try:
        from ..bench.crowd import Plan
        from ..bench.run import SttBench, TtsBench
        from ..bench.stt import frames_of
    except ImportError as error:
        raise MoshiServerError(
            f"the load generator needs {error.name}", hint="pip install 'moshi-server[bench]'"
        ) from None
    import numpy as np

    from ..audio import read_audio
    from ..bench.report import as_json
    from ..client.asr import DEFAULT_PATH
    from ..client.connecting import websocket_url
    from .environment import load_dotenv

    load_dotenv()
    recordings = [] if tts else [read_audio(path) for path in audio or samples()]
    plan = Plan(streams, seconds, join, stay, jitter / 1000, stop_on_error=search)
    key = key_for(api_key)
    worker = nullcontext(url) if url is not None else _own_worker(config or "demo")
    with worker as address:
        key = key or (API_KEY if url is None else None)
        server: Bench
        if tts:
            query = [("format", "PcmMessagePack"), *([("voice", voice)] if voice else [])]
            whole = websocket_url(address, SPEECH_PATH, query)
            server = TtsBench(whole, key, text or TEXTS, limit=limit / 1000, pid=pid)
        else:
            whole = websocket_url(address, DEFAULT_PATH)
            server = SttBench(whole, key, frames_of(np.concatenate(recordings)), limit=limit / 1000, pid=pid)
        trials = asyncio.run(_trials(server, plan, max_streams if search else None))
    _print(trials, search=search)
    if json_file is not None:
        from ..client.connecting import public_url

        record = json.dumps(as_json(public_url(whole), plan, trials, limit / 1000), indent=1, ensure_ascii=False)
        _write(json_file, record + "\n")
    if plot is not None:
        from ..bench.plot import draw

        draw(trials, limit / 1000, plot)
    raise typer.Exit(0 if any(trial.held for trial in trials) else 1)


async def _trials(server: Bench, plan: Plan, most: int | None) -> list[Trial]:
    from dataclasses import replace

    from ..bench.search import search

    with _display() as glance:

        async def attempt(streams: int) -> Trial:
            trial = await server.attempt(replace(plan, streams=streams), glance)
            if most is not None:
                verdict = "held" if trial.held else f"not held: {trial.why}"
                sys.stderr.write(f"{streams} streams: {verdict}\n")
            return trial

        return [await attempt(plan.streams)] if most is None else await search(attempt, plan.streams, most)


@contextmanager
def _own_worker(config: str) -> Iterator[str]:
    with _notice("starting a worker"):
        worker = running_worker(config)
        url = worker.__enter__()
    try:
        yield url
    finally:
        worker.__exit__(None, None, None)


@contextmanager
def _display() -> Iterator[Callable[[Glance], None]]:
    """A bar with what is going on, on the error output if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0, now="")

        def show(glance: Glance) -> None:
            recent = glance.recent
            now = f"p50 {recent.p50:.0f} ms, p99 {recent.p99:.0f} ms" if recent is not None else ""
            now += f", {glance.failed} failed" if glance.failed else ""
            here = f"{glance.here} of {glance.streams} streams"
            progress.update(task, description=here, completed=glance.done, now=now)

        yield show


def _print(trials: list[Trial], *, search: bool) -> None:
    """The table, and what it comes down to."""
    from rich.console import Console
    from rich.table import Table

    from ..bench.report import most_held

    measure = {"step": "answer", "nothing": "answer"}.get(trials[-1].measure, trials[-1].measure)
    spoken = measure == "first audio"
    table = Table(title=f"Delay of each {measure}, in milliseconds")
    names = (
        "streams",
        "held",
        "p50",
        "p90",
        "p99",
        "max",
        "gap p99" if spoken else "first word p50",
        "errors",
        "server cores",
        "server MB",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "held" else "right")
    for trial in sorted(trials, key=lambda trial: trial.streams) if search else trials:
        delays, other = trial.delays, trial.others.get("gap" if spoken else "first word")
        row = [str(trial.streams), "yes" if trial.held else "no"]
        row += [f"{getattr(delays, name):.1f}" if delays else "-" for name in ("p50", "p90", "p99", "max")]
        row += [f"{other.p99 if spoken else other.p50:.0f}" if other else "-", str(sum(trial.errors.values()))]
        row += [f"{trial.server.cores:.2f}", f"{trial.server.memory_mb:.0f}"] if trial.server else ["unknown"] * 2
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False)
    console.print(table)
    if search:
        most = most_held(trials)
        typer.echo(f"most streams that hold: {most if most is not None else 'none'}")
    for trial in trials if not search else trials[-1:]:
        if not trial.held:
            typer.echo(f"{trial.streams} streams were not held: {trial.why}")
        elif spoken:
            speed = trial.counts["real_time_factor_p50"]
            typer.echo(f"{trial.streams} streams: {speed:.2f} s of sound a second, {trial.counts['speeches']} speeches")
    for complaint in {trial.generator.complaint for trial in trials} - {""}:
        typer.echo(f"note: {complaint}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MoshiServerError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _notice(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext():
        yield
