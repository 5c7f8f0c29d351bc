"""Dialogue and rooms on the wire: binary frames whose first byte is their kind, as upstream and its clients speak.

Numbers are little-endian. A kind that is not known is no error: upstream discards it, and so does `decode`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidMessageError


class Kind(IntEnum):
    """The first byte of a frame."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6
    COLOURED_TEXT = 7
    IMAGE = 8
    CODES = 9


class Action(IntEnum):
    """What a control frame asks for."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its kind, and the bytes after it."""

    kind: Kind
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """The binary message."""
        return bytes((self.kind,)) + self.payload

    @property
    def text(self) -> str:
        """The payload of `Kind.TEXT` or `Kind.ERROR`.

        Raises:
            InvalidMessageError: it is not UTF-8.
        """
        return _utf8(self.payload)

    @property
    def coloured_text(self) -> tuple[int, str]:
        """Colour and text of `Kind.COLOURED_TEXT`.

        Raises:
            InvalidMessageError: there is no colour, or the text is not UTF-8.
        """
        if not self.payload:
            raise InvalidMessageError("a coloured text needs a byte for its colour")
        return self.payload[0], _utf8(self.payload[1:])

    @property
    def action(self) -> Action:
        """What `Kind.CONTROL` asks for.

        Raises:
            InvalidMessageError: it is not one byte from 0 to 3.
        """
        if len(self.payload) != 1 or self.payload[0] > max(Action):
            raise InvalidMessageError("a control frame holds one byte: 0 start, 1 end turn, 2 pause, 3 restart")
        return Action(self.payload[0])

    @property
    def metadata(self) -> Any:
        """The JSON value of `Kind.METADATA`.

        Raises:
            InvalidMessageError: it is not JSON.
        """
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError):
            raise InvalidMessageError("the metadata is not JSON") from None

    @property
    def codes(self) -> NDArray[np.uint32]:
        """The codes of `Kind.CODES`, of shape (codebooks,).

        Raises:
            InvalidMessageError: their bytes are not whole 32-bit numbers.
        """
        if len(self.payload) % 4:
            raise InvalidMessageError(f"codes are 32-bit numbers, but {len(self.payload)} bytes came")
        return np.frombuffer(self.payload, dtype="<u4").astype(np.uint32)


PING: Final = Frame(Kind.PING)


def decode(data: bytes) -> Frame | None:
    """The frame in one binary message, or None for an empty message or a kind that is not known."""
    if not data or data[0] not in _KINDS:
        return None
    return Frame(Kind(data[0]), data[1:])


def handshake(protocol_version: int = 0, model_version: int = 0) -> Frame:
    """The first frame that a server sends: 9 bytes in all."""
    return Frame(Kind.HANDSHAKE, protocol_version.to_bytes(4, "little") + model_version.to_bytes(4, "little"))


def text(words: str) -> Frame:
    """A piece of text."""
    return Frame(Kind.TEXT, words.encode())


def coloured_text(colour: int, words: str) -> Frame:
    """A piece of text with a colour from 0 to 255."""
    return Frame(Kind.COLOURED_TEXT, bytes((colour,)) + words.encode())


def error(message: str) -> Frame:
    """Why the stream ends."""
    return Frame(Kind.ERROR, message.encode())


def metadata(value: Any) -> Frame:
    """Any JSON value."""
    return Frame(Kind.METADATA, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def codes(values: NDArray[np.integer[Any]]) -> Frame:
    """One frame's codes, of shape (codebooks,)."""
    return Frame(Kind.CODES, values.astype("<u4").tobytes())


_KINDS: Final = frozenset(Kind)


def _utf8(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise InvalidMessageError("the text is not UTF-8") from None
