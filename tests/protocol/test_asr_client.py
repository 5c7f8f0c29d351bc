"""The client's side of the wire against the server's: what one writes the other reads."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, EndWord, Error, Flush, Init, Marker, OggOpus, Ready, Step, Turn, Word
from moshi_server.protocol import asr, asr_client

INT64 = st.integers(-(2**63), 2**63 - 1)
SECONDS = st.floats(0, 1e6)


@given(st.one_of(st.just(Init()), st.just(Flush()), st.builds(Marker, INT64), st.builds(OggOpus, st.binary())))
def test_the_server_reads_what_the_client_writes(event):
    assert asr.decode(asr_client.encode(event)) == event


@pytest.mark.parametrize("samples", [0, 1, 15, 16, 1920, 70_000])
def test_samples_arrive_bit_for_bit(samples):
    pcm = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    got = asr.decode(asr_client.encode(Audio(pcm)))
    assert isinstance(got, Audio)
    assert np.array_equal(got.pcm, pcm)


def test_a_strided_view_is_sent_in_its_own_order():
    pcm = np.linspace(-1, 1, 100, dtype=np.float32)[::-2]
    got = asr.decode(asr_client.encode(Audio(pcm)))
    assert isinstance(got, Audio)
    assert np.array_equal(got.pcm, pcm)


@given(
    st.one_of(
        st.sampled_from([Ready(), Flush()]),
        st.builds(Marker, INT64),
        st.builds(Word, st.text(), SECONDS),
        st.builds(EndWord, SECONDS),
        st.builds(Turn, st.sampled_from(["start", "end"]), SECONDS),
        st.builds(Error, st.text()),
        st.builds(
            Step,
            st.integers(0, 2**40),
            st.lists(st.floats(0, 1, width=32), max_size=6).map(tuple),
            st.integers(0, 2**40),
        ),
    )
)
def test_the_client_reads_what_the_server_writes(event):
    assert asr_client.decode(asr.encode(event)) == event


def test_a_type_of_a_later_version_is_passed_over():
    assert asr_client.decode(msgpack.packb({"type": "Translation", "text": "un"})) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"type": "Word", "text": "a"}),
        msgpack.packb({"type": "Step", "step_idx": "x", "prs": 3, "buffered_pcm": 0}),
    ],
)
def test_what_is_not_of_the_protocol_is_an_error(data):
    with pytest.raises(InvalidMessageError):
        asr_client.decode(data)


@given(st.binary(max_size=60))
def test_random_bytes_are_an_event_or_an_error(data):
    try:
        event = asr_client.decode(data)
    except InvalidMessageError:
        return
    assert event is None or type(event).__module__ == "moshi_server.events"
