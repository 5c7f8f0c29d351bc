"""A text through a stream and its speech back, whether the stream is a socket or an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..audio import SAMPLE_RATE
from ..errors import InvalidMessageError, MoshiServerError
from ..events import Audio, Eos, SpokenWord, Text
from ..speech.text import PieceJoiner

SpeechEvent = Audio | SpokenWord


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """What was said.

    Attributes:
        pcm: 24 kHz mono float32 of shape (samples,).
        words: each word with its times in ``pcm``.
    """

    pcm: NDArray[np.float32]
    words: tuple[SpokenWord, ...]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.pcm) / SAMPLE_RATE


class SpeechLink(Protocol):
    """A text-to-speech stream: `TtsClient`, or an engine's session."""

    async def send(self, event: Any) -> None:
        """Hand over one client event; waits while no more is taken."""
        ...

    async def receive(self) -> Sequence[Any]:
        """The next server events, at least one; none once everything was said."""
        ...


async def speak_over(
    link: SpeechLink,
    text: str | AsyncIterable[str],
    *,
    on_event: Callable[[SpeechEvent], None] | None = None,
    keep: bool = True,
) -> Speech:
    """Send a text, or pieces of it cut anywhere as they come, and return its speech.

    Args:
        link: a fresh stream.
        text: all of it, or pieces.
        on_event: is told each event as it comes.
        keep: collect the samples; else ``pcm`` stays empty, for texts without end.

    Raises:
        SessionError: the stream ended before everything was said.
    """
    parts: list[NDArray[np.float32]] = []
    words: list[SpokenWord] = []

    async def send() -> None:
        joiner = PieceJoiner()
        if isinstance(text, str):
            await link.send(Text(text))
        else:
            async for piece in text:
                if whole := joiner.push(piece):
                    await link.send(Text(whole))
            if rest := joiner.finish():
                await link.send(Text(rest))
        await link.send(Eos())

    async def receive() -> None:
        while events := await link.receive():
            for event in events:
                if not isinstance(event, Audio | SpokenWord):
                    continue
                if on_event is not None:
                    on_event(event)
                if isinstance(event, SpokenWord):
                    words.append(event)
                elif keep:
                    parts.append(event.pcm)

    sending, receiving = asyncio.create_task(send()), asyncio.create_task(receive())
    try:
        # A stream may end before its text does: at a limit, or with an error, which `receiving` knows.
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        error = sending.exception() if sending.done() else None
        if error is not None and not isinstance(error, MoshiServerError):
            raise error
        await receiving  # if the stream has ended, this side knows why
    finally:
        sending.cancel()
        receiving.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
    return Speech(np.concatenate(parts) if parts else np.zeros(0, np.float32), tuple(words))


def embedding_of(values: ArrayLike) -> NDArray[np.float32]:
    """A voice's embedding as the protocol has it, float32 of one to three dimensions.

    Raises:
        InvalidMessageError: it has another shape, or is not of numbers.
    """
    array = np.asarray(values)
    if not 1 <= array.ndim <= 3 or not array.size or not np.issubdtype(array.dtype, np.number):
        raise InvalidMessageError(f"an embedding has 1 to 3 dimensions of numbers, not {array.dtype} {array.shape}")
    return array.astype(np.float32, copy=False)
