"""Fuzz targets: the messages of WebSockets, MessagePack and frames with a first byte, on both sides of the wire."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, cast

import msgpack
import numpy as np

from moshi_server.app.dialogue import DialogueWire
from moshi_server.app.rooms import ProducerWire
from moshi_server.app.speech import Format, TtsWire
from moshi_server.app.wire import AsrWire
from moshi_server.audio import OpusEncoder
from moshi_server.client import AsrClient, DialogueClient, TtsClient
from moshi_server.client.stream import ClientStream
from moshi_server.errors import AudioError, InvalidMessageError, MoshiServerError
from moshi_server.events import (
    Audio,
    EndWord,
    Error,
    Flush,
    Marker,
    OggOpus,
    Ready,
    SpokenWord,
    Step,
    Turn,
    Voice,
    Word,
)
from moshi_server.protocol import asr, asr_client, moshi, tts, tts_client
from moshi_server.protocol.openai_realtime import RealtimeTranscription

from .target import Target, agree, framed, parts_of

_PCM = [0.0, -0.0, 0.5, -1.0, 99.0, 1e-30]


def _said(decode: Callable[[bytes], Any], data: bytes) -> tuple[Any, str]:
    try:
        return decode(data), ""
    except InvalidMessageError as error:
        return None, str(error)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Audio) and isinstance(other, Audio):
        return one.pcm.dtype == other.pcm.dtype == np.float32 and one.pcm.tobytes() == other.pcm.tobytes()
    if isinstance(one, Voice) and isinstance(other, Voice):
        return one.embedding.shape == other.embedding.shape and one.embedding.tobytes() == other.embedding.tobytes()
    return bool(one == other)


def feed_asr(data: bytes) -> None:
    """Fast and slow way give the same event, or refuse for the same reason; what was read is written and read again."""
    fast, why = _said(asr.decode, data)
    slow, why_slow = _said(asr.decode_slow, data)
    agree(_same(fast, slow) and why == why_slow, f"fast: {fast} {why!r}, slow: {slow} {why_slow!r}")
    quick = asr.decode_samples(data)
    agree(quick is None or _same(quick, slow), f"quick: {quick}, slow: {slow}")
    if fast is not None:
        if isinstance(fast, Audio):
            agree(bool((np.abs(fast.pcm) <= asr.MAX_AMPLITUDE).all()), "a sample is out of range")
        agree(_same(asr.decode(asr_client.encode(fast)), fast), f"{fast} does not survive the way back")


def feed_tts(data: bytes) -> None:
    """An event or a refusal; what was read is written and read again."""
    event, _ = _said(tts.decode, data)
    if event is not None:
        agree(_same(tts.decode(tts_client.encode(event)), event), f"{event} does not survive the way back")


def feed_asr_stream(data: bytes) -> None:
    """A whole stream: message after message, Opus included."""
    wire = AsrWire()
    with contextlib.suppress(InvalidMessageError):
        for part in parts_of(data):
            for event in wire.decode(part):
                agree(not isinstance(event, OggOpus), "Opus came through")


def feed_tts_stream(data: bytes) -> None:
    """Text frames and binary ones; the first byte of each says which, and the very first how text is cut."""
    wire = TtsWire(Format.PCM_MESSAGES, pieces=bool(data[:1] > b"\x7f"))
    with contextlib.suppress(InvalidMessageError):
        for part in parts_of(data[1:]):
            text = part[:1] < b"\x40"
            list(wire.decode(part[1:].decode("utf-8", "replace") if text else part[1:]))


def feed_dialogue(data: bytes) -> None:
    """The frames of a dialogue, of a room's producer, and every reading of a frame."""
    for wire in (DialogueWire(), ProducerWire()):
        with contextlib.suppress(InvalidMessageError):
            for part in parts_of(data):
                list(wire.decode(part))
    for part in parts_of(data):
        frame = moshi.decode(part)
        if frame is None:
            continue
        agree(frame.to_bytes() == part, "a frame's bytes are not those it came as")
        for name in ("text", "coloured_text", "action", "metadata", "codes"):
            with contextlib.suppress(InvalidMessageError):
                getattr(frame, name)


def _client(make: Callable[[Any, str], ClientStream[Any]]) -> Callable[[bytes], None]:
    """What a client's stream makes of whatever a server may send."""

    def feed(data: bytes) -> None:
        stream = make(cast("Any", None), "ws://here")
        with contextlib.suppress(InvalidMessageError, AudioError):
            for part in parts_of(data):
                stream._take(part[1:].decode("utf-8", "replace") if part[:1] == b"\x00" else part[1:])

    return feed


def feed_realtime(data: bytes) -> None:
    """OpenAI's events: whatever comes is answered in JSON, and the session goes on."""
    session = RealtimeTranscription("asr", lambda name: name == "asr", beta=data[:1] > b"\x7f")
    told: list[Any] = []
    answers = session.give(Ready())
    for part in parts_of(data[1:]):
        events, more = session.take(part.decode("utf-8", "replace"))
        told += events
        answers += more
        for event in (Turn("start", 0.1), Word("one", 0.2), Turn("end", 0.5), Flush()):
            answers += session.give(event)
    for event in told:
        agree(isinstance(event, MoshiServerError) or type(event).__name__ in ("Audio", "Flush", "Init"), f"{event}")
    for answer in answers:
        agree("type" in json.loads(answer), "an answer has no type")


