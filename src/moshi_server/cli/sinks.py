"""Where speech goes as it comes: a wav or Ogg/Opus file, the standard output, or the speakers; it knows no server."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..audio import SAMPLE_RATE, OpusEncoder, pcm16, wav_header
from ..errors import MoshiServerError
from .sound import sound_library

Pcm = NDArray[np.float32]
Write = Callable[[Pcm], None]

STDOUT = "-"
SUFFIXES = (".wav", ".ogg", ".opus")


@contextmanager
def sink_for(output: str | None) -> Iterator[Write]:
    """A function that takes samples (samples,) as they come; what they make is whole when the block ends.

    Args:
        output: a path that ends in one of `SUFFIXES`; ``-`` for a wav on the standard output; None for the speakers.

    Raises:
        MoshiServerError: it cannot be written, or there are no speakers.
    """
    if output is None:
        with _speakers() as write:
            yield write
    elif output == STDOUT:
        with _wav(sys.stdout.buffer) as write:
            yield write
    else:
        make = _wav if Path(output).suffix == ".wav" else _opus
        with _open(output) as file, make(file) as write:
            yield write


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    try:
        file = Path(path).open("wb")  # noqa: SIM115
    except OSError as error:
        raise MoshiServerError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def _wav(file: IO[bytes]) -> Iterator[Write]:
    file.write(wav_header())
    size = 0

    def write(pcm: Pcm) -> None:
        nonlocal size
        size += file.write(pcm16(pcm))
        file.flush()

    try:
        yield write
    finally:
        if file.seekable():  # a pipe keeps a header that leaves the length open
            file.seek(0)
            file.write(wav_header(size))


@contextmanager
def _opus(file: IO[bytes]) -> Iterator[Write]:
    encoder = OpusEncoder()
    file.write(encoder.header())

    def write(pcm: Pcm) -> None:
        file.write(encoder.encode(pcm))
        file.flush()

    try:
        yield write
    finally:
        file.write(encoder.finish())


@contextmanager
def _speakers() -> Iterator[Write]:
    sound = sound_library("to play sound", instead="write a file: -o FILE.wav")
    waiting: deque[Pcm] = deque()
    played = threading.Event()
    over = False

    def fill(out: NDArray[np.float32], _frames: int, _time: Any, _status: Any) -> None:
        at = 0
        while at < len(out) and waiting:
            part = waiting.popleft()
            room = len(out) - at
            out[at : at + len(part), 0] = part[:room]
            if len(part) > room:
                waiting.appendleft(part[room:])
            at += min(room, len(part))
        out[at:] = 0
        if over and not waiting:
            raise sound.CallbackStop

    try:
        stream = sound.OutputStream(
            samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=fill, finished_callback=played.set
        )
    except Exception as error:
        raise MoshiServerError(
            f"there are no speakers here: {error}", hint="write a file instead: -o FILE.wav"
        ) from None
    with stream:
        yield waiting.append
        over = True
        while not played.wait(0.1):  # so that Ctrl+C is heard meanwhile
            pass
