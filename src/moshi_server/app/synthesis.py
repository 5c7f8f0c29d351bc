"""Whole texts to speech by POST: a wav that streams as it is spoken (`Py`), or all of it with its words (`Tts`)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from ..audio import FRAME_SIZE, SAMPLE_RATE, pcm16, wav_bytes, wav_header
from ..engine.session import Session
from ..errors import InvalidMessageError, MoshiServerError, SessionError
from ..events import Audio, Eos, NextSpeaker, SpeechSettings, SpokenWord, Text
from .module import ServedModule
from .speech import SpeechQuery, complaint
from .upload import Uploads, disconnected, read_body, refusal, refusal_of
from .waiting import first_of

logger = logging.getLogger(__name__)

WAV: Final = "audio/wav"


class PostQuery(SpeechQuery):
    """The JSON body of a POST."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str | list[str] = Field(max_length=10_000_000)
    return_timestamps: bool = False

    @property
    def turns(self) -> list[str]:
        """What is said, by one speaker and the other in turn."""
        return [self.text] if isinstance(self.text, str) else self.text


class SpeechPosts:
    """The POSTs of one text-to-speech module: those being served, and a bounded number that wait."""

    def __init__(self, module: ServedModule) -> None:
        self._module = module
        self._uploads = Uploads(module)

    async def answer(self, request: Request) -> Response:
        """A wav; or, if a `Tts` module's client asks for times, JSON with the wav in base64 and the transcript."""
        bind_contextvars(module=self._module.name)
        self._module.metrics.connected()
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._uploads.place())
                query = await self._query(request)
                response = await self._answer(query, request)
            except ClientDisconnect:
                return refusal(400, "the client has gone")
            except MoshiServerError as error:
                refused = refusal_of(error)
                logger.info("text refused", extra={"fields": {"status": refused.status_code, "reason": error.message}})
                return refused
            if isinstance(response, SoundStream):  # it keeps the place until the last byte is sent
                response.place = place.pop_all()
            return response

    async def _query(self, request: Request) -> PostQuery:
        limits = self._module.limits
        body = await read_body(request, limits.max_message_bytes, limits.upload_seconds)
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidMessageError("the body must be a JSON object", hint='as {"text": "Hello."}') from None
        try:
            return PostQuery.model_validate(fields)
        except ValidationError as error:
            raise InvalidMessageError(complaint(error)) from None

    async def _answer(self, query: PostQuery, request: Request) -> Response:
        spoken = speak(self._module, query.turns, query.settings(self._module))
        try:
            if self._module.kind != "Tts":
                stream = SoundStream(spoken, self._module.limits.send_seconds)
                await first_of(stream.begin(), disconnected(request))
                return stream
            events: list[Audio | SpokenWord] = []

            async def collect() -> None:
                events.extend([event async for event in spoken])

            await first_of(collect(), disconnected(request))
        except BaseException:
            await spoken.aclose()
            raise
        return await asyncio.to_thread(_whole, events, query.return_timestamps)


class Sound:
    """How samples become the bytes of a body: here, a wav whose length nobody knows yet."""

    media_type = WAV

    def header(self) -> bytes:
        """What comes first."""
        return wav_header()

    def frame(self, pcm: NDArray[np.float32]) -> bytes:
        """The bytes of these samples (samples,); they may be empty, and come with later ones."""
        return pcm16(pcm)

    def end(self) -> bytes:
        """What comes last."""
        return b""


class SoundStream(Response):
    """Sound that is sent as it is spoken. If the speech fails, the connection is cut."""

    def __init__(self, spoken: AsyncGenerator[Audio | SpokenWord], patience: float, sound: Sound | None = None) -> None:
        self._sound = sound or Sound()
        super().__init__(media_type=self._sound.media_type)
        del self.headers["content-length"]
        self.place = contextlib.ExitStack()
        self._spoken = spoken
        self._patience = patience
        self._first = b""
        self._whole = False

    async def begin(self) -> None:
        """Wait for the first sound, so that what is wrong with the request can still be said in a status.

        Raises:
            SessionError: what is wrong.
        """
        async for event in self._spoken:
            if isinstance(event, Audio):
                self._first = self._sound.frame(event.pcm)
                return

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        with self.place:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await first_of(self._send(send), self._gone(receive))
            except (ClientDisconnect, MoshiServerError, TimeoutError) as error:
                logger.info("speech cut short", extra={"fields": {"reason": str(error) or type(error).__name__}})
                await _cut(receive)
            finally:
                await self._spoken.aclose()

    async def _send(self, send: Send) -> None:
        await self._put(send, self._sound.header() + self._first)
        async for event in self._spoken:
            if isinstance(event, Audio) and (data := self._sound.frame(event.pcm)):
                await self._put(send, data)
        self._whole = True
        await self._put(send, self._sound.end(), more=False)

    async def _put(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._patience):
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._whole:  # which is said of a response that is complete, too
            await asyncio.get_running_loop().create_future()
        raise ClientDisconnect


async def speak(
    module: ServedModule, turns: Sequence[str], settings: SpeechSettings
) -> AsyncGenerator[Audio | SpokenWord]:
    """A text as speech, as the model makes it; waits for a slot first.

    Args:
        module: a text-to-speech module.
        turns: what is said, by one speaker and the other in turn.
        settings: how; checked already.

    Raises:
        NoFreeSlotError: none came free within the module's ``post_wait_seconds``.
        SessionError: why the speech ended early.
    """
    session = await module.engine.open(wait_seconds=module.limits.post_wait_seconds)
    bind_contextvars(session=session.id)
    sending = asyncio.create_task(_say(session, turns, settings))
    frames = 0
    try:
        while events := await session.receive():
            for event in events:
                if isinstance(event, Audio | SpokenWord):
                    frames += isinstance(event, Audio)
                    yield event
    finally:
        session.close()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        logger.info("text spoken", extra={"fields": {"seconds": frames * FRAME_SIZE / SAMPLE_RATE}})


async def _say(session: Session, turns: Sequence[str], settings: SpeechSettings) -> None:
    with contextlib.suppress(SessionError):  # whoever receives is told the reason
        if settings != SpeechSettings():
            await session.send(settings)
        for number, turn in enumerate(turns):
            if number:
                await session.send(NextSpeaker())
            await session.send(Text(turn))
        await session.send(Eos())


def _whole(events: list[Audio | SpokenWord], with_words: bool) -> Response:
    parts = [event.pcm for event in events if isinstance(event, Audio)]
    wav = wav_bytes(np.concatenate(parts) if parts else np.zeros(0, np.float32))
    if not with_words:
        return Response(wav, media_type=WAV)
    words = [_word(event) for event in events if isinstance(event, SpokenWord) and event.text]
    return JSONResponse({"wav": base64.b64encode(wav).decode(), "transcript": words})


def _word(event: SpokenWord) -> dict[str, Any]:
    return {"text": event.text, "start_s": event.start, "stop_s": event.stop}


async def _cut(receive: Receive) -> None:
    """Cut the connection, so that the client sees that its file is not whole."""
    # ASGI has no word for it; uvicorn's cycle, whose method this is, knows its transport.
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # the server notices
        await asyncio.sleep(0)
