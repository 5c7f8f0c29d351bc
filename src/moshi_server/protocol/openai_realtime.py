"""OpenAI's realtime transcription sessions: their JSON events to ours and back; no I/O, and it knows no socket.

Audio is 16-bit little-endian PCM at 24 kHz in base64. What was said between two commits is an item: a commit comes from
the client, or from us at the end of a turn while ``turn_detection`` is on.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..audio import SAMPLE_RATE
from ..events import AsrClientEvent, AsrServerEvent, Audio, Flush, Init, Ready, Turn, Word

MIN_COMMIT_SECONDS: Final = 0.1
"""A commit of less audio is an error, as OpenAI has it."""

_DETECTION: Final = {
    "type": "server_vad", "threshold": None, "prefix_padding_ms": None, "silence_duration_ms": None,
}  # fmt: skip
_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription"


class EventError(Exception):
    """An event of the client that cannot be done; the session goes on."""

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


@dataclass(slots=True)
class _Item:
    """What was said between two commits; ``samples`` of audio, and whether its speech was announced."""

    id: str = field(default_factory=lambda: f"item_{secrets.token_hex(10)}")
    words: list[str] = field(default_factory=list)
    samples: int = 0
    spoken: bool = False


class RealtimeTranscription:
    """One session.

    Args:
        model: the name of the model that hears.
        knows: whether a name that the client gives means that model.
        beta: whether the client speaks the older events, ``transcription_session.*`` with flat settings.
    """

    def __init__(self, model: str, knows: Callable[[str], bool], *, beta: bool = False) -> None:
        self._model = model
        self._knows = knows
        self._beta = beta
        self._id = f"sess_{secrets.token_hex(10)}"
        self._detects = True
        self._language: str | None = None
        self._item = _Item()
        self._committed: deque[_Item] = deque()
        self._previous: str | None = None
        self._begun = 0  # where the item begins, in samples
        self._ready = 0
        self._resets = 0

    def take(self, text: str) -> tuple[list[AsrClientEvent], list[str]]:
        """A client's message: what the model is to be told, and what the client is answered at once."""
        event_id = None
        try:
            event = _parsed(text)
            given = event.get("event_id")
            event_id = given if isinstance(given, str) else None
            told, answers = self._handle(event)
        except EventError as refused:
            error = {
                "type": "invalid_request_error",
                "code": refused.code,
                "message": refused.message,
                "param": refused.param,
                "event_id": event_id,
            }
            return [], self._json([{"type": "error", "error": error}])
        return told, self._json(answers)

    def give(self, event: AsrServerEvent) -> list[str]:
        """An event of the model: what the client is sent."""
        out: list[dict[str, Any]] = []
        match event:
            case Ready():
                self._ready += 1
                if self._ready == 1:
                    out = [{"type": f"{self._prefix}.created", "session": self._session()}]
                else:
                    self._resets -= 1
            case Word(text) if not self._resets and (word := text.strip()):
                item = self._committed[0] if self._committed else self._item
                delta = f" {word}" if item.words else word
                item.words.append(word)
                out = [{"type": f"{_TRANSCRIPTION}.delta", "item_id": item.id, "content_index": 0, "delta": delta}]
            case Turn(kind, time) if self._detects and not self._resets:
                if kind == "start":
                    self._item.spoken = True
                    out = [self._speech("started", "audio_start_ms", time)]
                elif self._item.spoken and not self._committed:
                    # All its words are there: a pause is only told of when it is longer than they are late.
                    out = [self._speech("stopped", "audio_end_ms", time), *self._commit(until=time)]
                    out.append(self._completed(self._committed.popleft()))
            case Flush() if self._committed and not self._resets:
                out = [self._completed(self._committed.popleft())]
            case _:
                pass
        return self._json(out)

    def farewell(self, message: str) -> str:
        """Why the session ends."""
        error = {"type": "server_error", "code": None, "message": message, "param": None, "event_id": None}
        return self._json([{"type": "error", "error": error}])[0]

    @property
    def _prefix(self) -> str:
        return "transcription_session" if self._beta else "session"

    def _handle(self, event: dict[str, Any]) -> tuple[list[AsrClientEvent], list[dict[str, Any]]]:
        match event["type"]:
            case "input_audio_buffer.append":
                pcm = _pcm(event.get("audio"))
                self._item.samples += len(pcm)
                return [Audio(pcm)], []
            case "input_audio_buffer.commit":
                if self._item.samples < MIN_COMMIT_SECONDS * SAMPLE_RATE:
                    milliseconds = 1000 * self._item.samples / SAMPLE_RATE
                    raise EventError(
                        f"the buffer holds {milliseconds:.0f} ms of audio; a commit needs 100",
                        code="input_audio_buffer_commit_empty",
                    )
                return [Flush()], self._commit()
            case "input_audio_buffer.clear":
                self._item = _Item()
                self._committed.clear()
                self._begun = 0
                self._resets += 1
                return [Init()], [{"type": "input_audio_buffer.cleared"}]
            case "session.update" | "transcription_session.update":
                settings = event.get("session")
                if not isinstance(settings, dict):
                    raise EventError("session must be an object", param="session")
                self._update(settings)
                return [], [{"type": f"{self._prefix}.updated", "session": self._session()}]
            case other:
                raise EventError(f"{other} is not served: this is a session of transcription", code="unsupported_event")

    def _update(self, settings: dict[str, Any]) -> None:
        """Take what can be done, and refuse the rest before anything is changed."""
        if settings.get("type", "transcription") != "transcription":
            raise EventError("only sessions of type transcription are served", param="session.type")
        if settings.get("include"):
            raise EventError("log probabilities are not told", param="session.include", code="unsupported_parameter")
        flat = {
            "format": settings.get("input_audio_format"),
            "transcription": settings.get("input_audio_transcription"),
            "noise_reduction": settings.get("input_audio_noise_reduction"),
        }
        heard = {name: value for name, value in flat.items() if value is not None}
        if "turn_detection" in settings:
            heard["turn_detection"] = settings["turn_detection"]
        heard |= _object(_object(settings, "audio"), "input")
        if heard.get("format") not in (None, "pcm16") and not _is_pcm(heard["format"]):
            raise EventError("only 16-bit PCM at 24 kHz is taken", param="format", code="unsupported_parameter")
        if heard.get("noise_reduction"):
            raise EventError("noise is not reduced", param="noise_reduction", code="unsupported_parameter")
        transcription = _object(heard, "transcription")
        if transcription.get("prompt"):
            raise EventError("a prompt cannot be given", param="transcription.prompt", code="unsupported_parameter")
        name = transcription.get("model")
        if name is not None and not (isinstance(name, str) and self._knows(name)):
            raise EventError(f"the model {name!r} is not served here; {self._model} is", code="model_not_found")
        detection = heard.get("turn_detection", _DETECTION if self._detects else None)
        if detection is not None and _object(heard, "turn_detection").get("type", "server_vad") not in (
            "server_vad",
            "semantic_vad",
        ):
            raise EventError("turn_detection must be server_vad, semantic_vad or null", param="turn_detection.type")
        self._detects = detection is not None
        language = transcription.get("language")
        self._language = language if isinstance(language, str) else self._language

    def _session(self) -> dict[str, Any]:
        transcription = {"model": self._model, "language": self._language, "prompt": ""}
        detection = dict(_DETECTION) if self._detects else None
        common: dict[str, Any] = {"id": self._id, "object": "realtime.transcription_session", "expires_at": 0}
        if self._beta:
            return common | {
                "input_audio_format": "pcm16",
                "input_audio_transcription": transcription,
                "turn_detection": detection,
            }
        heard = {
            "format": {"type": "audio/pcm", "rate": SAMPLE_RATE},
            "transcription": transcription,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        return common | {"type": "transcription", "audio": {"input": heard}, "include": None}

    def _speech(self, what: str, key: str, time: float) -> dict[str, Any]:
        return {"type": f"input_audio_buffer.speech_{what}", key: round(1000 * time), "item_id": self._item.id}

    def _commit(self, until: float | None = None) -> list[dict[str, Any]]:
        """End the item: with all that was sent, or at this time (s), after which what was sent belongs to the next."""
        item, previous = self._item, self._previous
        ahead = 0 if until is None else max(0, self._begun + item.samples - round(until * SAMPLE_RATE))
        item.samples -= ahead
        self._begun += item.samples
        self._item, self._previous = _Item(samples=ahead), item.id
        self._committed.append(item)
        content = [{"type": "input_audio", "transcript": None}]
        entry = {"id": item.id, "type": "message", "status": "completed", "role": "user", "content": content}
        added = "conversation.item.created" if self._beta else "conversation.item.added"
        return [
            {"type": "input_audio_buffer.committed", "previous_item_id": previous, "item_id": item.id},
            {"type": added, "previous_item_id": previous, "item": entry},
        ]

    def _completed(self, item: _Item) -> dict[str, Any]:
        return {
            "type": f"{_TRANSCRIPTION}.completed",
            "item_id": item.id,
            "content_index": 0,
            "transcript": " ".join(item.words),
            "usage": {"type": "duration", "seconds": round(item.samples / SAMPLE_RATE, 3)},
        }

    @staticmethod
    def _json(events: Iterable[dict[str, Any]]) -> list[str]:
        return [
            json.dumps({"event_id": f"event_{secrets.token_hex(10)}", **event}, ensure_ascii=False) for event in events
        ]


def _parsed(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EventError(f"the event is not JSON: {error}", code="invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise EventError("an event is an object with a type", code="invalid_event", param="type")
    return event


def _pcm(audio: Any) -> Any:
    if not isinstance(audio, str):
        raise EventError("audio must be base64 text", param="audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise EventError("audio is not base64", param="audio") from None
    if len(data) % 2:
        raise EventError("audio must hold 16-bit samples: its number of bytes is odd", param="audio")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def _object(settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise EventError(f"{name} must be an object or null", param=name)
    return value


def _is_pcm(given: Any) -> bool:
    return (
        isinstance(given, dict) and given.get("type") == "audio/pcm" and given.get("rate", SAMPLE_RATE) == SAMPLE_RATE
    )
