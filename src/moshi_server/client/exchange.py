"""A recording through a stream and its words back, whether the stream is a socket or an engine in this process."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..audio import FRAME_SIZE, SAMPLE_RATE, chunks, read_audio
from ..errors import AudioError, MoshiServerError, SessionError
from ..events import AsrServerEvent, Audio, Flush
from ..speech.transcript import Transcript, TranscriptBuilder

Recording = str | os.PathLike[str] | bytes | NDArray[Any]
"""A path, the bytes of an audio file, or samples at 24 kHz of shape (samples,)."""

CHUNK = 6 * FRAME_SIZE
"""Samples of one message when there is no hurry to be real-time."""


class Link(Protocol):
    """A speech-to-text stream: `AsrClient`, or an engine's session."""

    async def send(self, event: Any) -> None:
        """Hand over one client event; waits while no more is taken."""
        ...

    async def receive(self) -> Sequence[Any]:
        """The next server events, at least one; none if the stream was closed."""
        ...


def load(audio: Recording) -> NDArray[np.float32]:
    """Whatever a recording is given as, to samples (samples,) at 24 kHz.

    Raises:
        AudioError: it cannot be read.
    """
    return samples(audio) if isinstance(audio, np.ndarray) else read_audio(audio, max_seconds=math.inf)


def samples(pcm: ArrayLike) -> NDArray[np.float32]:
    """Samples as the protocol has them: float32 of shape (samples,); 16-bit integers are scaled to full scale 1.

    Raises:
        AudioError: more than one dimension, or not numbers.
    """
    array = np.asarray(pcm)
    if array.ndim != 1:
        raise AudioError(
            f"audio must be mono samples of shape (samples,), not {array.shape}", hint="average the channels first"
        )
    if array.dtype == np.int16:
        return array.astype(np.float32) / np.float32(32768)
    if not np.issubdtype(array.dtype, np.floating) and array.size:
        raise AudioError(f"samples must be floats between -1 and 1, or int16; these are {array.dtype}")
    return array.astype(np.float32, copy=False)


async def transcribe_over(
    link: Link,
    pcm: NDArray[np.float32],
    *,
    realtime: bool = False,
    on_event: Callable[[AsrServerEvent], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Transcript:
    """Send samples (samples,) through a fresh stream, flush it, and return its words.

    Raises:
        SessionError: the stream ended before all words were there.
    """
    builder = TranscriptBuilder()
    duration = len(pcm) / SAMPLE_RATE
    sent = 0.0
    told = 0.0

    def progress(seconds: float) -> None:
        nonlocal told
        if on_progress is not None and seconds > told:
            told = seconds
            on_progress(min(duration, seconds))

    async def send() -> None:
        nonlocal sent
        begun = time.monotonic()
        for chunk in chunks(pcm, FRAME_SIZE if realtime else CHUNK):
            sent += len(chunk) / SAMPLE_RATE
            if realtime:  # a microphone hands over a frame when it is over, not when it begins
                await asyncio.sleep(begun + sent - time.monotonic())
            await link.send(Audio(chunk))
            if not builder.heard:  # no word yet, or a model that tells no steps: what was taken is all we know
                progress(sent)
        await link.send(Flush())

    async def receive() -> None:
        while events := await link.receive():
            for event in events:
                if isinstance(event, Flush):
                    progress(duration)
                    return
                builder.add(event)
                if on_event is not None:
                    on_event(event)
                progress(builder.heard)
        raise SessionError("the stream was closed before every word had come")

    sending, receiving = asyncio.create_task(send()), asyncio.create_task(receive())
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_EXCEPTION)
        error = sending.exception() if sending.done() else None
        if error is not None and not isinstance(error, MoshiServerError):
            raise error
        await receiving  # if the stream has ended, this side knows why
    finally:
        sending.cancel()
        receiving.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
    return builder.build(duration)
