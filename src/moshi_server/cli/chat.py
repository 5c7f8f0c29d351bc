"""``moshi-server chat``: talk with a dialogue model on a server, by microphone and speakers or from file to file."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ApiKey, key_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..client import DialogueClient
    from .sinks import Write

    Frame = NDArray[np.float32]


def chat(
    recording: Annotated[
        str | None, typer.Argument(metavar="[RECORDING]", help="What you say; without it, the microphone.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A .wav, .ogg or .opus file for what the model says. Else speakers."),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="A running server; by default ws://127.0.0.1:8080.")] = None,
    api_key: ApiKey = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, such as text_temperature=0.7, seed=4, description=good; repeatable."),
    ] = None,
    after: Annotated[
        float, typer.Option("--after", min=0.0, help="Seconds to listen on after the end of the recording.")
    ] = 5.0,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="The microphone: its number, or a part of its name.")
    ] = None,
) -> None:
    """Talk with a dialogue model: its words are printed, its voice is heard or written to a file.

    For example: moshi-server chat; or: moshi-server chat question.wav -o answer.wav
    """
    from .environment import load_dotenv
    from .sinks import STDOUT, SUFFIXES

    if output is not None and (output == STDOUT or not output.endswith(SUFFIXES)):
        raise typer.BadParameter(f"the file must end in {', '.join(SUFFIXES)}", param_hint="--output")
    wrong = [each for each in setting or [] if not each.partition("=")[2]]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param_hint="--set")
    settings = dict(each.split("=", 1) for each in setting or [])
    load_dotenv()
    key = key_for(api_key)
    asyncio.run(_chat(url, key, settings, recording, output, after, device))


async def _chat(
    url: str | None,
    key: str | None,
    settings: dict[str, str],
    recording: str | None,
    output: str | None,
    after: float,
    device: str | None,
) -> None:
    from ..client import DialogueClient
    from ..client.connecting import DEFAULT_URL
    from ..client.exchange import load
    from .sinks import sink_for

    said = None if recording is None else await asyncio.to_thread(load, recording)
    async with (
        DialogueClient.connect(url or DEFAULT_URL, api_key=key, settings=settings) as client,
        _until_stopped() as stopped,
    ):
        with sink_for(output) as write:
            saying = _hear_microphone(client, device) if said is None else _say(client, said, after)
            talking = asyncio.create_task(saying)
            listening = asyncio.create_task(_listen(client, write))
            try:
                await asyncio.wait({talking, listening, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for task in (listening, talking):  # if the stream has ended, the listening side knows why
                    if task.done():
                        task.result()
            finally:
                for task in (talking, listening):
                    task.cancel()
                await asyncio.gather(talking, listening, return_exceptions=True)
                sys.stdout.write("\n")


@asynccontextmanager
async def _until_stopped() -> AsyncIterator[asyncio.Task[bool]]:
    """A task that is done once Ctrl+C is pressed."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    waiting = asyncio.create_task(stop.wait())
    try:
        yield waiting
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


async def _say(client: DialogueClient, pcm: Frame, after: float) -> None:
    """Send a recording at the pace of speech, then listen on."""
    from ..audio import FRAME_SIZE, SAMPLE_RATE, chunks

    begun = time.monotonic()
    for index, chunk in enumerate(chunks(pcm, FRAME_SIZE)):
        await asyncio.sleep(begun + index * FRAME_SIZE / SAMPLE_RATE - time.monotonic())
        await client.send_audio(chunk)
    await client.control("end_turn")
    await asyncio.sleep(after)


async def _hear_microphone(client: DialogueClient, device: str | None) -> None:
    from .mic import HeardFrames, microphone
    from .sound import sound_library

    frames = HeardFrames(asyncio.get_running_loop())
    sound = sound_library("to hear the microphone", instead="name a recording")
    with microphone(sound, device, frames.push):
        if sys.stderr.isatty():
            sys.stderr.write("Talk; Ctrl+C ends it.\n")
        while (frame := await frames.get()) is not None:
            await client.send_audio(frame)


async def _listen(client: DialogueClient, write: Write) -> None:
    """Print what the model says, and hand its sound on."""
    from ..events import Audio, Text

    async for event in client:
        if isinstance(event, Text):
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif isinstance(event, Audio):
            write(event.pcm)
