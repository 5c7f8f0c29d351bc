"""Ogg/Opus in and out: cut pages, chained streams, lying headers, hostile bytes."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.audio import FRAME_SIZE, SAMPLE_RATE, OpusDecoder, OpusEncoder, ogg
from moshi_server.errors import AudioError


def voice(seconds: float, pitch: float = 150.0) -> np.ndarray:
    """Something a speech codec takes for speech: harmonics whose strength and pitch wander."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * pitch * (t + 0.01 * np.sin(2 * np.pi * 3 * t))
    tone = sum(np.sin(k * phase) / k for k in range(1, 8))
    return (0.15 * tone * (1.1 + np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def encode(pcm: np.ndarray, cut: int = 1000) -> bytes:
    encoder = OpusEncoder()
    return b"".join([*(encoder.encode(pcm[at : at + cut]) for at in range(0, len(pcm), cut)), encoder.finish()])


def pages(data: bytes) -> list[ogg.Page]:
    reader = ogg.PageReader()
    reader.push(data)
    return list(reader.pages())


def snr(wanted: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - got) ** 2))


PCM = voice(1.234)
STREAM = encode(PCM)
WHOLE = OpusDecoder().feed(STREAM)


def test_what_is_encoded_comes_back_aligned_and_of_the_same_length():
    assert WHOLE.dtype == np.float32
    assert len(WHOLE) == len(PCM)
    best = max(range(-40, 41), key=lambda shift: snr(PCM, np.roll(WHOLE, shift)))
    assert abs(best) < 12  # half a millisecond; what is left is the phase of the codec's own filters


@pytest.mark.parametrize(
    "samples", [0, 1, FRAME_SIZE - 157, FRAME_SIZE - 156, FRAME_SIZE, FRAME_SIZE + 1, 5 * FRAME_SIZE]
)
def test_any_length_is_kept(samples):
    assert len(OpusDecoder().feed(encode(voice(1)[:samples]))) == samples


def test_the_header_can_be_had_first_and_comes_once():
    encoder = OpusEncoder()
    header = encoder.header()
    assert [page.body[:8] for page in pages(header)] == [b"OpusHead", b"OpusTags"]
    assert encoder.header() == b""
    body = encoder.encode(PCM)
    assert b"OpusHead" not in body
    assert len(OpusDecoder().feed(header + body + encoder.finish())) == len(PCM)


def test_each_frame_is_a_page_at_once():
    encoder, decoder = OpusEncoder(), OpusDecoder()
    assert len(decoder.feed(encoder.header())) == 0
    for number in range(5):
        got = decoder.feed(encoder.encode(voice(1)[:FRAME_SIZE]))
        assert len(got) == FRAME_SIZE - (156 if number == 0 else 0)


def test_positions_are_those_of_the_standard():
    granules = [page.granule for page in pages(STREAM)]
    assert granules[:4] == [0, 0, 3840, 7680]
    assert granules[-1] == 2 * len(PCM) + 312
    assert [page.flags for page in pages(STREAM)] == [ogg.BEGIN, *[0] * (len(granules) - 2), ogg.END]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_pages_cut_anywhere(cuts):
    decoder = OpusDecoder()
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [decoder.feed(STREAM[a:b]) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), WHOLE)
    assert decoder.ended


def test_byte_by_byte():
    decoder = OpusDecoder()
    parts = [decoder.feed(STREAM[at : at + 1]) for at in range(len(STREAM))]
    assert np.array_equal(np.concatenate(parts), WHOLE)


def test_ended_is_said_at_the_last_page_only():
    decoder = OpusDecoder()
    decoder.feed(STREAM[:-1])
    assert not decoder.ended
    decoder.feed(STREAM[-1:])
    assert decoder.ended


