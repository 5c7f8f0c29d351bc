"""What the pump needs of a protocol, and how speech to text fills it: bytes in, events out, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from ..audio import OpusDecoder
from ..errors import AudioError, InvalidMessageError
from ..events import Audio, Error, Flush, Init, OggOpus, Turn
from ..protocol import asr


class Wire(Protocol):
    """One client's protocol. It may keep state, such as a half-received Opus page."""

    def decode(self, data: bytes) -> Iterator[Any]:
        """The events of one binary message, one at a time.

        Raises:
            InvalidMessageError: for what is not of the protocol.
        """
        ...

    def encode(self, event: Any) -> bytes | None:
        """One event as a binary message, or None if this client did not ask for it."""
        ...

    def farewell(self, message: str) -> bytes | str:
        """The message that says why the stream ends; empty if the protocol has none."""
        ...


class AsrWire:
    """Speech to text. Opus is decoded here, and the end of an Ogg stream asks for the words still pending.

    Args:
        turns: whether the client asked for `Turn` events.
    """

    def __init__(self, *, turns: bool = False) -> None:
        self._turns = turns
        self._opus = OpusDecoder()

    def decode(self, data: bytes) -> Iterator[Any]:
        """The events of one binary message: one, but for Opus, where it is as many as there is audio."""
        event = asr.decode(data)
        if isinstance(event, OggOpus):
            yield from self._decode_opus(event.data)
        else:
            if isinstance(event, Init):
                self._opus = OpusDecoder()
            yield event

    def quick(self, data: bytes) -> Audio | None:
        """What almost every message is, samples, without the detours; None for all else, and what is not right."""
        return asr.decode_samples(data)

    def encode(self, event: Any) -> bytes | None:
        """One event as a binary message."""
        return None if isinstance(event, Turn) and not self._turns else asr.encode(event)

    def farewell(self, message: str) -> bytes:
        """An `Error` message."""
        return asr.encode(Error(message))

    def _decode_opus(self, data: bytes) -> Iterator[Audio | Flush]:
        if self._opus.ended:
            self._opus = OpusDecoder()  # another stream may follow
        try:
            # A page at a time: a few bytes can hold minutes, and the session decides when it can take more.
            for pcm in self._opus.decode(data):
                yield Audio(pcm)
        except AudioError as error:
            raise InvalidMessageError(f"'data' cannot be decoded: {error.message}", hint=error.hint) from error
        if self._opus.ended:
            yield Flush()
