"""``moshi-server mic``: live words from the microphone in the terminal, by a server or by a model in this process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MoshiServerError
from .options import ApiKey, CpuHere, ModelHere, ServerOrHere, key_for, only_one_place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..client.exchange import Link

    Frame = NDArray[np.float32]

PARAGRAPH_SECONDS = 1.5
"""A silence from which on the next word begins a new line, where nobody tells of turns."""
MAX_WAITING = 375
"""Frames that may wait to be sent: half a minute. More is dropped, with a word about it."""


def mic(
    url: ServerOrHere = None,
    api_key: ApiKey = None,
    config: ModelHere = None,
    cpu: CpuHere = False,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="The microphone: its number, or a part of its name.")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list", help="List the microphones and exit.")] = False,
) -> None:
    """Write down what is said into the microphone, word by word, until Ctrl+C.

    For example: moshi-server mic; or, on a server: moshi-server mic --url ws://HOST:8080 --api-key KEY
    """
    from .environment import load_dotenv
    from .sound import sound_library
    from .transcribe import notice, streams_at

    only_one_place(url, config, cpu)
    sound = sound_library("to hear the microphone")
    if list_devices:
        typer.echo(_devices(sound))
        return
    load_dotenv()
    if url is not None:
        streams = streams_at(url, key_for(api_key), turns=True)
    else:
        from .local import streams_of

        streams = streams_of(config or "demo", cpu=cpu, notice=notice)
    asyncio.run(_listen(sound, device, streams))


async def _listen(
    sound: Any,
    device: str | None,
    streams: AbstractAsyncContextManager[Callable[[], AbstractAsyncContextManager[Link]]],
) -> None:
    loop = asyncio.get_running_loop()
    frames = HeardFrames(loop)

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl+C does not wait for the last words
        frames.end()

    async with streams as open_stream, open_stream() as stream:
        loop.add_signal_handler(signal.SIGINT, stop)
        with microphone(sound, device, frames.push):
            if sys.stderr.isatty():
                sys.stderr.write("Speak; Ctrl+C ends it.\n")
            sending = asyncio.create_task(_send(stream, frames))
            try:
                await _show(stream)
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending


async def _send(stream: Link, frames: HeardFrames) -> None:
    from ..events import Audio, Flush

    while (frame := await frames.get()) is not None:
        await stream.send(Audio(frame))
    await stream.send(Flush())


class HeardFrames:
    """Frames on their way from the sound library's thread to an event loop, never more than `MAX_WAITING`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Frame] = deque()
        self._news = asyncio.Event()
        self._lost = False
        self._ended = False

    def push(self, frame: Frame) -> None:
        """Add a frame, on the sound library's thread; one too many is dropped, with a word about it once."""
        if self._ended:
            return
        # Counted here: what is handed to a loop that does not keep up is counted nowhere.
        if len(self._waiting) >= MAX_WAITING:
            if not self._lost:
                self._lost = True
                sys.stderr.write("\nwarning: too slow for this microphone; some of what it hears is lost\n")
            return
        self._waiting.append(frame)
        if not self._news.is_set():
            self._loop.call_soon_threadsafe(self._news.set)

    def end(self) -> None:
        """No more frames; on the event loop."""
        self._ended = True
        self._news.set()

    async def get(self) -> Frame | None:
        """The next frame, or None after the last."""
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            if not self._waiting:  # looked at again: one may have come before the clear
                await self._news.wait()
        return self._waiting.popleft()


async def _show(stream: Link) -> None:
    """Print words until the flush is answered; a new line after each turn, or after a silence."""
    from ..events import EndWord, Flush, Turn, Word
    from .transcribe import tell_of_connection

    line, stop = False, 0.0
    while events := await stream.receive():
        for event in events:
            tell_of_connection(event)
            match event:
                case Word(text, start) if text.strip():
                    new = line and start - stop >= PARAGRAPH_SECONDS
                    sys.stdout.write(f"{chr(10) if new else ''}{text.strip()} ")
                    line, stop = True, max(stop, start)
                case EndWord(time):
                    stop = max(stop, time)
                case Turn(kind) if kind == "end" and line:
                    sys.stdout.write("\n")
                    line = False
                case Flush():
                    sys.stdout.write("\n" if line else "")
                    return
        sys.stdout.flush()


@contextmanager
def microphone(sound: Any, device: str | None, heard: Callable[[Frame], object]) -> Iterator[None]:
    """Call ``heard``, on a thread of the sound library, with frames at 24 kHz.

    Raises:
        MoshiServerError: there is no such microphone, or it cannot be used.
    """
    import numpy as np

    from ..audio import FRAME_SIZE, SAMPLE_RATE

    which: Any = int(device) if device is not None and device.isdecimal() else device
    try:
        rate = _rate(sound, which)
        convert: Callable[[Frame], Frame] | None = np.copy
        if rate != SAMPLE_RATE:
            import soxr

            convert = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32").resample_chunk

        def callback(block: Any, _frames: int, _time: Any, _status: Any) -> None:
            if convert is not None:
                heard(convert(np.ascontiguousarray(block[:, 0])))

        stream = sound.InputStream(
            samplerate=rate,
            blocksize=FRAME_SIZE * rate // SAMPLE_RATE,
            channels=1,
            dtype="float32",
            device=which,
            callback=callback,
        )
    except Exception as error:
        raise MoshiServerError(
            f"the microphone cannot be used: {error}", hint="moshi-server mic --list shows those that are there"
        ) from None
    try:
        with stream:
            yield
    finally:
        convert = None  # the library's thread may keep the callback; the resampler is not to outlive Python


def _rate(sound: Any, device: Any) -> int:
    """24 kHz where the device can, else its own."""
    from ..audio import SAMPLE_RATE

    try:
        sound.check_input_settings(device=device, channels=1, samplerate=SAMPLE_RATE, dtype="float32")
    except sound.PortAudioError:
        return int(sound.query_devices(device, "input")["default_samplerate"])
    return SAMPLE_RATE


def _devices(sound: Any) -> str:
    rows = [
        f"{index:3}  {entry['name']} ({entry['max_input_channels']} channels, {entry['default_samplerate']:.0f} Hz)"
        for index, entry in enumerate(sound.query_devices())
        if entry["max_input_channels"]
    ]
    return "\n".join(rows) or "there is no microphone"
