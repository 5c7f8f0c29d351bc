"""The text-to-speech codec: bytes made by hand from the MessagePack specification, and hostile ones by hypothesis."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import numpy as np
import ormsgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, Eos, Error, OggOpus, Ready, SpokenWord, Text, Voice
from moshi_server.protocol import tts, tts_client

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def f32(*values: float) -> bytes:
    return b"".join(b"\xca" + struct.pack(">f", value) for value in values)


def f64(value: float) -> bytes:
    return b"\xcb" + struct.pack(">d", value)


FRAME = np.linspace(-1, 1, 1920, dtype=np.float32)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Ready(), b"\x81\xa4type\xa5Ready"),
        (
            SpokenWord("hi", 1.5, 2.0),
            b"\x84\xa4type\xa4Text\xa4text\xa2hi\xa7start_s" + f64(1.5) + b"\xa6stop_s" + f64(2.0),
        ),
        (
            SpokenWord("é" * 16, 0, 12),  # whole numbers stay doubles; 32 bytes need a longer head
            b"\x84\xa4type\xa4Text\xa4text\xd9\x20"
            + "é".encode() * 16
            + b"\xa7start_s"
            + f64(0)
            + b"\xa6stop_s"
            + f64(12),
        ),
        (Audio(np.array([0.5, -1.0], np.float32)), b"\x82\xa4type\xa5Audio\xa3pcm\x92" + f32(0.5, -1.0)),
        (Audio(np.array([0.5], np.float64)), b"\x82\xa4type\xa5Audio\xa3pcm\x91" + f32(0.5)),
        (Audio(FRAME), b"\x82\xa4type\xa5Audio\xa3pcm\xdc\x07\x80" + f32(*FRAME)),
        (OggOpus(b"\x00\x7f\x80\xff"), b"\x82\xa4type\xa7OggOpus\xa4data\x94\x00\x7f\xcc\x80\xcc\xff"),
        (OggOpus(bytes(16)), b"\x82\xa4type\xa7OggOpus\xa4data\xdc\x00\x10" + bytes(16)),
        (OggOpus(b""), b"\x82\xa4type\xa7OggOpus\xa4data\x90"),
        (Error("no free channels"), b"\x82\xa4type\xa5Error\xa7message\xb0no free channels"),
    ],
)
def test_messages_out_are_upstreams_byte_for_byte(event: Any, expected: bytes) -> None:
    assert tts.encode(event) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (msgpack.packb({"type": "Text", "text": "hello"}), Text("hello")),
        (msgpack.packb({"text": "", "type": "Text", "more": 1}), Text("")),
        (msgpack.packb({"type": "Eos"}), Eos()),
        (b"\0", Eos()),
    ],
)
def test_messages_in(data: bytes, expected: Any) -> None:
    assert tts.decode(data) == expected


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("shape", [[6], [2, 3], [1, 2, 3]])
def test_a_voice(shape: list[int], single: bool) -> None:
    message = {"type": "Voice", "embeddings": [0.5, 1, -2.0, 3.5, 0, 6.25], "shape": shape}
    voice = tts.decode(msgpack.packb(message, use_single_float=single))
    assert isinstance(voice, Voice)
    assert voice.embedding.shape == tuple(shape)
    assert voice.embedding.dtype == np.float32
    assert voice.embedding.reshape(-1).tolist() == [0.5, 1, -2.0, 3.5, 0, 6.25]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "Text"}, "needs 'text'"),
        ({"type": "Text", "text": 5}, "'text' must be a string, not an integer"),
        ({"type": "Text", "text": b"\xff"}, "'text' must be a string, not bytes"),
        ({"type": "Voice", "embeddings": [1.0]}, "needs 'shape'"),
        ({"type": "Voice", "embeddings": [1.0, 2.0], "shape": [3]}, "holds 2 numbers, but its 'shape' is (3,)"),
        ({"type": "Voice", "embeddings": [1.0], "shape": [1, 1, 1, 1]}, "1 to 3 dimensions, not 4"),
        ({"type": "Voice", "embeddings": [1.0], "shape": []}, "1 to 3 dimensions, not 0"),
        ({"type": "Voice", "embeddings": [], "shape": [0]}, "positive integers"),
        ({"type": "Voice", "embeddings": [1.0], "shape": [-1, -1]}, "positive integers"),
        ({"type": "Voice", "embeddings": [1.0], "shape": [True]}, "positive integers"),
        ({"type": "Voice", "embeddings": [1.0], "shape": 1}, "positive integers"),
        ({"type": "Voice", "embeddings": ["a"], "shape": [1]}, "numbers only, but has a string"),
        ({"type": "Voice", "embeddings": "abc", "shape": [3]}, "must be an array of numbers, not a string"),
        ({"type": "Voice", "embeddings": [float("nan")], "shape": [1]}, "finite numbers"),
        ({"type": "Voice", "embeddings": [1e300], "shape": [1]}, "finite numbers"),
        ({"type": "Shout"}, "unknown message type 'Shout'"),
        ({"type": 7}, "'type' must be a string"),
        ({}, "has no 'type'"),
        ([1], "must be a MessagePack map"),
    ],
)
def test_what_is_refused_and_why(message: Any, reason: str) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        tts.decode(msgpack.packb(message))
    assert reason in str(caught.value)


@relaxed
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        event = tts.decode(data)
    except InvalidMessageError:
        return
    assert isinstance(event, Text | Voice | Eos)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@relaxed
@given(
    st.sampled_from(["Text", "Voice", "Eos"]),
    st.dictionaries(st.sampled_from(["text", "embeddings", "shape", "x"]), json_like),
)
def test_any_fields_are_a_message_or_refused(kind: str, fields: dict[str, Any]) -> None:
    try:
        event = tts.decode(ormsgpack.packb({"type": kind, **fields}))
    except InvalidMessageError:
        return
    assert type(event).__name__ == kind


@pytest.mark.parametrize("event", [Text("one two"), Text(""), Eos()])
def test_the_clients_messages_are_read_by_the_server(event: Any) -> None:
    assert tts.decode(tts_client.encode(event)) == event


def test_the_clients_voice_is_read_by_the_server() -> None:
    embedding = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    voice = tts.decode(tts_client.encode(Voice(embedding)))
    assert isinstance(voice, Voice)
    assert np.array_equal(voice.embedding, embedding)


@pytest.mark.parametrize("event", [Ready(), SpokenWord("a", 0.08, 1.6), OggOpus(bytes(range(256))), Error("why")])
def test_the_servers_messages_are_read_by_the_client(event: Any) -> None:
    assert tts_client.decode(tts.encode(event)) == event


@pytest.mark.parametrize("samples", [0, 1, 15, 16, 1920, 70_000])
def test_the_servers_audio_is_read_by_the_client(samples: int) -> None:
    pcm = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    event = tts_client.decode(tts.encode(Audio(pcm)))
    assert isinstance(event, Audio)
    assert np.array_equal(event.pcm, pcm)


def test_a_client_passes_over_news_and_refuses_what_is_no_message() -> None:
    assert tts_client.decode(msgpack.packb({"type": "News"})) is None
    for data in (b"\xc1", msgpack.packb({"type": "Text", "text": "a"}), msgpack.packb({"type": "Audio", "pcm": ["x"]})):
        with pytest.raises(InvalidMessageError):
            tts_client.decode(data)