def _opus() -> list[bytes]:
    encoder = OpusEncoder()
    tone = np.sin(np.arange(5760) / 9).astype(np.float32) / 2
    return [encoder.header(), encoder.encode(tone), encoder.finish()]


def _pack(**fields: Any) -> bytes:
    return bytes(msgpack.packb(fields, use_single_float=True))


_ASR = [
    _pack(type="Audio", pcm=_PCM),
    _pack(type="Audio", pcm=_PCM * 4),
    msgpack.packb({"type": "Audio", "pcm": _PCM * 3}),
    _pack(type="Audio", pcm=[1, 0.5, -1]),
    _pack(type="Audio", pcm=[]),
    _pack(pcm=[0.5], type="Audio"),
    b"\x82\xa4type\xa5Audio\xa3pcm\xdd\x00\x00\x00\x02" + b"\xca\x3f\x00\x00\x00" * 2,
    b"\x82\xa4type\xa5Audio\xa3pcm\x92\xca\x7f\xc0\x00\x00\xca\x7f\x80\x00\x00",
    b"\x82\xa4type\xa5Audio\xa3pcm\x91\xcb\x7f\xef\xff\xff\xff\xff\xff\xff",
    _pack(type="Marker", id=-1),
    _pack(type="Marker", id=2**63),
    _pack(type="Init"),
    _pack(type="Flush"),
    _pack(type="OggOpus", data=b"OggS"),
    _pack(type="OggOpus", data=[79, 256]),
    _pack(type=None),
    b"\xc1",
]
_TTS = [
    b"\0",
    _pack(type="Text", text="one two é 😀"),
    _pack(type="Eos"),
    _pack(type="Voice", embeddings=[0.5] * 6, shape=[1, 2, 3]),
    msgpack.packb({"type": "Voice", "embeddings": [1, 1e300], "shape": [2]}),
    _pack(type="Voice", embeddings=[], shape=[0]),
]
_TTS_PIECES = [b"\x00one tw", b"\x00o <bre", b'\x00ak time="0.5s"/>', *(b"\x80" + message for message in _TTS)]
_FRAMES = [
    b"\x00" + bytes(8),
    b"\x02words",
    b"\x03\x01",
    b'\x04{"a": [1, {}]}',
    b"\x05why",
    b"\x06",
    b"\x07\x03red",
    b"\x08\xff\xd8",
    b"\x09" + bytes(range(32)),
    *(b"\x01" + part for part in _opus()),
]
_ASR_SERVER = [
    asr.encode(event)
    for event in (
        Ready(), Word("one", 0.5), EndWord(1.0), Step(3, (0.1, 0.2, 0.3, 0.4), 0), Marker(4),
        Turn("start", 1.0), Flush(),        Error("no free channels"),
    )
]  # fmt: skip
_TTS_SERVER = [
    tts.encode(event)
    for event in (
        Ready(), Audio(np.array(_PCM, np.float32)), *map(OggOpus, _opus()), SpokenWord("one", 0.1, 0.2), Error("no"),
    )
]  # fmt: skip
_REALTIME = [
    b'{"type": "input_audio_buffer.append", "audio": "' + b"AAAA" * 1600 + b'"}',
    b'{"type": "input_audio_buffer.append", "audio": "AAAB", "event_id": "e"}',
    b'{"type": "input_audio_buffer.commit"}',
    b'{"type": "input_audio_buffer.clear"}',
    b'{"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"format": {'
    b'"type": "audio/pcm", "rate": 24000}, "transcription": {"model": "asr", "language": "en"}, '
    b'"turn_detection": {"type": "server_vad"}}}}}',
    b'{"type": "transcription_session.update", "session": {"input_audio_format": "pcm16", "turn_detection": null}}',
]
_DICTIONARY_ASR = framed(*_ASR[:6], _ASR[9], _ASR[11], *(_pack(type="OggOpus", data=part) for part in _opus()))


def targets() -> list[Target]:
    return [
        Target("asr_message", feed_asr, _ASR, share=8),
        Target("tts_message", feed_tts, _TTS, share=5),
        Target("asr_stream", feed_asr_stream, [framed(message) for message in _ASR] + [_DICTIONARY_ASR], share=0.6),
        Target(
            "tts_stream",
            feed_tts_stream,
            [first + framed(*_TTS_PIECES[:3], _TTS_PIECES[4], _TTS_PIECES[3]) for first in (b"\x00", b"\xff")]
            + [b"\x00" + framed(message) for message in _TTS_PIECES],
        ),
        Target("dialogue_frames", feed_dialogue, [framed(*_FRAMES), *map(framed, _FRAMES)], share=0.6),
        Target(
            "asr_client",
            _client(AsrClient),
            [framed(*(b"\x01" + message for message in _ASR_SERVER)), framed(b"\x00text")],
            share=4,
        ),
        Target("tts_client", _client(TtsClient), [framed(*(b"\x01" + message for message in _TTS_SERVER))], share=0.6),
        Target(
            "dialogue_client", _client(DialogueClient), [framed(*(b"\x01" + frame for frame in _FRAMES))], share=0.6
        ),
        Target(
            "openai_realtime",
            feed_realtime,
            [first + framed(*_REALTIME) for first in (b"\x00", b"\xff")]
            + [b"\x00" + framed(each) for each in _REALTIME],
            max_len=8192,
        ),
    ]
