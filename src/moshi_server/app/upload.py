"""A whole file in one POST, its words in one JSON answer; it queues for a slot, within bounds of time and number."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from structlog.contextvars import bind_contextvars

from ..audio import SAMPLE_RATE, read_audio
from ..engine.session import Session
from ..errors import (
    AudioError,
    ClientTimeoutError,
    EngineFailedError,
    GoingAwayError,
    MoshiServerError,
    NoFreeSlotError,
    SessionError,
    SessionLimitError,
)
from ..events import Audio, EndWord, Flush, Word
from .module import ServedModule
from .websocket import first_of

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = 5

_STATUSES: Final[tuple[tuple[type[MoshiServerError], int], ...]] = (
    (AudioError, 400),
    (NoFreeSlotError, 503),
    (GoingAwayError, 503),
    (SessionLimitError, 413),
    (ClientTimeoutError, 408),
    (EngineFailedError, 500),
)


class Uploads:
    """The POSTs of one module: those being served, and a bounded number that wait."""

    def __init__(self, module: ServedModule) -> None:
        self._module = module
        self._present = 0

    async def answer(self, request: Request) -> Response:
        """The JSON list of upstream, ``{"type": "Word", ...}`` and ``{"type": "EndWord", ...}`` in their order."""
        bind_contextvars(module=self._module.name)
        room = self._module.engine.slots_total + self._module.limits.max_waiting_posts
        if self._present >= room:
            return _refusal(503, "too many files are waiting already")
        self._present += 1
        try:
            return await self._answer(request)
        except ClientDisconnect:
            return _refusal(400, "the client has gone")
        finally:
            self._present -= 1

    async def _answer(self, request: Request) -> Response:
        limit = self._module.limits.max_upload_bytes
        body = await _body(request, limit)
        if body is None:
            return _refusal(413, f"the file is larger than {limit / 2**20:g} MiB")
        if not body:
            return _refusal(400, "the request has no body: send an audio file")
        words: list[dict[str, Any]] = []
        try:
            await first_of(self._transcribe(body, words), _disconnected(request))
        except MoshiServerError as error:
            status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
            logger.info("file refused", extra={"fields": {"status": status, "reason": error.message}})
            return _refusal(status, error.message, error.hint)
        return JSONResponse(words)

    async def _transcribe(self, body: bytes, words: list[dict[str, Any]]) -> None:
        pcm = await asyncio.to_thread(read_audio, body)
        session = await self._module.engine.open(wait_seconds=self._module.limits.post_wait_seconds)
        bind_contextvars(session=session.id)
        try:
            await first_of(_send(session, pcm), _collect(session, words))
        finally:
            session.close()
        self._module.metrics.spoke(sum(word["type"] == "Word" for word in words))
        fields = {"seconds": len(pcm) / SAMPLE_RATE, "events": len(words)}
        logger.info("file transcribed", extra={"fields": fields})


async def _body(request: Request, limit: int) -> bytes | None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


async def _send(session: Session, pcm: Any) -> None:
    try:
        for start in range(0, len(pcm), SAMPLE_RATE):
            await session.send(Audio(pcm[start : start + SAMPLE_RATE]))
        await session.send(Flush())
    except SessionError:
        pass  # `_collect` raises the reason
    await asyncio.get_running_loop().create_future()


async def _collect(session: Session, words: list[dict[str, Any]]) -> None:
    while events := await session.receive():
        for event in events:
            match event:
                case Word(text, start_time):
                    words.append({"type": "Word", "text": text, "start_time": _number(start_time)})
                case EndWord(stop_time):
                    words.append({"type": "EndWord", "stop_time": _number(stop_time)})
                case Flush():
                    return


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


def _number(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0


def _refusal(status: int, message: str, hint: str = "") -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    if status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": message, "hint": hint}, status, headers)
