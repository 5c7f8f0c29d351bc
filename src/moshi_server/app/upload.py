"""A whole file in one POST, its words in one JSON answer; it queues for a slot, within bounds of time and number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter
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
    InvalidMessageError,
    MoshiServerError,
    NoFreeSlotError,
    RateLimitedError,
    ResourceNotFoundError,
    SessionError,
    SessionLimitError,
    TooLargeError,
)
from ..events import Audio, EndWord, Flush, Word
from .admission import Refusal
from .module import ServedModule
from .waiting import first_of

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = 5

_STATUSES: Final[tuple[tuple[type[MoshiServerError], int], ...]] = (
    (AudioError, 400),
    (TooLargeError, 413),
    (InvalidMessageError, 400),
    (ResourceNotFoundError, 404),
    (NoFreeSlotError, 503),
    (GoingAwayError, 503),
    (RateLimitedError, 429),
    (SessionLimitError, 413),
    (ClientTimeoutError, 408),
    (EngineFailedError, 500),
)


class SaidWord(BaseModel):
    """Upstream's ``Word``."""

    type: Literal["Word"]
    text: str
    start_time: float


class SaidEnd(BaseModel):
    """Upstream's ``EndWord``."""

    type: Literal["EndWord"]
    stop_time: float


Words = TypeAdapter(list[SaidWord | SaidEnd])
"""What an answer to a recording is, for those who describe it."""


class Uploads:
    """The POSTs of one module: those being served, and a bounded number that wait."""

    def __init__(self, module: ServedModule) -> None:
        self._module = module
        self._present = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that are served or wait.

        Raises:
            NoFreeSlotError: there is none.
        """
        if self._present >= self._module.engine.slots_total + self._module.limits.max_waiting_posts:
            raise NoFreeSlotError("too many requests are waiting already", limit="waiting_posts")
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    async def answer(self, request: Request) -> Response:
        """The JSON list of upstream, ``{"type": "Word", ...}`` and ``{"type": "EndWord", ...}`` in their order."""
        bind_contextvars(module=self._module.name)
        try:
            with self.place():
                return await self._answer(request)
        except ClientDisconnect:
            return refusal(400, "the client has gone")
        except MoshiServerError as error:
            response = refusal_of(error)
            logger.info("file refused", extra={"fields": {"status": response.status_code, "reason": error.message}})
            return response

    async def _answer(self, request: Request) -> Response:
        limits = self._module.limits
        body = await read_body(request, limits.max_upload_bytes, limits.upload_seconds)
        if not body:
            return refusal(400, "the request has no body: send an audio file")
        answers: list[Response] = []

        async def work() -> None:
            answers.append(await self._respond(body))

        await first_of(work(), disconnected(request))
        return answers[0]

    async def _respond(self, body: bytes) -> Response:
        heard = hear(self._module, await asyncio.to_thread(read_audio, body))
        return JSONResponse([_upstreams(event) async for event in heard])


async def hear(module: ServedModule, pcm: NDArray[np.float32]) -> AsyncGenerator[Word | EndWord]:
    """The words of a whole recording, 24 kHz mono (samples,), as the model gives them; waits for a slot first.

    Raises:
        NoFreeSlotError: none came free within the module's ``post_wait_seconds``.
        SessionError: why the stream ended early.
    """
    module.metrics.connected()
    session = await module.engine.open(wait_seconds=module.limits.post_wait_seconds)
    bind_contextvars(session=session.id)
    sending = asyncio.create_task(_send(session, pcm))
    words = 0
    try:
        while events := await session.receive():
            for event in events:
                match event:
                    case Word() | EndWord():
                        words += isinstance(event, Word)
                        yield event
                    case Flush():
                        return
    finally:
        session.close()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        module.metrics.spoke(words)
        logger.info("file transcribed", extra={"fields": {"seconds": len(pcm) / SAMPLE_RATE, "words": words}})


def status_of(error: MoshiServerError) -> int:
    """The HTTP status that says this."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body of a request.

    Raises:
        TooLargeError: it has more than ``limit`` bytes.
        ClientTimeoutError: it takes longer than ``seconds`` to come.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise too_slow(seconds) from None
    return bytes(body)


def too_large(limit: int) -> TooLargeError:
    """The error of a body with more bytes than that."""
    return TooLargeError(f"the request is larger than {limit / 2**20:g} MiB", limit="body_size")


def too_slow(seconds: float) -> ClientTimeoutError:
    """The error of a body that takes longer than that to come."""
    return ClientTimeoutError(f"the request did not come whole within {seconds:g} s", limit="body_time")


async def _send(session: Session, pcm: NDArray[np.float32]) -> None:
    with contextlib.suppress(SessionError):  # whoever receives is told the reason
        for start in range(0, len(pcm), SAMPLE_RATE):
            await session.send(Audio(pcm[start : start + SAMPLE_RATE]))
        await session.send(Flush())


async def disconnected(request: Request) -> None:
    """Raise `ClientDisconnect` once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


def _upstreams(event: Word | EndWord) -> dict[str, Any]:
    match event:
        case Word(text, start_time):
            return {"type": "Word", "text": text, "start_time": _number(start_time)}
        case EndWord(stop_time):
            return {"type": "EndWord", "stop_time": _number(stop_time)}


def _number(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0


def refusal_of(error: MoshiServerError, *, internal: int = 500) -> Refusal:
    """What a request is answered that ended with this error.

    Args:
        internal: the status where the model has failed.
    """
    status = internal if isinstance(error, EngineFailedError) else status_of(error)
    return refusal(status, error.message, error.hint, error.limit if isinstance(error, SessionError) else "")


def refusal(status: int, message: str, hint: str = "", limit: str = "") -> Refusal:
    """What a request is answered that cannot be served."""
    headers = refusal_headers(status)
    if status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return Refusal({"error": message, "hint": hint}, status, headers, limit)


def refusal_headers(status: int) -> dict[str, str]:
    """What a refusal of this status says in its headers."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    if status == 408:
        headers["Connection"] = "close"  # the rest of the body is not waited for
    return headers
