"""``moshi-server transcribe``: recordings to text or subtitles, on a running server or with a model in this process."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AudioError, MoshiServerError, SessionError
from .options import ApiKey, CpuHere, ModelHere, ServerOrHere, key_for, only_one_place

if TYPE_CHECKING:
    from ..client.exchange import Link
    from ..client.reconnecting import ReconnectingEvent
    from ..speech.transcript import Transcript

STDIN = "-"
SUFFIXES = frozenset((".wav", ".mp3", ".flac", ".ogg", ".opus", ".oga"))
"""What counts as a recording in a folder."""
LONG_SECONDS = 10.0
"""Recordings from this length on get a progress bar."""


class Format(StrEnum):
    """How a transcript is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Recordings (wav, mp3, flac, ogg), or folders of them; - is the standard input.",
        ),
    ],
    url: ServerOrHere = None,
    api_key: ApiKey = None,
    config: ModelHere = None,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="json is one object a line, with the time of each word.")
    ] = Format.TEXT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a file for each recording into this folder.")
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Send as fast as one speaks, and show text as it comes.")
    ] = False,
    cpu: CpuHere = False,
) -> None:
    """Write down what is said in recordings. Exit status 1 if one of them failed.

    For example: moshi-server transcribe talk.mp3 --format srt > talk.srt; or a whole folder on a server:
    moshi-server transcribe recordings/ --output texts/ --url ws://HOST:8080 --api-key KEY
    """
    only_one_place(url, config, cpu)
    files = _expanded(files)
    if files.count(STDIN) > 1:
        raise typer.BadParameter("the standard input can be read once only")
    if len(files) > 1 and format in (Format.SRT, Format.VTT) and output is None:
        raise typer.BadParameter(f"{format} files of several recordings need a folder: add --output FOLDER")
    from .environment import load_dotenv

    load_dotenv()
    if url is not None:
        key = key_for(api_key)
        streams = streams_at(url, key)
    else:
        from .local import streams_of

        streams = streams_of(config or "demo", cpu=cpu, notice=notice)
    failed = asyncio.run(_all(files, streams, format, output, realtime=realtime))
    raise typer.Exit(1 if failed else 0)


Streams = AbstractAsyncContextManager[Callable[[], AbstractAsyncContextManager["Link"]]]
"""Gives, while it is entered, a fresh stream at each call."""


@asynccontextmanager
async def streams_at(
    url: str, key: str | None, *, turns: bool = False
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Link]]]:
    """Each call, while entered, opens a stream of this server; with ``turns`` it tells of them.

    A stream outlives its connection, so that a server that is started anew costs a recording nothing.
    """
    from ..client import ReconnectingAsrClient

    yield lambda: ReconnectingAsrClient.connect(url, api_key=key, turns=turns)


async def _all(files: list[str], streams: Streams, format: Format, output: Path | None, *, realtime: bool) -> int:
    """Transcribe each file in turn; returns how many failed."""
    from . import error_line

    targets = _targets(files, format, output)
    failed = 0
    heard = 0.0
    async with streams as open_stream:
        started = time.monotonic()
        for file, target in zip(files, targets, strict=True):
            live = realtime and format is Format.TEXT and target is None
            try:
                transcript = await _one(file, open_stream, realtime=realtime, live=live)
            except (AudioError, SessionError) as error:
                failed += 1
                name = "standard input" if file == STDIN else file
                error.args = (error.message if name in error.message else f"{name}: {error.message}",)
                sys.stderr.write(error_line(error) + "\n")
                continue
            heard += transcript.duration
            text = "\n" if live else _written(file, transcript, format, named=len(files) > 1)
            if target is None:
                sys.stdout.write(text)
                sys.stdout.flush()
            else:
                target.write_text(text, encoding="utf-8")
                sys.stderr.write(f"{target}\n")
    if len(files) > 1:
        sys.stderr.write(_summary(len(files) - failed, failed, heard, time.monotonic() - started))
    return failed


