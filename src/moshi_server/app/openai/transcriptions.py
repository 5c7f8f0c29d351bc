"""``POST /v1/audio/transcriptions``: a file in, its words out, whole or as they are heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from ...audio import SAMPLE_RATE, read_audio
from ...errors import MoshiServerError
from ...events import EndWord, Word
from ...speech.subtitles import cues, to_srt, to_vtt
from ...speech.transcript import Transcript, TranscriptBuilder
from ..module import ServedModule
from ..routes import ServerState
from ..upload import Uploads, disconnected, hear, too_large, too_slow
from ..waiting import first_of
from .errors import ApiError, api_error, unsupported
from .models import HEARING, Models

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES: Final = ("word", "segment")
_REFUSED: Final = {
    "prompt": "a prompt cannot be given to this model",
    "keywords": "keywords cannot be given to this model",
    "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
}


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the form asks for, checked."""

    file: UploadFile
    model: str
    format: str
    granularities: tuple[str, ...]
    language: str
    stream: bool


class Transcriptions:
    """The endpoint."""

    def __init__(self, state: ServerState, models: Models) -> None:
        self._models = models
        self._state = state
        self._uploads = {module.name: Uploads(module) for module in state.modules if module.kind in HEARING}

    async def answer(self, request: Request) -> Response:
        """The transcript in the format asked for, or the reason in OpenAI's shape."""
        try:
            return await self._answer(request)
        except ApiError as error:
            return error.response()
        except MoshiServerError as error:
            return api_error(error).response()
        except ClientDisconnect:
            return ApiError(400, "the client has gone").response()

    async def _answer(self, request: Request) -> Response:
        # Before the body is read, so that nobody uploads a file for nothing; the model's name comes with it.
        caller = self._models.check(request, self._models.find("", HEARING))
        if "multipart/form-data" not in request.headers.get("content-type", ""):
            raise ApiError(400, "send the file as multipart/form-data, in the field 'file'", param="file")
        limit = max(module.limits.max_upload_bytes for module in self._modules())
        patience = max(module.limits.upload_seconds for module in self._modules())
        async with AsyncExitStack() as stack:
            stack.enter_context(self._state.admission.admit(caller))
            try:
                async with asyncio.timeout(patience):
                    async with _limited(request, limit).form(max_files=1, max_fields=32) as form:
                        wish = _wish(form)
                        body = await wish.file.read()
            except HTTPException as error:
                raise ApiError(400, f"the form cannot be read: {error.detail}") from error
            except TimeoutError:
                raise too_slow(patience) from None
            module = self._models.find(wish.model, HEARING)
            self._models.check(request, module)
            bind_contextvars(module=module.name)
            stack.enter_context(self._uploads[module.name].place())
            pcm = await asyncio.to_thread(read_audio, body)
            if not wish.stream:
                return _whole(await _transcript(request, module, pcm), wish)
            words = await stack.enter_async_context(aclosing(hear(module, pcm)))
            first = await anext(words, None)  # so that a full server is still a 503
            return _Streamed(_sse_events(first, words, len(pcm)), stack.pop_all())

    def _modules(self) -> list[ServedModule]:
        return [self._models.find(name, HEARING) for name in self._uploads]


def _wish(form: FormData) -> _Wish:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "the field 'file' is missing: send an audio file", param="file")
    if not file.size:
        raise ApiError(400, "the file is empty", param="file")
    for name, why in _REFUSED.items():
        if any(form.getlist(name) + form.getlist(f"{name}[]")):
            raise unsupported(name, why)
    if any(form.getlist("include") + form.getlist("include[]")):
        raise unsupported("include", "log probabilities are not told")
    temperature = _text(form, "temperature")
    if temperature not in ("", "0", "0.0"):
        raise unsupported("temperature", "the temperature is a setting of the server's module")
    chosen = _text(form, "response_format") or "json"
    if chosen not in FORMATS:
        raise ApiError(400, f"response_format must be one of {', '.join(FORMATS)}", param="response_format")
    granularities = [str(value) for key in ("", "[]") for value in form.getlist(f"timestamp_granularities{key}")]
    if not set(granularities) <= set(GRANULARITIES):
        raise ApiError(400, "timestamp_granularities may hold 'word' and 'segment'", param="timestamp_granularities")
    stream = _text(form, "stream").lower()
    if stream not in ("", "true", "false", "1", "0"):
        raise ApiError(400, "stream must be true or false", param="stream")
    return _Wish(
        file,
        _text(form, "model"),
        chosen,
        tuple(granularities) or ("segment",),
        _text(form, "language"),
        stream in ("true", "1"),
    )


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise ApiError(400, f"the field {name!r} must be text", param=name)
    return value.strip()


async def _transcript(request: Request, module: ServedModule, pcm: Any) -> Transcript:
    builder = TranscriptBuilder()

    async def collect() -> None:
        async for event in hear(module, pcm):
            builder.add(event)

    await first_of(collect(), disconnected(request))
    return builder.build(len(pcm) / SAMPLE_RATE)


def _whole(transcript: Transcript, wish: _Wish) -> Response:
    match wish.format:
        case "text":
            return PlainTextResponse(transcript.text + "\n")
        case "srt":
            return PlainTextResponse(to_srt(transcript.words))
        case "vtt":
            return PlainTextResponse(to_vtt(transcript.words), media_type="text/vtt")
        case "json":
            return JSONResponse({"text": transcript.text, "usage": _usage(transcript.duration)})
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": wish.language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "usage": _usage(transcript.duration),
    }
    if "word" in wish.granularities:
        body["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.stop, 3)} for word in transcript.words
        ]
    if "segment" in wish.granularities:
        body["segments"] = [
            {
                "id": index,
                "seek": 0,
                "start": round(cue.start, 3),
                "end": round(cue.stop, 3),
                "text": " ".join(cue.lines),
                "tokens": [],
                "temperature": 0.0,
            }
            for index, cue in enumerate(cues(transcript.words))
        ]
    return JSONResponse(body)


class _Streamed(StreamingResponse):
    """Server-sent events; lets go of ``kept`` at the end, whoever ends it."""

    def __init__(self, events: AsyncGenerator[str], kept: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._kept = kept
        self._kept.push_async_callback(events.aclose)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._kept:
            await super().__call__(scope, receive, send)


async def _sse_events(
    first: Word | EndWord | None, words: AsyncGenerator[Word | EndWord], samples: int
) -> AsyncGenerator[str]:
    said: list[str] = []
    event = first
    try:
        while event is not None:
            if isinstance(event, Word) and (text := event.text.strip()):
                yield _sse({"type": "transcript.text.delta", "delta": f" {text}" if said else text})
                said.append(text)
            event = await anext(words, None)
        usage = _usage(samples / SAMPLE_RATE)
        yield _sse({"type": "transcript.text.done", "text": " ".join(said), "usage": usage})
    except MoshiServerError as error:
        yield _sse({"type": "error", **api_error(error).body()})


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(seconds, 3)}


def _limited(request: Request, limit: int) -> Request:
    """The same request, whose body ends with an error once it is longer than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    receive: Receive = request.receive
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise too_large(limit)
        return message

    return Request(request.scope, counted)
