"""The speech-to-text codec: bytes made by hand from the MessagePack specification, and hostile ones by hypothesis."""

from __future__ import annotations

import struct
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, EndWord, Error, Flush, Init, Marker, OggOpus, Ready, Step, Turn, Word
from moshi_server.protocol import asr

AUDIO = b"\x82\xa4type\xa5Audio\xa3pcm"
"""fixmap of 2; fixstr 4 "type"; fixstr 5 "Audio"; fixstr 3 "pcm"."""

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Time limits are kept where they are meant; a busy machine must not fail the others."""


def f32(*values: float) -> bytes:
    return b"".join(b"\xca" + struct.pack(">f", value) for value in values)


def f64(*values: float) -> bytes:
    return b"".join(b"\xcb" + struct.pack(">d", value) for value in values)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Ready(), b"\x81\xa4type\xa5Ready"),
        (
            Word("hi", 1.5),
            b"\x83\xa4type\xa4Word\xa4text\xa2hi\xaastart_time\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",
        ),
        (
            Word("é", 0.0),
            b"\x83\xa4type\xa4Word\xa4text\xa2\xc3\xa9\xaastart_time\xcb\x00\x00\x00\x00\x00\x00\x00\x00",
        ),
        (EndWord(2.0), b"\x82\xa4type\xa7EndWord\xa9stop_time\xcb\x40\x00\x00\x00\x00\x00\x00\x00"),
        (Marker(0), b"\x82\xa4type\xa6Marker\xa2id\x00"),
        (Marker(127), b"\x82\xa4type\xa6Marker\xa2id\x7f"),
        (Marker(128), b"\x82\xa4type\xa6Marker\xa2id\xcc\x80"),
        (Marker(256), b"\x82\xa4type\xa6Marker\xa2id\xcd\x01\x00"),
        (Marker(65536), b"\x82\xa4type\xa6Marker\xa2id\xce\x00\x01\x00\x00"),
        (Marker(2**63 - 1), b"\x82\xa4type\xa6Marker\xa2id\xcf\x7f" + b"\xff" * 7),
        (Marker(-1), b"\x82\xa4type\xa6Marker\xa2id\xff"),
        (Marker(-33), b"\x82\xa4type\xa6Marker\xa2id\xd0\xdf"),
        (Marker(-200), b"\x82\xa4type\xa6Marker\xa2id\xd1\xff\x38"),
        (Marker(-(2**63)), b"\x82\xa4type\xa6Marker\xa2id\xd3\x80" + b"\x00" * 7),
        (
            Step(300, (0.5, 0.25), 1920),
            b"\x84\xa4type\xa4Step\xa8step_idx\xcd\x01\x2c\xa3prs\x92\xca\x3f\x00\x00\x00\xca\x3e\x80\x00\x00"
            b"\xacbuffered_pcm\xcd\x07\x80",
        ),
        (Step(0, (), 0), b"\x84\xa4type\xa4Step\xa8step_idx\x00\xa3prs\x90\xacbuffered_pcm\x00"),
        (
            Error("no free channels"),
            b"\x82\xa4type\xa5Error\xa7message\xb0no free channels",
        ),
        (
            Error("x" * 40),
            b"\x82\xa4type\xa5Error\xa7message\xd9\x28" + b"x" * 40,
        ),
        (Flush(), b"\x81\xa4type\xa5Flush"),
        (
            Turn("start", 1.0),
            b"\x83\xa4type\xa4Turn\xa4kind\xa5start\xa4time\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
        ),
    ],
)
def test_server_messages_are_upstreams_bytes(event: Any, expected: bytes) -> None:
    assert asr.encode(event) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x81\xa4type\xa4Init", Init()),
        (b"\x81\xa4type\xa5Flush", Flush()),
        (b"\x82\xa4type\xa6Marker\xa2id\x07", Marker(7)),
        (b"\x82\xa2id\xff\xa4type\xa6Marker", Marker(-1)),
        (b"\x82\xa4type\xa7OggOpus\xa4data\xc4\x03abc", OggOpus(b"abc")),
        (b"\x82\xa4type\xa7OggOpus\xa4data\x93\x61\x62\xcc\xff", OggOpus(b"ab\xff")),
        (b"\x82\xa4type\xa7OggOpus\xa4data\xc4\x00", OggOpus(b"")),
        (b"\x82\xa4type\xa4Init\xa5extra\xc0", Init()),
    ],
)
def test_client_messages(data: bytes, expected: object) -> None:
    assert asr.decode(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (AUDIO + b"\x90", []),
        (AUDIO + b"\x93" + f32(0.5, -0.25, 1.0), [0.5, -0.25, 1.0]),
        (AUDIO + b"\xdc\x00\x02" + f32(0.5, -0.25), [0.5, -0.25]),
        (AUDIO + b"\xdd\x00\x00\x00\x02" + f64(0.5, -0.25), [0.5, -0.25]),
        (AUDIO + b"\x94" + f32(0.5) + f64(0.25) + b"\x00\xff", [0.5, 0.25, 0.0, -1.0]),
        (b"\x82\xa3pcm\x91" + f32(0.5) + b"\xa4type\xa5Audio", [0.5]),
        (b"\x82\xd9\x04type\xa5Audio\xa3pcm\x91" + f32(0.5), [0.5]),
        # Upstream's decoder, too, does not look at what follows the map.
        (AUDIO + b"\x91" + f32(0.5) + b"\xc1", [0.5]),
        # Five one-byte cells that could pass for one float32 cell by their length alone.
        (AUDIO + b"\x95\x00\x01\x00\x01\x00", [0.0, 1.0, 0.0, 1.0, 0.0]),
    ],
)
def test_audio_in_every_number_form(data: bytes, expected: list[float]) -> None:
    event = asr.decode(data)
    assert isinstance(event, Audio)
    assert event.pcm.dtype == np.float32
    assert event.pcm.tolist() == expected


NAN = float("nan")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xc1", "not valid MessagePack"),
        (b"hello there", "must be a MessagePack map, not an integer"),
        (b"\x90", "must be a MessagePack map, not an array"),
        (b"\xa4Init", "must be a MessagePack map, not a string"),
        (b"\x80", "no 'type'"),
        (b"\x81\xa4type\x05", "'type' must be a string, not an integer"),
        (b"\x81\xa4type\xa4Stop", "unknown message type 'Stop'"),
        (b"\x81\x05\x05", "not valid MessagePack"),
        (b"\x81\xa4type\xa5Audio", "needs 'pcm'"),
        (b"\x81\xa4type\xa6Marker", "needs 'id'"),
        (b"\x81\xa4type\xa7OggOpus", "needs 'data'"),
        (b"\x82\xa4type\xa6Marker\xa2id\xcb" + b"\x00" * 8, "64-bit signed integer"),
        (b"\x82\xa4type\xa6Marker\xa2id\xc3", "64-bit signed integer"),
        (b"\x82\xa4type\xa6Marker\xa2id\xcf" + b"\xff" * 8, "64-bit signed integer"),
        (b"\x82\xa4type\xa7OggOpus\xa4data\xa3abc", "'data' must be bytes or an array of integers"),
        (b"\x82\xa4type\xa7OggOpus\xa4data\x91\xcd\x01\x00", "0 to 255"),
        (b"\x82\xa4type\xa7OggOpus\xa4data\x91\xff", "0 to 255"),
        (b"\x82\xa4type\xa7OggOpus\xa4data\x91\xc3", "0 to 255"),
        (AUDIO + b"\xa3abc", "array of numbers, not a string"),
        (AUDIO + b"\xc4\x04" + b"\x00" * 4, "array of numbers, not bytes"),
        (AUDIO + b"\x92\xa11" + f32(1.0), "numbers only, but has a string"),
        (AUDIO + b"\x92\xc2\xc0", "numbers only, but has a boolean, nil"),
        (AUDIO + b"\x91\x91" + f32(1.0), "numbers only, but has an array"),
        (AUDIO + b"\x92" + f32(0.0, NAN), "sample 1 of 'pcm' is nan"),
        (AUDIO + b"\x92" + f32(float("inf"), 0.0), "sample 0 of 'pcm' is inf"),
        (AUDIO + b"\x91" + f32(1e30), "sample 0 of 'pcm' is 1e+30"),
        (AUDIO + b"\x91" + f64(1e300), "sample 0 of 'pcm' is inf"),
        (AUDIO + b"\x92" + f64(1e300) + b"\x00", "sample 0 of 'pcm' is inf"),
        (AUDIO + b"\x92\xcd\x7f\xff\x00", "divide 16-bit samples"),
        (AUDIO + b"\x92" + f32(1.0), "not valid MessagePack"),
        (AUDIO + b"\xdd\xff\xff\xff\xff", "not valid MessagePack"),
        (AUDIO + b"\xdd\xff\xff\xff\xff" + f32(1.0), "not valid MessagePack"),
        (b"\x91" * 100_000, "not valid MessagePack"),
        (b"\xdd\x10\x00\x00\x00" * 1000, "not valid MessagePack"),
    ],
)
def test_what_is_not_of_the_protocol_is_refused_with_a_sentence(data: bytes, reason: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidMessageError) as caught:
        asr.decode(data)
    assert reason in f"{caught.value.message} {caught.value.hint}"
    assert time.perf_counter() - started < 0.5


def outcome(decoder: Any, data: bytes) -> object:
    try:
        event = decoder(data)
    except InvalidMessageError as error:
        return str(error)
    return ("audio", event.pcm.tobytes()) if isinstance(event, Audio) else event


numbers = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, -1, 0.0]),
)


@relaxed
@given(st.lists(numbers, max_size=40), st.sampled_from(["f32", "f64", "as is"]), st.binary(max_size=6))
def test_the_fast_path_equals_the_slow_path(values: list[Any], form: str, tail: bytes) -> None:
    if form == "as is":
        data = msgpack.packb({"type": "Audio", "pcm": values})
    else:
        clipped = [float(np.clip(value, -3e38, 3e38)) for value in values]
        data = msgpack.packb({"type": "Audio", "pcm": clipped}, use_single_float=form == "f32")
    for message in (data, data + tail, data[: len(data) - len(tail)]):
        assert outcome(asr.decode, message) == outcome(asr.decode_slow, message)


@relaxed
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: AUDIO + tail))
def test_any_bytes_give_an_event_or_a_refusal(data: bytes) -> None:
    assert outcome(asr.decode, data) == outcome(asr.decode_slow, data)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
any_value = st.recursive(
    scalars | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@relaxed
@given(
    st.sampled_from(["Init", "Audio", "OggOpus", "Marker", "Flush", "Ready", ""]),
    st.dictionaries(st.sampled_from(["pcm", "data", "id", "other"]), any_value, max_size=4),
)
def test_any_map_gives_an_event_or_a_refusal(kind: str, fields: dict[str, Any]) -> None:
    outcome(asr.decode, msgpack.packb({"type": kind, **fields}))


@relaxed
@given(st.text(), st.floats(), st.lists(st.floats(width=32), max_size=5), st.integers(0, 2**40))
def test_server_messages_read_back(text: str, number: float, prs: list[float], count: int) -> None:
    word = msgpack.unpackb(asr.encode(Word(text, number)))
    assert list(word) == ["type", "text", "start_time"]
    assert word["text"] == text
    assert struct.pack("d", word["start_time"]) == struct.pack("d", number)
    step = msgpack.unpackb(asr.encode(Step(count, tuple(prs), count)))
    assert list(step) == ["type", "step_idx", "prs", "buffered_pcm"]
    assert np.array_equal(np.array(step["prs"]), np.array(prs), equal_nan=True)


def test_a_frame_is_decoded_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 ms of float32 never reach the general decoder (benchmarks/decode.py says what that saves)."""
    pcm = np.random.default_rng(0).uniform(-1, 1, 1920).astype(np.float32)
    data = msgpack.packb({"type": "Audio", "pcm": pcm.tolist()}, use_single_float=True)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the general decoder was asked")

    monkeypatch.setattr(asr, "decode_slow", refuse)
    event = asr.decode(data)
    assert isinstance(event, Audio)
    assert np.array_equal(event.pcm, pcm)