def test_a_stream_cut_short_gives_what_was_whole():
    decoder = OpusDecoder()
    got = decoder.feed(STREAM[: len(STREAM) * 2 // 3])
    assert 0 < len(got) < len(WHOLE)
    assert np.array_equal(got, WHOLE[: len(got)])
    assert not decoder.ended


def test_a_second_stream_may_be_chained():
    second = encode(voice(0.5, pitch=220))
    decoder = OpusDecoder()
    got = decoder.feed(STREAM + second)
    assert np.array_equal(got, np.concatenate([WHOLE, OpusDecoder().feed(second)]))
    assert decoder.ended


def test_pages_of_other_streams_are_passed_over():
    theora = ogg.Page(ogg.BEGIN, 0, 77, 0, b"\x07", b"\x80theora").to_bytes()
    more = ogg.Page(0, 1, 77, 1, b"\x03", b"abc").to_bytes()
    head, *rest = pages(STREAM)
    mixed = theora + head.to_bytes() + more + b"".join(page.to_bytes() + more for page in rest)
    assert np.array_equal(OpusDecoder().feed(mixed), WHOLE)


def test_several_seconds_in_one_page_and_one_call():
    """Other encoders put a second in a page of 16 kB."""
    first, tags, *rest = pages(encode(voice(4)))
    lacing, body, packed = b"", b"", [first, tags]
    for page in rest:
        lacing, body = lacing + page.lacing, body + page.body
        if len(lacing) > 100 or page is rest[-1]:
            packed.append(ogg.Page(page.flags, page.granule, page.serial, len(packed), lacing, body))
            lacing = body = b""
    assert any(len(page.body) > 4096 for page in packed)
    got = OpusDecoder().feed(b"".join(page.to_bytes() for page in packed))
    assert np.array_equal(got, OpusDecoder().feed(encode(voice(4))))


def test_sphns_own_streams_keep_their_first_word():
    """The sphn encoder, and upstream's clients with it, says to skip 80 ms, but begins with real sound."""
    writer = sphn.OpusStreamWriter(SAMPLE_RATE)
    frames = voice(0.8).reshape(-1, FRAME_SIZE)
    got = OpusDecoder().feed(b"".join(writer.append_pcm(frame) for frame in frames))
    assert len(got) == frames.size - 156
    assert snr(voice(0.8)[: len(got)], got) > 5


def test_a_declared_skip_and_gain_are_honoured():
    first, *rest = pages(STREAM)
    head = bytearray(first.body)
    head[10:12] = (3840).to_bytes(2, "little")
    head[16:18] = (-6 * 256).to_bytes(2, "little", signed=True)
    changed = ogg.Page(first.flags, 0, first.serial, 0, first.lacing, bytes(head))
    got = OpusDecoder().feed(b"".join(page.to_bytes() for page in [changed, *rest]))
    assert len(got) == len(WHOLE) - (3840 - 312) // 2
    assert np.allclose(got, WHOLE[-len(got) :] * 10 ** (-6 / 20), atol=1e-5)


def test_an_end_position_outside_the_last_page_is_not_believed():
    *rest, last = pages(STREAM)
    for granule in (1, 10**12):
        lying = ogg.Page(last.flags, granule, last.serial, last.sequence, last.lacing, last.body)
        got = OpusDecoder().feed(b"".join(page.to_bytes() for page in [*rest, lying]))
        assert len(got) >= len(WHOLE)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"RIFF1234WAVEfmt ", "no Ogg stream"),
        (b"".join(page.to_bytes() for page in pages(STREAM)[2:]), "does not begin with an Opus header"),
        (
            ogg.Page(ogg.BEGIN, 0, 1, 0, b"\x07", b"\x01vorbis").to_bytes()
            + ogg.Page(0, 0, 1, 1, b"\x03", b"abc").to_bytes(),
            "holds Vorbis",
        ),
        (ogg.Page(ogg.BEGIN, 0, 1, 0, b"\x09", b"OpusHead\x01").to_bytes(), "cut short"),
        (ogg.Page(ogg.BEGIN, 0, 1, 0, b"\x13", b"OpusHead\x01\x06" + bytes(8) + b"\x01").to_bytes(), "6 channels"),
        (STREAM[:500] + bytes((STREAM[500] ^ 1,)) + STREAM[501:], "checksum"),
    ],
)
def test_what_is_wrong_is_said(data, complaint):
    with pytest.raises(AudioError, match=complaint):
        OpusDecoder().feed(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_wait(data):
    decoder = OpusDecoder()
    with contextlib.suppress(AudioError):
        assert len(decoder.feed(data)) == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=254), st.integers(0, 7), st.integers(-1, 2**40)), max_size=6))
