"""``moshi-server say``: text to speech, from a running server or with a model in this process."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MoshiServerError
from .options import ApiKey, key_for, only_one_place

if TYPE_CHECKING:
    from ..client.speaking import SpeechEvent, SpeechLink

STDIN = "-"
TTS_TYPES = ("Py", "Tts", "PocketTts")


def say(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT...]", help="What is said; without it, what is typed or piped in."),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="A text file; - is the standard input.")] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A .wav, .ogg or .opus file; - is a wav on the standard output. Else speakers."
        ),
    ] = None,
    voice: Annotated[str | None, typer.Option("--voice", "-v", help="A name out of GET /api/voices.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="To hear the same speech again.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the sampling; the server knows best.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="A running server; by default ws://127.0.0.1:8080.")] = None,
    api_key: ApiKey = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Run this configuration's model here, instead of asking a server.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU (with --config).")] = False,
) -> None:
    """Say a text: to the speakers or into a file, beginning before it is complete.

    For example: moshi-server say "Good morning." -o morning.wav --url ws://HOST:8080 --api-key KEY
    """
    from .sinks import STDOUT, SUFFIXES

    if text and file is not None:
        raise typer.BadParameter("give the text or a file, not both")
    only_one_place(url, config, cpu)
    if output not in (None, STDOUT) and not str(output).endswith(SUFFIXES):
        raise typer.BadParameter(f"the file must end in {', '.join(SUFFIXES)}", param_hint="--output")
    from .environment import load_dotenv

    load_dotenv()
    source = " ".join(text) if text else _source(file)
    if config is not None:
        stream = _local(config, cpu, voice, seed, temperature)
    else:
        key = key_for(api_key)
        stream = _server(url, key, voice, seed, temperature)
    with _progress(quiet=output == STDOUT) as tell:
        asyncio.run(_say(stream, source, output, tell))


Stream = AbstractAsyncContextManager["SpeechLink"]


async def _say(
    stream: Stream,
    source: str | Callable[[], AsyncIterator[str]],
    output: str | None,
    tell: Callable[[SpeechEvent], None],
) -> None:
    from ..client.speaking import speak_over
    from ..events import Audio
    from .sinks import sink_for

    write: Callable[..., None] | None = None

    async with stream as link:
        with ExitStack() as stack:

            def on_event(event: SpeechEvent) -> None:
                nonlocal write
                if isinstance(event, Audio):
                    if write is None:  # only now: a file is not overwritten for a voice that does not exist
                        write = stack.enter_context(sink_for(output))
                    write(event.pcm)
                tell(event)

            await speak_over(link, source if isinstance(source, str) else source(), on_event=on_event, keep=False)
            if write is None:
                stack.enter_context(sink_for(output))


@asynccontextmanager
async def _server(
    url: str | None, key: str | None, voice: str | None, seed: int | None, temperature: float | None
) -> AsyncIterator[SpeechLink]:
    from ..client import TtsClient
    from ..client.connecting import DEFAULT_URL

    connecting = TtsClient.connect(url or DEFAULT_URL, api_key=key, voice=voice, seed=seed, temperature=temperature)
    async with connecting as client:
        yield client


@asynccontextmanager
async def _local(
    config: str, cpu: bool, voice: str | None, seed: int | None, temperature: float | None
) -> AsyncIterator[SpeechLink]:
    from ..events import SpeechSettings
    from .local import streams_of
    from .transcribe import notice

    async with streams_of(config, cpu=cpu, notice=notice, types=TTS_TYPES) as open_stream, open_stream() as session:
        await session.send(SpeechSettings(voice=voice, seed=seed, temperature=temperature))
        yield session


def _source(file: str | None) -> str | Callable[[], AsyncIterator[str]]:
    """The text of a file, or pieces of the standard input as they come.

    Raises:
        MoshiServerError: the file cannot be read.
    """
    if file is None or file == STDIN:
        if sys.stdin.isatty():
            sys.stderr.write("Type what is to be said; Ctrl+D ends it.\n")
        return _typed
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise MoshiServerError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MoshiServerError(f"{file} is not text in UTF-8") from None


async def _typed() -> AsyncIterator[str]:
    """The standard input, in pieces as they come."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while data := os.read(sys.stdin.fileno(), 4096):
                loop.call_soon_threadsafe(pieces.put_nowait, decoder.decode(data))
            loop.call_soon_threadsafe(pieces.put_nowait, None)
        except RuntimeError:
            pass  # the speech has ended before the text, and the loop with it

    # A daemon: nothing can end a thread that waits for the keyboard.
    threading.Thread(target=read, daemon=True).start()
    while (piece := await pieces.get()) is not None:
        yield piece


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[SpeechEvent], None]]:
    """Show on a terminal how much has been said, and which word was last."""
    from ..audio import SAMPLE_RATE
    from ..events import Audio

    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    samples, last = 0, ""
    with Console(stderr=True).status("Waiting for the first sound") as status:

        def tell(event: SpeechEvent) -> None:
            nonlocal samples, last
            if isinstance(event, Audio):
                samples += len(event.pcm)
            else:
                last = event.text
            status.update(f"{samples / SAMPLE_RATE:5.1f} s  {last}")

        yield tell
