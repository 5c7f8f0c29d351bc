"""Text to speech over a WebSocket: four formats out, words in as messages or text frames; it knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket

from ..audio import OpusEncoder
from ..errors import InvalidMessageError
from ..events import Audio, Eos, Error, OggOpus, Ready, SpeechSettings, SpokenWord, Text, Voice
from ..protocol import tts
from ..speech.text import PieceJoiner
from ..speech.voices import Voices
from .module import ServedModule
from .routes import ServerState
from .websocket import Channel, Pump

MAX_SEED: Final = 2**64 - 1


class Format(StrEnum):
    """How speech is sent: raw or in MessagePack, as samples or as Opus."""

    PCM = "Pcm"
    PCM_MESSAGES = "PcmMessagePack"
    OPUS = "OggOpus"
    OPUS_MESSAGES = "OggOpusMessagePack"


class SpeechQuery(BaseModel):
    """How a client wants to be spoken to, under upstream's names; what is absent stays as configured."""

    model_config = ConfigDict(extra="ignore")

    voice: str | None = None
    voices: list[str] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=2**31)
    cfg_alpha: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    max_seq_len: int | None = Field(None, ge=1, le=2**31)

    def settings(self, module: ServedModule) -> SpeechSettings:
        """What the engine is told.

        Raises:
            InvalidMessageError: the voice is named twice, or not at all where it must be.
            ResourceNotFoundError: there is no such voice.
        """
        names = tuple(self.voices or ())
        if self.voice is not None and names:
            raise InvalidMessageError("voice and voices exclude each other", hint="give one of them")
        single = module.kind == "Tts"
        known = module.voices or Voices()
        if single and self.voice is None and not names:
            raise InvalidMessageError("either voice or voices must be given", hint="GET /api/voices lists them")
        if module.voices is not None:
            for name in (*names, *([self.voice] if self.voice is not None else [])):
                known.check(name)
        return SpeechSettings(
            voice=self.voice,
            voices=names,
            seed=self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            # Upstream's batched module takes its own from the configuration, whatever clients say (Unmute says 1.5).
            cfg_alpha=self.cfg_alpha if single else None,
            max_steps=self.max_seq_len,
        )


class StreamQuery(SpeechQuery):
    """The query of a WebSocket."""

    format: Format = Format.OPUS
    pieces: bool = False
    """Ours: text comes cut anywhere, so that a message's end is not the end of a word."""

    @classmethod
    def of(cls, query: QueryParams) -> StreamQuery:
        """Read a URL's query; what it does not know is passed over, as upstream does.

        Raises:
            InvalidMessageError: a value that cannot be meant.
        """
        fields: dict[str, Any] = dict(query)
        if "voices" in fields:
            fields["voices"] = query.getlist("voices")
        return cls.parse(fields)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> StreamQuery:
        """As `of`, from a mapping."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InvalidMessageError(complaint(error)) from None


class TtsWire:
    """One client's text and speech. Opus is encoded here.

    Args:
        format: how speech is sent; only the MessagePack ones tell words, errors and `Ready`.
        pieces: whether messages cut words.
    """

    def __init__(self, format: Format = Format.OPUS, *, pieces: bool = False) -> None:
        self._messages = format in (Format.PCM_MESSAGES, Format.OPUS_MESSAGES)
        self._opus = OpusEncoder() if format in (Format.OPUS, Format.OPUS_MESSAGES) else None
        self._joiner = PieceJoiner() if pieces else None
        self._spoken_to = False
        self._ended = False

    def decode(self, data: bytes | str) -> Iterator[Any]:
        """The events of one message; a text frame is text, as upstream has it."""
        event = Text(data) if isinstance(data, str) else tts.decode(data)
        if isinstance(event, Eos):
            if not self._ended:
                yield from self._text(self._joiner.finish() if self._joiner else "")
                yield event
            self._ended = True
        elif self._ended:
            raise InvalidMessageError("the text was said to be complete", hint="open another stream after Eos")
        elif isinstance(event, Voice):
            if self._spoken_to:
                raise InvalidMessageError("the voice must come before the text")
            yield event
        else:
            self._spoken_to = True
            yield from self._text(self._joiner.push(event.text) if self._joiner else event.text)

    def encode(self, event: Any) -> bytes | None:
        """One event as a binary message; Opus that fills no page waits for more."""
        match event:
            case Audio(pcm):
                if self._opus is not None:
                    return self._pages(self._opus.encode(pcm))
                return tts.encode(event) if self._messages else pcm.astype("<f4").tobytes()
            case SpokenWord(text) if not text:
                return None  # upstream does not tell these
        return tts.encode(event) if self._messages else None

    def opening(self) -> list[bytes]:
        """What the client is sent first: that it may begin, and the Opus header pages."""
        messages = [tts.encode(Ready())] if self._messages else []
        header = self._pages(self._opus.header()) if self._opus is not None else None
        return messages + ([header] if header else [])

    def ending(self) -> list[bytes]:
        """The last sound, and that it is the last."""
        page = self._pages(self._opus.finish()) if self._opus is not None else None
        return [page] if page else []

    def farewell(self, message: str) -> bytes:
        """An `Error` message, in the formats that have it."""
        return tts.encode(Error(message)) if self._messages else b""

    def _pages(self, pages: bytes) -> bytes | None:
        if not pages:
            return None
        return tts.encode(OggOpus(pages)) if self._messages else pages

    def _text(self, text: str) -> Iterator[Text]:
        if text:
            yield Text(text)


class SpeechPump(Pump):
    """One client that is spoken to, from the accepted upgrade to the close."""

    def __init__(self, websocket: WebSocket, module: ServedModule, query: StreamQuery, state: ServerState) -> None:
        self._tts = TtsWire(query.format, pieces=query.pieces)
        super().__init__(websocket, module, self._tts, state)
        self._query = query
        self._steps_seen = 0

    async def _open(self) -> Channel:
        settings = self._query.settings(self._module)
        session = await super()._open()
        if settings != SpeechSettings():
            await session.send(settings)
        return session

    def _events(self, data: bytes | str) -> Iterable[Any]:
        return self._tts.decode(data)

    def _messages(self, event: Any) -> Iterable[bytes]:
        return self._tts.opening() if isinstance(event, Ready) else super()._messages(event)

    def _last_messages(self) -> Iterable[bytes]:
        return self._tts.ending()

    def _busy(self, session: Channel) -> bool:
        steps, self._steps_seen = self._steps_seen, session.steps  # while it is spoken to, it need not say anything
        return session.steps != steps or super()._busy(session)


def complaint(error: ValidationError) -> str:
    """The first thing that is wrong with a query, in a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or 'the request'}: {first['msg']}"
