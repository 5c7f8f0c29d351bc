"""Hostile bytes at the door of a dialogue: events, or one typed refusal, and nothing else."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.app.dialogue import DialogueWire
from moshi_server.audio import OpusEncoder
from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, Control, Metadata, Ready, Step, Text
from moshi_server.protocol.moshi import Kind

PAGES = OpusEncoder().encode(np.zeros(3 * 1920, np.float32))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An audio frame of real pages with some bytes changed, or cut short."""
    data = bytearray(PAGES)
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[place] = draw(st.integers(0, 255))
    return b"\x01" + bytes(data[: draw(st.integers(0, len(data)))])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60) | damaged(), max_size=4))
def test_any_bytes_are_events_or_refused_with_a_reason(messages: list[bytes]) -> None:
    wire = DialogueWire()
    with contextlib.suppress(InvalidMessageError):
        for message in messages:
            for event in wire.decode(message):
                assert isinstance(event, Audio | Control | Metadata)
                if isinstance(event, Audio):
                    assert np.isfinite(event.pcm).all()


def test_what_goes_out_is_one_frame_an_event() -> None:
    wire = DialogueWire()
    assert wire.encode(Ready()) == bytes(9)
    header = wire.encode(Audio(np.zeros(0, np.float32)))
    assert header is not None
    assert header.count(b"OggS") == 2
    assert wire.encode(Audio(np.zeros(1000, np.float32))) is None, "less than a page waits"
    page = wire.encode(Audio(np.zeros(1000, np.float32)))
    assert page is not None
    assert (page[0], page.count(b"OggS")) == (Kind.AUDIO, 1)
    assert wire.encode(Text(" hé")) == b"\x02 h\xc3\xa9"
    assert wire.encode(Metadata({"a": 1})) == b'\x04{"a":1}'
    assert wire.encode(Step(1, (), 0)) is None
    assert wire.farewell("no") == b"\x05no"