def test_well_formed_pages_of_random_packets_do_no_harm(packets):
    """The checksum fits, so these reach the codec itself."""
    head, tags, *_ = pages(STREAM)
    data = head.to_bytes() + tags.to_bytes()
    for number, (body, flags, granule) in enumerate(packets):
        flags &= ~ogg.BEGIN
        data += ogg.Page(flags, granule, head.serial, 2 + number, bytes((len(body),)), body).to_bytes()
    try:
        pcm = OpusDecoder().feed(data)
    except AudioError:
        return
    assert pcm.dtype == np.float32
    assert len(pcm) <= len(packets) * SAMPLE_RATE * 0.12
    assert np.isfinite(pcm).all()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 3))
def test_random_headers_do_no_harm(body, flags):
    data = ogg.Page(ogg.BEGIN | flags & ~ogg.BEGIN, 0, 5, 0, bytes((len(body) + 8,)), b"OpusHead" + body).to_bytes()
    rest = [ogg.Page(p.flags, p.granule, 5, p.sequence, p.lacing, p.body).to_bytes() for p in pages(STREAM)[1:]]
    with contextlib.suppress(AudioError):
        assert len(OpusDecoder().feed(data + b"".join(rest))) <= len(WHOLE) + 156


def padded(packet: bytes) -> bytes:
    """The same packet of one or two frames with 300 bytes of padding (RFC 6716, 3.2.5)."""
    count = {0: 0x41, 1: 0x42, 2: 0xC2}[packet[0] & 3]
    return bytes((packet[0] | 3, count, 255, 46)) + packet[1:] + bytes(300)


def test_packets_that_span_pages_and_a_cover_picture():
    first, tags, *rest = pages(STREAM)
    # Tags of 200 kB, and the sound's packets cut at places that are no packet's end.
    picture = tags.body + bytes(200_000)
    parts = [picture[at : at + 65025] for at in range(0, len(picture), 65025)]
    out = [first]
    for number, part in enumerate(parts):
        lacing = ogg.lacing(part) if part is parts[-1] else b"\xff" * 255
        out.append(ogg.Page(ogg.CONTINUED if number else 0, -1, first.serial, len(out), lacing, part))
    packets = [padded(packet) for reader in [ogg.PacketReader()] for page in rest for packet in reader.take(page)]
    lacing, body, at = b"".join(map(ogg.lacing, packets)), b"".join(packets), 0
    for start in range(len(lacing)):
        some = lacing[start : start + 1]
        flags = ogg.CONTINUED if start and lacing[start - 1] == 255 else 0
        out.append(ogg.Page(flags, 0, first.serial, len(out), some, body[at : at + sum(some)]))
        at += sum(some)
    assert any(page.flags & ogg.CONTINUED for page in out[5:])
    got = OpusDecoder().feed(b"".join(page.to_bytes() for page in out))
    assert np.array_equal(got[: len(WHOLE)], WHOLE)


def test_a_packet_too_large_for_opus():
    first, tags, *_ = pages(STREAM)
    huge = ogg.Page(0, 0, first.serial, 2, b"\xff" * 255, bytes(255 * 255))
    rest = ogg.Page(ogg.CONTINUED, 0, first.serial, 3, b"\x01", b"x")
    with pytest.raises(AudioError, match="no packet of sound is this large"):
        OpusDecoder().feed(b"".join(page.to_bytes() for page in (first, tags, huge, rest)))


def test_a_small_page_that_holds_half_a_minute_comes_one_page_at_a_time():
    """Empty packets of 120 ms: 300 bytes make 30 s, so a hostile megabyte would make a day of sound at once."""
    head, tags, *_ = pages(STREAM)
    decoder = OpusDecoder()
    decoder.feed(head.to_bytes() + tags.to_bytes())
    bomb = [
        ogg.Page(0, -1, head.serial, 2 + n, b"\x02" * 255, bytes((0b00011011, 2)) * 255).to_bytes() for n in range(50)
    ]
    first = next(iter(decoder.decode(b"".join(bomb))))
    assert 0 < len(first) <= 255 * 0.12 * SAMPLE_RATE
