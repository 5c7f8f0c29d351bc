"""Speech to text on the wire: MessagePack bytes to events and back, as upstream's `rmp_serde` reads and writes them.

A message is one map with a ``type`` key. Client messages almost always carry float32 samples, so those are read in
place as 5-byte cells; whatever differs in the least goes through the general decoder.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import ormsgpack
from numpy.typing import NDArray

from ..errors import InvalidMessageError
from ..events import (
    AsrClientEvent,
    AsrServerEvent,
    Audio,
    EndWord,
    Error,
    Flush,
    GoingAway,
    Init,
    Marker,
    OggOpus,
    Ready,
    Step,
    Turn,
    Word,
)
from .messages import field, float_cells, kind_name, kind_of, octets, unpack

MAX_AMPLITUDE: Final = 100.0
"""Largest magnitude of a sample. Full scale is 1; what is beyond this was never divided by its integer range."""

_AUDIO_HEAD: Final = b"\x82\xa4type\xa5Audio\xa3pcm"
_INT64: Final = range(-(2**63), 2**63)


def decode(data: bytes) -> AsrClientEvent:
    """One binary message to the event it carries.

    Raises:
        InvalidMessageError: if it is anything but a message of the protocol; the sentence says what was wrong.
    """
    pcm = float_cells(data, _AUDIO_HEAD)
    if pcm is not None:
        return Audio(_checked(pcm))
    return decode_slow(data)


def decode_samples(data: bytes) -> Audio | None:
    """What `decode` gives for a message of float samples in their range, None for any other; it raises nothing."""
    pcm = float_cells(data, _AUDIO_HEAD)
    return Audio(pcm) if pcm is not None and _in_range(pcm) else None


def decode_slow(data: bytes) -> AsrClientEvent:
    """What `decode` gives, through the general MessagePack decoder only."""
    fields = unpack(data)
    match fields.get("type"):
        case "Init":
            return Init()
        case "Audio":
            return Audio(_samples(field(fields, "pcm")))
        case "OggOpus":
            return OggOpus(octets(field(fields, "data")))
        case "Marker":
            return Marker(_marker_id(field(fields, "id")))
        case "Flush":
            return Flush()
        case None:
            raise InvalidMessageError("the message has no 'type'", hint=_TYPES)
        case str(other):
            raise InvalidMessageError(f"unknown message type {other[:40]!r}", hint=_TYPES)
        case other:
            raise InvalidMessageError(f"the message's 'type' must be a string, not {kind_of(other)}", hint=_TYPES)


def encode(event: AsrServerEvent) -> bytes:
    """One event to one binary message, the same bytes as upstream's for the same event."""
    match event:
        case Step(step_idx, prs, buffered_pcm):
            message: dict[str, Any] = {
                "type": "Step",
                "step_idx": step_idx,
                "prs": np.array(prs, dtype=np.float32),
                "buffered_pcm": buffered_pcm,
            }
            return ormsgpack.packb(message, option=ormsgpack.OPT_SERIALIZE_NUMPY)
        case Word(text, start_time):
            message = {"type": "Word", "text": text, "start_time": float(start_time)}
        case EndWord(stop_time):
            message = {"type": "EndWord", "stop_time": float(stop_time)}
        case Marker(id_):
            message = {"type": "Marker", "id": id_}
        case Ready():
            message = {"type": "Ready"}
        case Error(text):
            message = {"type": "Error", "message": text}
        case Flush():
            message = {"type": "Flush"}
        case Turn(kind, time):
            message = {"type": "Turn", "kind": kind, "time": float(time)}
        case GoingAway(seconds):
            message = {"type": "GoingAway", "seconds": float(seconds)}
    return ormsgpack.packb(message)


_TYPES: Final = "the types are Init, Audio, OggOpus, Marker and Flush"


def _samples(value: Any) -> NDArray[np.float32]:
    if not isinstance(value, list):
        raise InvalidMessageError(f"'pcm' must be an array of numbers, not {kind_of(value)}")
    # By exact type: a bool is an int to Python, but no sample.
    strangers = set(map(type, value)) - {int, float}
    if strangers:
        names = ", ".join(sorted(kind_name(stranger) for stranger in strangers))
        raise InvalidMessageError(f"'pcm' must hold numbers only, but has {names}")
    with np.errstate(over="ignore"):
        pcm = np.array(value, dtype=np.float64).astype(np.float32)
    return _checked(pcm)


def _checked(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    if pcm.size == 0 or _in_range(pcm):
        return pcm
    worst = int(np.argmax(~(np.abs(pcm) <= MAX_AMPLITUDE)))
    raise InvalidMessageError(
        f"sample {worst} of 'pcm' is {pcm[worst]:g}; samples are numbers between -1 and 1",
        hint="divide 16-bit samples by 32768",
    )


def _in_range(pcm: NDArray[np.float32]) -> bool:
    # The upper byte of a little-endian float32 says whether it is below 2; looked at as bytes, see `float_cells`.
    if not pcm.data.tobytes()[3::4].translate(None, _BELOW_TWO):
        return True
    return bool(pcm.min() >= -MAX_AMPLITUDE and pcm.max() <= MAX_AMPLITUDE)  # false for NaN too


_BELOW_TWO: Final = bytes(value for value in range(256) if not value & 0x40)


def _marker_id(value: Any) -> int:
    if type(value) is not int or value not in _INT64:
        raise InvalidMessageError("a marker's 'id' must be a 64-bit signed integer")
    return value
