"""``moshi-server demo``: starts a worker on the embedded model, transcribes recordings through it, and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors import MoshiServerError

API_KEY = "public_token"
START_SECONDS = 120.0
AUDIO_SUFFIXES = {".wav", ".ogg", ".flac", ".mp3"}


def demo(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Recordings; those that come with the package by default."),
    ] = None,
) -> None:
    """Show that it works: embedded model, real server, real protocol, words with their times.

    For example: moshi-server demo; or: moshi-server demo my-recording.wav
    """
    from ..audio import read_audio
    from ..client import transcribe

    # Read before anything starts: a wrong path is to cost nothing.
    recordings = [(path, read_audio(path)) for path in files or samples()]
    if not recordings:
        raise MoshiServerError("no recordings come with this installation", hint="name one: moshi-server demo FILE")
    started = time.perf_counter()
    with running_worker("demo") as url:
        typer.echo(f"The worker is ready at {url} after {time.perf_counter() - started:.1f} s.")
        for path, pcm in recordings:
            before = time.perf_counter()
            transcript = transcribe(pcm, url, api_key=API_KEY)
            seconds = time.perf_counter() - before
            typer.echo(f"\n{path.name}: {transcript.duration:.1f} s of audio in {seconds:.1f} s")
            if spoken := _spoken(path):
                typer.echo(f"  spoken: {spoken}")
            typer.echo(f"  heard:  {transcript.text}")
            for word in transcript.words:
                typer.echo(f"  {word.start:6.2f} s  {word.text}")
    typer.echo("\nThe same by hand: `moshi-server worker --config demo`, then `moshi-server transcribe FILE`.")


def samples() -> list[Path]:
    """The recordings that come with the package."""
    folder = Path(str(resources.files("moshi_server") / "demo"))
    return sorted(path for path in folder.rglob("*") if path.suffix in AUDIO_SUFFIXES)


def _spoken(path: Path) -> str:
    """What is said in a recording, if a text of the same name lies beside it."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else ""


@contextmanager
def running_worker(config: str, *, program: str = "moshi_server.cli") -> Iterator[str]:
    """Run a worker of its own process on a free port of this machine; gives its URL, and ends it afterwards.

    Args:
        config: a file, or the name of a shipped configuration.
        program: the module whose command line has ``worker``.

    Raises:
        MoshiServerError: it has not started; says what it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", program, "worker", "--config", config]
    command += ["--addr", "127.0.0.1", "--port", str(port), "--cpu", "--log", "warn"]
    with tempfile.TemporaryFile() as said:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)  # noqa: S603
        try:
            if not _healthy(f"http://127.0.0.1:{port}/api/health", process):
                _complain(process, said.fileno())
            yield f"ws://127.0.0.1:{port}"
        finally:
            _end(process)


def _healthy(url: str, process: subprocess.Popen[bytes]) -> bool:
    import httpx

    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            # The address is this machine's own: no proxy of the environment has a say.
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def _complain(process: subprocess.Popen[bytes], said: int) -> NoReturn:
    os.lseek(said, 0, os.SEEK_SET)
    lines = os.read(said, 65536).decode(errors="replace").strip().splitlines()
    why = lines[-1].strip() if lines else "it said nothing"
    if process.poll() is None:
        why = f"not ready after {START_SECONDS:.0f} s; {why}"
    raise MoshiServerError(f"the worker has not started: {why}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
