"""MessagePack maps with a ``type`` key, as every protocol here but the dialogue's has them: reading what is common."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import ormsgpack
from numpy.typing import NDArray

from ..errors import InvalidMessageError

_CELLS: Final = {
    0xCA: np.dtype([("tag", "u1"), ("value", ">f4")]),
    0xCB: np.dtype([("tag", "u1"), ("value", ">f8")]),
}
_DOUBLE: Final = 0xCB
_PIECE: Final = 480
"""Numbers copied at once: numpy keeps the interpreter's lock for up to 500."""


def unpack(data: bytes) -> dict[str, Any]:
    """A MessagePack map with string keys.

    Raises:
        InvalidMessageError: for any other bytes.
    """
    if not data:
        raise InvalidMessageError("the message is empty", hint="send one MessagePack map a message")
    try:
        fields = ormsgpack.unpackb(data)
    except ValueError as error:
        raise InvalidMessageError(f"the message is not valid MessagePack: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidMessageError(f"the message must be a MessagePack map, not {kind_of(fields)}")
    return fields


def float_cells(data: bytes, head: bytes) -> NDArray[np.float32] | None:
    """The numbers of a message that is ``head`` and one array of only float32 or only float64 cells, else None.

    They are read in place, of shape (count,), which is 8 times as fast as the general decoder.
    """
    if not data.startswith(head):
        return None
    at = len(head)
    match data[at : at + 1]:
        case b"\xdc":
            count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        case b"\xdd":
            count, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
        case bytes(short) if short and 0x90 <= short[0] <= 0x9F:
            count, at = short[0] & 0x0F, at + 1
        case _:
            return None
    if count == 0 or at >= len(data):
        return None
    tag = data[at]
    cell = _CELLS.get(tag)
    if cell is None or len(data) - at != count * cell.itemsize:
        return None
    # Bytes are compared, and numbers copied in small pieces, since numpy lets go of the interpreter's lock for more:
    # each time the model's thread may take it, and this one has to ask for it back.
    if data[at :: cell.itemsize] != bytes((tag,)) * count:
        return None
    values = np.frombuffer(data, dtype=cell, offset=at)["value"]
    if tag == _DOUBLE:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is then refused
            return values.astype(np.float32)
    pcm = np.empty(count, dtype=np.float32)
    for start in range(0, count, _PIECE):
        pcm[start : start + _PIECE] = values[start : start + _PIECE]
    return pcm


def octets(value: Any) -> bytes:
    """Bytes that came as such or as an array of integers.

    Raises:
        InvalidMessageError: they are neither.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, list):
        raise InvalidMessageError(f"'data' must be bytes or an array of integers from 0 to 255, not {kind_of(value)}")
    if set(map(type, value)) - {int}:
        raise InvalidMessageError("'data' must hold integers from 0 to 255 only")
    try:
        return bytes(value)
    except ValueError:
        raise InvalidMessageError("'data' must hold integers from 0 to 255 only") from None


def field(fields: dict[str, Any], name: str) -> Any:
    """What a message holds under a name.

    Raises:
        InvalidMessageError: nothing.
    """
    try:
        return fields[name]
    except KeyError:
        raise InvalidMessageError(f"a message of type {fields['type']} needs {name!r}") from None


_KINDS: Final[dict[type, str]] = {
    dict: "a map",
    list: "an array",
    str: "a string",
    bytes: "bytes",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    type(None): "nil",
}


def kind_of(value: Any) -> str:
    """What a value is, in the words of MessagePack."""
    return kind_name(type(value))


def kind_name(kind: type) -> str:
    """What values of this type are, in the words of MessagePack."""
    return _KINDS.get(kind, kind.__name__)