def _summary(done: int, failed: int, heard: float, took: float) -> str:
    speed = f", {heard / took:.1f} times as fast as spoken" if took > 0 and heard else ""
    lost = f"; {failed} failed" if failed else ""
    return f"{done} recordings, {_clock(heard)} of audio in {_clock(took)}{speed}{lost}\n"


def _expanded(files: list[str]) -> list[str]:
    """The files named, and in place of each folder the recordings in it and below, by name.

    Raises:
        MoshiServerError: there are none in a folder.
    """
    found: list[str] = []
    for file in files:
        folder = Path(file)
        if file == STDIN or not folder.is_dir():
            found.append(file)
            continue
        inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not inside:
            raise MoshiServerError(f"{file} holds no recordings", hint=f"looked for {', '.join(sorted(SUFFIXES))}")
        found += map(str, inside)
    return found


async def _one(
    file: str, open_stream: Callable[[], AbstractAsyncContextManager[Link]], *, realtime: bool, live: bool
) -> Transcript:
    from ..audio import SAMPLE_RATE, read_audio
    from ..client.exchange import transcribe_over

    source: str | bytes = sys.stdin.buffer.read() if file == STDIN else file
    pcm = await asyncio.to_thread(read_audio, source, max_seconds=math.inf)
    seconds = len(pcm) / SAMPLE_RATE
    shown = sys.stderr.isatty() and not live and (realtime or seconds >= LONG_SECONDS)
    async with open_stream() as stream:
        with _progress_bar(Path(file).name, seconds) if shown else nullcontext() as tell:
            return await transcribe_over(
                stream, pcm, realtime=realtime, on_event=_say if live else tell_of_connection, on_progress=tell
            )


def _say(event: ReconnectingEvent) -> None:
    from ..events import Word

    tell_of_connection(event)
    if isinstance(event, Word) and event.text.strip():
        sys.stdout.write(event.text.strip() + " ")
        sys.stdout.flush()


def tell_of_connection(event: ReconnectingEvent) -> None:
    """A line of the error output, if the event is of a connection that was lost or is there again."""
    from ..client import ConnectionLost, ConnectionResumed

    match event:
        case ConnectionLost(url, reason):
            sys.stderr.write(f"\nwarning: {url} is gone ({reason.message}); trying again\n")
        case ConnectionResumed(url, seconds, _):
            sys.stderr.write(f"{url} goes on after {seconds:.1f} s\n")


def _written(file: str, transcript: Transcript, format: Format, *, named: bool) -> str:
    from ..speech.subtitles import to_srt, to_vtt

    match format:
        case Format.TEXT:
            return f"{file}: {transcript.text}\n" if named else f"{transcript.text}\n"
        case Format.JSON:
            return json.dumps({"file": file, **transcript.to_dict()}, ensure_ascii=False) + "\n"
        case Format.SRT:
            return to_srt(transcript.words)
        case Format.VTT:
            return to_vtt(transcript.words)


def _targets(files: list[str], format: Format, output: Path | None) -> list[Path | None]:
    """Where each transcript goes; None is the standard output.

    Raises:
        MoshiServerError: the folder cannot be made.
    """
    if output is None:
        return [None] * len(files)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoshiServerError(f"{output} cannot be used as a folder: {error.strerror}") from None
    ending = "txt" if format is Format.TEXT else format.value
    stems = ["stdin" if file == STDIN else Path(file).stem for file in files]
    # Two recordings of one stem keep their whole names apart, and two of one name their numbers.
    names = [stem if stems.count(stem) == 1 else Path(file).name for stem, file in zip(stems, files, strict=True)]
    names = [name if names.count(name) == 1 else f"{name}-{index + 1}" for index, name in enumerate(names)]
    return [output / f"{name}.{ending}" for name in names]


@contextmanager
def _progress_bar(name: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar on the error output, which the function that it gives moves to a number of seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=seconds, clock="")

        def tell(done: float) -> None:
            progress.update(task, completed=done, clock=f"{_clock(done)} of {_clock(seconds)}")

        tell(0)
        yield tell


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Show that something takes its time, on a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext():
        yield
