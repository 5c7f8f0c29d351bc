"""Fuzz targets: Ogg pages, Opus streams, posted recordings; checksums are set right, so that they shield nothing."""

from __future__ import annotations

import contextlib
import io
import wave
from pathlib import Path

import numpy as np
import sphn

from moshi_server.audio import SAMPLE_RATE, OpusDecoder, OpusEncoder, ogg, read_audio, wav_bytes
from moshi_server.errors import AudioError

from .target import Target, agree

SAMPLES = Path(__file__).parents[2] / "src" / "moshi_server" / "demo" / "samples"
LONGEST_PAGE = 31 * SAMPLE_RATE
"""What a page may hold at most: 255 packets of 120 ms."""
MAX_SECONDS = 5.0


def mended(data: bytes) -> bytes:
    """The same bytes with the checksum of every Ogg page that can be found set right."""
    out, at = bytearray(data), data.find(ogg.CAPTURE)
    while 0 <= at <= len(out) - ogg.HEADER_SIZE:
        body_at = at + ogg.HEADER_SIZE + out[at + 26]
        end = body_at + sum(out[at + ogg.HEADER_SIZE : body_at])
        if end > len(out):
            break
        out[at + 22 : at + 26] = bytes(4)
        out[at + 22 : at + 26] = ogg.checksum(bytes(out[at:end])).to_bytes(4, "little")
        at = data.find(ogg.CAPTURE, end)
    return bytes(out)


def feed_ogg(data: bytes) -> None:
    """Pages are the same however the bytes are cut, and are written as they came."""
    cut, data = data[0] if data else 0, mended(data[1:])
    whole = _pages(data, len(data) or 1)
    agree(_pages(data, cut + 16) == whole, "pages depend on where the bytes are cut")
    pages, _ = whole
    # The version byte is not looked at, and not kept.
    written = b"".join(page.to_bytes() for page in pages)
    agree(_unversioned(written, pages) == _unversioned(data[: len(written)], pages), "a page is written another way")
    readers: dict[int, ogg.PacketReader] = {}
    with contextlib.suppress(AudioError):
        for page in pages:
            for packet in readers.setdefault(page.serial, ogg.PacketReader()).take(page):
                agree(len(packet) <= len(data), "a packet is larger than what came")


def _pages(data: bytes, size: int) -> tuple[list[ogg.Page], str]:
    reader, pages = ogg.PageReader(), []
    try:
        for at in range(0, len(data), size):
            reader.push(data[at : at + size])
            for page in reader.pages():
                pages.append(page)  # noqa: PERF402 - those before a fault count
    except AudioError as error:
        return pages, str(error)
    return pages, ""


def _unversioned(data: bytes, pages: list[ogg.Page]) -> bytes:
    out, at = bytearray(data), 0
    for page in pages:
        out[at + 4] = 0
        out[at + 22 : at + 26] = bytes(4)
        at += ogg.HEADER_SIZE + len(page.lacing) + len(page.body)
    return bytes(out)


def feed_opus(data: bytes) -> None:
    """Sound is the same however the bytes are cut, is float32 and never more than a page may hold."""
    cut, data = data[0] if data else 0, mended(data[1:])
    whole = _heard(data, len(data) or 1)
    pieces = _heard(data, cut * 13 + 31)
    agree(whole[1] == pieces[1], f"whole: {whole[1]!r}, in pieces: {pieces[1]!r}")
    agree(whole[0].tobytes() == pieces[0].tobytes(), "the sound depends on where the bytes are cut")


def _heard(data: bytes, size: int) -> tuple[np.ndarray, str]:
    decoder, parts, why = OpusDecoder(), [np.zeros(0, np.float32)], ""
    try:
        for at in range(0, len(data), size):
            for pcm in decoder.decode(data[at : at + size]):
                agree(pcm.dtype == np.float32 and pcm.ndim == 1, "not mono float32")
                agree(len(pcm) <= LONGEST_PAGE, f"{len(pcm)} samples of one page")
                parts.append(pcm)
    except AudioError as error:
        why = str(error)
    return np.concatenate(parts), why


def feed_file(data: bytes) -> None:
    """A recording: finite samples of no more than the time allowed, or a sentence."""
    if data.startswith(ogg.CAPTURE):
        data = mended(data)
    with contextlib.suppress(AudioError):
        pcm = read_audio(data, max_seconds=MAX_SECONDS)
        agree(pcm.dtype == np.float32 and pcm.ndim == 1, "not mono float32")
        agree(bool(np.isfinite(pcm).all()), "samples that are not numbers")
        agree(len(pcm) <= MAX_SECONDS * SAMPLE_RATE + 1, f"{len(pcm) / SAMPLE_RATE:g} s")


def _tone(samples: int = 2400) -> np.ndarray:
    return (np.sin(np.arange(samples) / 9) / 2).astype(np.float32)


def _wav(channels: int, width: int, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(bytes(range(256))[: 240 * channels * width // 4 * 4])
    return file.getvalue()


def opus_stream(*, stereo: bool = False) -> bytes:
    if stereo:
        writer = sphn.OpusStreamWriter(SAMPLE_RATE)
        return bytes(writer.append_pcm(_tone(1920)))
    encoder = OpusEncoder()
    return encoder.encode(_tone(3000)) + encoder.finish()


def _cut(name: str, size: int) -> bytes:
    return (SAMPLES / name).read_bytes()[:size]


def _files() -> list[bytes]:
    here = Path(__file__).parent / "seeds"
    return [
        wav_bytes(_tone()),
        _wav(2, 2, 44_100),
        _wav(1, 1, 8_000),
        _wav(1, 3, 48_000),
        _cut("alice.flac", 12_000),
        _cut("fenrir.ogg", 12_000),
        opus_stream(),
        *(path.read_bytes() for path in sorted(here.glob("*"))),
    ]


def targets() -> list[Target]:
    opus = opus_stream()
    chained = opus + opus_stream()
    return [
        Target(
            "ogg_pages", feed_ogg, [b"\x05" + opus, b"\x40" + chained, b"\x00" + _cut("fenrir.ogg", 4000)], share=0.6
        ),
        Target(
            "opus_stream",
            feed_opus,
            [b"\x01" + opus, b"\xff" + chained, b"\x20" + opus_stream(stereo=True)],
            share=0.6,
        ),
        Target("audio_file", feed_file, _files(), share=0.8, max_len=12_000),
    ]
