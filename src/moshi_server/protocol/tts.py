"""Text to speech on the wire: MessagePack bytes to events and back, as upstream's `rmp_serde` reads and writes them.

Two of the four formats carry no MessagePack out at all; which one a client asked for is not known here.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import ormsgpack
from numpy.typing import NDArray

from ..errors import InvalidMessageError
from ..events import Audio, Eos, Error, GoingAway, OggOpus, Ready, SpokenWord, Text, TtsServerEvent, Voice
from .messages import field, kind_name, kind_of, unpack

END_OF_TEXT: Final = b"\0"
"""A binary message that means `Eos`, from before the protocol had messages."""
MAX_DIMENSIONS: Final = 3

_TYPES: Final = "the types are Text, Voice and Eos"


def decode(data: bytes) -> Text | Voice | Eos:
    """One binary message to the event it carries.

    Raises:
        InvalidMessageError: if it is anything but a message of the protocol; the sentence says what was wrong.
    """
    if data == END_OF_TEXT:
        return Eos()
    fields = unpack(data)
    match fields.get("type"):
        case "Text":
            return Text(_text(field(fields, "text")))
        case "Voice":
            return Voice(_embedding(field(fields, "embeddings"), field(fields, "shape")))
        case "Eos":
            return Eos()
        case None:
            raise InvalidMessageError("the message has no 'type'", hint=_TYPES)
        case str(other):
            raise InvalidMessageError(f"unknown message type {other[:40]!r}", hint=_TYPES)
        case other:
            raise InvalidMessageError(f"the message's 'type' must be a string, not {kind_of(other)}", hint=_TYPES)


def encode(event: TtsServerEvent) -> bytes:
    """One event to one binary message, the same bytes as upstream's for the same event."""
    match event:
        case Audio(pcm):
            message: dict[str, Any] = {"type": "Audio", "pcm": np.ascontiguousarray(pcm, dtype=np.float32)}
        case OggOpus(data):  # an array of small integers, as serde writes a vector of bytes
            message = {"type": "OggOpus", "data": np.frombuffer(data, dtype=np.uint8)}
        case SpokenWord(text, start, stop):
            message = {"type": "Text", "text": text, "start_s": float(start), "stop_s": float(stop)}
        case Ready():
            message = {"type": "Ready"}
        case GoingAway(seconds):
            message = {"type": "GoingAway", "seconds": float(seconds)}
        case Error(text):
            message = {"type": "Error", "message": text}
    return ormsgpack.packb(message, option=ormsgpack.OPT_SERIALIZE_NUMPY)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidMessageError(f"'text' must be a string, not {kind_of(value)}")
    return value


def _embedding(values: Any, shape: Any) -> NDArray[np.float32]:
    if not isinstance(values, list):
        raise InvalidMessageError(f"'embeddings' must be an array of numbers, not {kind_of(values)}")
    strangers = set(map(type, values)) - {int, float}
    if strangers:
        names = ", ".join(sorted(map(kind_name, strangers)))
        raise InvalidMessageError(f"'embeddings' must hold numbers only, but has {names}")
    sizes = _shape(shape)
    if math.prod(sizes) != len(values):
        raise InvalidMessageError(f"'embeddings' holds {len(values)} numbers, but its 'shape' is {sizes}")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is then refused
        embedding = np.array(values, dtype=np.float64).astype(np.float32)
    if not np.isfinite(embedding).all():
        raise InvalidMessageError("'embeddings' must hold finite numbers only")
    return embedding.reshape(sizes)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or size <= 0 for size in value):
        raise InvalidMessageError("'shape' must be an array of positive integers")
    if not 1 <= len(value) <= MAX_DIMENSIONS:
        raise InvalidMessageError(f"an embedding has 1 to {MAX_DIMENSIONS} dimensions, not {len(value)}")
    return tuple(value)
