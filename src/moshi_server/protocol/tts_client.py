"""Text to speech on the wire, seen from the client: events to MessagePack bytes and back, the mirror of `tts`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import ormsgpack

from ..errors import InvalidMessageError
from ..events import Audio, Eos, Error, GoingAway, OggOpus, Ready, SpokenWord, Text, TtsServerEvent, Voice
from .messages import field, float_cells, octets, unpack

_AUDIO_HEAD: Final = b"\x82\xa4type\xa5Audio\xa3pcm"


def encode(event: Text | Voice | Eos) -> bytes:
    """One event to one binary message."""
    match event:
        case Text(text):
            message: dict[str, Any] = {"type": "Text", "text": text}
        case Voice(embedding):
            flat = np.ascontiguousarray(embedding, dtype=np.float32).reshape(-1)
            message = {"type": "Voice", "embeddings": flat, "shape": list(embedding.shape)}
        case Eos():
            message = {"type": "Eos"}
    return ormsgpack.packb(message, option=ormsgpack.OPT_SERIALIZE_NUMPY)


def decode(data: bytes) -> TtsServerEvent | None:
    """One binary message to the event it carries; None for a type that this version does not know.

    Raises:
        InvalidMessageError: the bytes are no message of the protocol: whatever answers is not a server of ours.
    """
    pcm = float_cells(data, _AUDIO_HEAD)
    if pcm is not None:
        return Audio(pcm)
    fields = unpack(data)
    try:
        match fields.get("type"):
            case "Ready":
                return Ready()
            case "Audio":
                return Audio(np.asarray(fields["pcm"], dtype=np.float32).reshape(-1))
            case "OggOpus":
                return OggOpus(octets(field(fields, "data")))
            case "Text":
                return SpokenWord(str(fields["text"]), float(fields["start_s"]), float(fields["stop_s"]))
            case "GoingAway":
                return GoingAway(float(fields["seconds"]))
            case "Error":
                return Error(str(fields["message"]))
            case _:
                return None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidMessageError(f"the server's {fields['type']} message is not as expected: {error!r}") from None
