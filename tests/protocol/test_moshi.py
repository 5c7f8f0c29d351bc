"""The one-byte kinds: bytes by hand from the protocol's table, and hostile ones by hypothesis."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.errors import InvalidMessageError
from moshi_server.protocol import moshi
from moshi_server.protocol.moshi import Action, Frame, Kind


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (moshi.handshake(), bytes(9)),
        (moshi.handshake(1, 258), b"\x00\x01\x00\x00\x00\x02\x01\x00\x00"),
        (Frame(Kind.AUDIO, b"OggS"), b"\x01OggS"),
        (moshi.text("é"), b"\x02\xc3\xa9"),
        (Frame(Kind.CONTROL, b"\x03"), b"\x03\x03"),
        (moshi.metadata({"a": [1, "é"]}), b'\x04{"a":[1,"\xc3\xa9"]}'),
        (moshi.error("no"), b"\x05no"),
        (moshi.PING, b"\x06"),
        (moshi.coloured_text(5, "hi"), b"\x07\x05hi"),
        (Frame(Kind.IMAGE, b"\xff\xd8"), b"\x08\xff\xd8"),
        (moshi.codes(np.array([1, 2048, 2**32 - 1])), b"\x09\x01\x00\x00\x00\x00\x08\x00\x00\xff\xff\xff\xff"),
    ],
)
def test_frames_are_these_bytes(frame: Frame, data: bytes) -> None:
    assert frame.to_bytes() == data
    assert moshi.decode(data) == frame


def test_payloads_read_back() -> None:
    assert moshi.text("words").text == "words"
    assert moshi.coloured_text(255, "é").coloured_text == (255, "é")
    assert moshi.metadata({"a": None}).metadata == {"a": None}
    assert Frame(Kind.CONTROL, b"\x01").action is Action.END_TURN
    codes = moshi.codes(np.array([7, 2**31])).codes
    assert codes.dtype == np.uint32
    assert codes.tolist() == [7, 2**31]


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\xff\x01"])
def test_what_is_not_known_is_discarded(data: bytes) -> None:
    assert moshi.decode(data) is None


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\x02\xff", "text"),
        (b"\x03", "action"),
        (b"\x03\x04", "action"),
        (b"\x03\x00\x00", "action"),
        (b"\x04{", "metadata"),
        (b"\x04" + b"[" * 50_000, "metadata"),
        (b"\x07", "coloured_text"),
        (b"\x07\x00\xff", "coloured_text"),
        (b"\x09\x00\x00\x00", "codes"),
    ],
)
def test_a_broken_payload_is_refused(data: bytes, field: str) -> None:
    frame = moshi.decode(data)
    assert frame is not None
    with pytest.raises(InvalidMessageError):
        getattr(frame, field)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_frame_or_nothing(data: bytes) -> None:
    frame = moshi.decode(data)
    if frame is None:
        assert not data or data[0] > 9
        return
    assert frame.to_bytes() == data
    for field in ("text", "coloured_text", "action", "metadata", "codes"):
        with contextlib.suppress(InvalidMessageError):
            getattr(frame, field)
