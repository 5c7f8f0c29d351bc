"""``POST /v1/audio/speech``: a text in, its sound out as it is spoken."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from ...audio import OpusEncoder
from ...errors import MoshiServerError
from ..module import ClientLimits, ServedModule
from ..routes import ServerState
from ..speech import SpeechQuery, complaint
from ..synthesis import Sound, SoundStream, speak
from ..upload import Uploads, disconnected, read_body
from ..waiting import first_of
from .errors import ApiError, api_error, unsupported
from .models import SPEAKING, Models

THEIR_VOICES: Final = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""Names that programs ask for without being told another: each means the module's default voice."""
FORMATS: Final = ("wav", "pcm", "opus")


class Pcm(Sound):
    """Raw 16-bit samples."""

    media_type = "audio/pcm"

    def header(self) -> bytes:
        """Nothing."""
        return b""


class Opus(Sound):
    """Ogg/Opus."""

    media_type = "audio/ogg"

    def __init__(self) -> None:
        self._encoder = OpusEncoder()

    def header(self) -> bytes:
        """The two header pages."""
        return self._encoder.header()

    def frame(self, pcm: NDArray[np.float32]) -> bytes:
        """The pages that are full."""
        return self._encoder.encode(pcm)

    def end(self) -> bytes:
        """The last page."""
        return self._encoder.finish()


class Events(Sound):
    """Server-sent events around another sound."""

    media_type = "text/event-stream"

    def __init__(self, sound: Sound) -> None:
        self._inner = sound
        self._before = sound.header()

    def header(self) -> bytes:
        """Nothing: what the sound begins with comes with its first samples."""
        return b""

    def frame(self, pcm: NDArray[np.float32]) -> bytes:
        """An event with the sound's bytes."""
        data, self._before = self._before + self._inner.frame(pcm), b""
        return self._delta(data)

    def end(self) -> bytes:
        """The last bytes, and that they are the last."""
        return self._delta(self._before + self._inner.end()) + _event({"type": "speech.audio.done"})

    @staticmethod
    def _delta(data: bytes) -> bytes:
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}) if data else b""


class SpeechRequest(BaseModel):
    """The JSON body, under OpenAI's names."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str = ""
    input: str = Field(max_length=1_000_000)
    voice: str | dict[str, Any] | None = None
    response_format: str = "wav"
    speed: float = 1.0
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] = "audio"

    def sound(self) -> Sound:
        """How it is to be sent.

        Raises:
            ApiError: a format that is not made here.
        """
        if self.response_format not in FORMATS:
            raise ApiError(
                400, f"response_format must be one of {', '.join(FORMATS)}", param="response_format",
                code="unsupported_parameter",
            )  # fmt: skip
        sound = {"wav": Sound, "pcm": Pcm, "opus": Opus}[self.response_format]()
        return Events(sound) if self.stream_format == "sse" else sound

    def checked_voice(self, module: ServedModule) -> str | None:
        """The voice's name, None for the module's default."""
        name = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        if name is not None and not isinstance(name, str):
            raise ApiError(400, "voice must be a name, or an object with an id", param="voice")
        known = module.voices.names if module.voices is not None else ()
        return None if not name or (name in THEIR_VOICES and name not in known) else name


class Speeches:
    """The endpoint."""

    def __init__(self, state: ServerState, models: Models) -> None:
        self._models = models
        self._state = state
        self._uploads = {module.name: Uploads(module) for module in state.modules if module.kind in SPEAKING}

    async def answer(self, request: Request) -> Response:
        """The sound, or the reason in OpenAI's shape."""
        with contextlib.ExitStack() as place:
            try:
                response = await self._answer(request, place)
            except ApiError as error:
                return error.response()
            except MoshiServerError as error:
                return api_error(error).response()
            except ClientDisconnect:
                return ApiError(400, "the client has gone").response()
            response.place = place.pop_all()
            return response

    async def _answer(self, request: Request, place: contextlib.ExitStack) -> SoundStream:
        first = self._models.find("", SPEAKING)
        place.enter_context(self._state.admission.admit(self._models.check(request, first)))
        wish = await _wish(request, first.limits)
        module = self._models.find(wish.model, SPEAKING)
        self._models.check(request, module)
        bind_contextvars(module=module.name)
        module.metrics.connected()
        sound = wish.sound()
        settings = SpeechQuery.model_validate({"voice": wish.checked_voice(module)}).settings(module)
        place.enter_context(self._uploads[module.name].place())
        spoken = speak(module, [wish.input], settings)
        try:
            stream = SoundStream(spoken, module.limits.send_seconds, sound)
            await first_of(stream.begin(), disconnected(request))
        except BaseException:
            await spoken.aclose()
            raise
        return stream


async def _wish(request: Request, limits: ClientLimits) -> SpeechRequest:
    body = await read_body(request, limits.max_message_bytes, limits.upload_seconds)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body must be a JSON object") from None
    try:
        wish = SpeechRequest.model_validate(fields)
    except ValidationError as error:
        param = next((str(part) for part in error.errors()[0]["loc"]), None)
        raise ApiError(400, complaint(error), param=param) from None
    if wish.speed != 1:
        raise unsupported("speed", "the speed of speech cannot be changed")
    if wish.instructions:
        raise unsupported("instructions", "instructions cannot be given to this model")
    return wish


def _event(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()
