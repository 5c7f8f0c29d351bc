"""Speech to text on the wire, seen from the client: events to MessagePack bytes and back, the mirror of `asr`."""

from __future__ import annotations

from typing import Any

import numpy as np
import ormsgpack

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
from .messages import unpack


def encode(event: AsrClientEvent) -> bytes:
    """One event to one binary message."""
    match event:
        case Audio(pcm):
            message: dict[str, Any] = {"type": "Audio", "pcm": np.ascontiguousarray(pcm, dtype=np.float32)}
            return ormsgpack.packb(message, option=ormsgpack.OPT_SERIALIZE_NUMPY)
        case OggOpus(data):
            message = {"type": "OggOpus", "data": data}
        case Marker(id_):
            message = {"type": "Marker", "id": id_}
        case Init():
            message = {"type": "Init"}
        case Flush():
            message = {"type": "Flush"}
    return ormsgpack.packb(message)


def decode(data: bytes) -> AsrServerEvent | None:
    """One binary message to the event it carries; None for a type that this version does not know.

    Raises:
        InvalidMessageError: the bytes are no message of the protocol: whatever answers is not a server of ours.
    """
    fields = unpack(data)
    try:
        match fields.get("type"):
            case "Ready":
                return Ready()
            case "Word":
                return Word(str(fields["text"]), float(fields["start_time"]))
            case "EndWord":
                return EndWord(float(fields["stop_time"]))
            case "Step":
                prs = tuple(float(value) for value in fields["prs"])
                return Step(int(fields["step_idx"]), prs, int(fields["buffered_pcm"]))
            case "Marker":
                return Marker(int(fields["id"]))
            case "Flush":
                return Flush()
            case "Turn":
                return Turn("start" if fields["kind"] == "start" else "end", float(fields["time"]))
            case "GoingAway":
                return GoingAway(float(fields["seconds"]))
            case "Error":
                return Error(str(fields["message"]))
            case _:
                return None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidMessageError(f"the server's {fields['type']} message is not as expected: {error!r}") from None
