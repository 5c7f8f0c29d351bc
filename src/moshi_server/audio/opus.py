"""Ogg/Opus streams (RFC 7845) in and out, on sphn's codec; hostile bytes are an `AudioError` and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import numpy as np
import sphn
from numpy.typing import NDArray

from ..errors import AudioError
from . import ogg
from .pcm import FRAME_SIZE, SAMPLE_RATE

_EMPTY: Final = np.zeros(0, dtype=np.float32)
_GRANULE_RATE: Final = 48_000
_UNITS: Final = _GRANULE_RATE // SAMPLE_RATE
"""Opus counts positions at 48 kHz, whatever the rate of the samples."""
_LOOKAHEAD: Final = 312
"""What libopus's encoder delays the signal by, in 48 kHz samples."""
_SLICE: Final = 4096
"""The decoder beneath may refuse more bytes than this at once."""
_MAX_PACKET: Final = 61_440
"""Bytes of the largest Opus packet."""
_NO_PREROLL: Final = (b"KyutaiMoshi", b"sphn-pyo3", b"RecorderJS")
"""Live encoders (sphn, opus-recorder) that declare 80 ms to be skipped, but put real sound there: it would cut off the
beginning of the first word, and move every time by 73 ms."""
_CODECS: Final = {b"\x01vorbis": "Vorbis", b"\x7fFLAC": "FLAC", b"\x80theora": "Theora", b"Speex   ": "Speex"}

T = TypeVar("T")


class OpusDecoder:
    """A live Ogg/Opus stream to 24 kHz mono samples.

    What the header says is honoured (samples to skip, gain), and so is the last page's end position. A second stream
    chained to the first goes on where that one ended; other streams between the pages are passed over.

    Attributes:
        ended: the stream's last page has been read, and no other stream has begun.
    """

    def __init__(self) -> None:
        self.ended = False
        self._pages = ogg.PageReader()
        self._stream: _Stream | None = None
        self._stranger = ""

    def feed(self, data: bytes) -> NDArray[np.float32]:
        """Take bytes, cut anywhere, and return every sample they complete: float32 of shape (samples,), maybe none.

        A page of 300 bytes can hold half a minute of silence, so for bytes from a stranger `decode` is the safe form.

        Raises:
            AudioError: the bytes are no Ogg/Opus stream; the decoder is of no use after that.
        """
        parts = list(self.decode(data))
        return parts[0] if len(parts) == 1 else np.concatenate([_EMPTY, *parts])

    def decode(self, data: bytes) -> Iterator[NDArray[np.float32]]:
        """As `feed`, but one page's samples at a time, so that no input makes more than 31 s (3 MB) at once.

        Pages that are not asked for stay, and come with the next call.
        """
        self._pages.push(data)
        return (pcm for page in self._pages.pages() if len(pcm := self._page(page)))

    def _page(self, page: ogg.Page) -> NDArray[np.float32]:
        if page.flags & ogg.BEGIN:
            self._begin(page)
            return _EMPTY
        if self._stream is None:
            if self._stranger:
                raise AudioError(
                    f"the Ogg stream holds {self._stranger}, not Opus", hint="encode it as Opus, or send PCM"
                )
            raise AudioError(
                "the Ogg stream does not begin with an Opus header", hint="send the stream from its first page"
            )
        if page.serial != self._stream.serial or self.ended:
            return _EMPTY
        pcm = self._stream.page(page)
        self.ended = bool(page.flags & ogg.END)
        return pcm

    def _begin(self, page: ogg.Page) -> None:
        if page.body.startswith(b"OpusHead"):
            self._stream = _Stream(page)
            self.ended = bool(page.flags & ogg.END)
        elif self._stream is None:
            self._stranger = next(
                (name for magic, name in _CODECS.items() if page.body.startswith(magic)), "another codec"
            )


class _Stream:
    """One logical Opus stream: packets, samples to skip, gain, positions."""

    def __init__(self, head: ogg.Page) -> None:
        body = head.body
        if len(body) < 19 or body[8] > 15:
            raise AudioError("the Opus header is cut short or of an unknown version")
        channels, family = body[9], body[18]
        if family != 0 or channels not in (1, 2):
            raise AudioError(
                f"an Opus stream of {channels} channels cannot be read", hint="encode it as mono or stereo"
            )
        self.serial = head.serial
        self._skip = int.from_bytes(body[10:12], "little") // _UNITS
        gain = int.from_bytes(body[16:18], "little", signed=True)
        self._gain = np.float32(10 ** (gain / (20 * 256)))
        self._granule = 0
        self._packets = ogg.PacketReader()
        self._tags_seen = False
        self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
        self._fed = 0
        self._decode(body)

    def page(self, page: ogg.Page) -> NDArray[np.float32]:
        """The page's samples, cut where the stream says that it ends."""
        parts = [_EMPTY]
        for packet in self._packets.take(page):
            if self._tags_seen:
                parts.append(self._decode(packet))
            else:
                self._tags(packet)
        pcm = np.concatenate(parts)
        if page.flags & ogg.END:
            # Only within its own page may the end be moved; any other position is a wrong one, and the sound is kept.
            length = (page.granule - self._granule) // _UNITS
            if 0 <= length < len(pcm):
                pcm = pcm[:length]
        if page.granule >= 0:
            self._granule = page.granule
        skipped = min(self._skip, len(pcm))
        self._skip -= skipped
        pcm = pcm[skipped:]
        return pcm if self._gain == 1 else pcm * self._gain

    def _tags(self, packet: bytes) -> None:
        if not packet.startswith(b"OpusTags"):
            raise AudioError("the second packet of the Opus stream must be its tags")
        self._tags_seen = True
        length = int.from_bytes(packet[8:12], "little")
        if packet[12 : 12 + length] in _NO_PREROLL:
            self._skip = min(self._skip, _LOOKAHEAD // _UNITS)

    def _decode(self, packet: bytes) -> NDArray[np.float32]:
        # A page for each packet: sphn decodes a page at once, into a buffer of five seconds. A packet is 120 ms at
        # most, except an empty one, which libopus would take for five seconds of loss.
        if not packet:
            return _EMPTY
        if len(packet) > _MAX_PACKET:
            raise AudioError("the Opus stream is damaged: no packet of sound is this large")
        flags = 0 if self._fed else ogg.BEGIN
        page = ogg.Page(flags, 0, self.serial, self._fed, ogg.lacing(packet), packet).to_bytes()
        self._fed += 1
        slices = [page[at : at + _SLICE] for at in range(0, len(page), _SLICE)]
        parts = codec_call(lambda: [self._reader.append_bytes(part) for part in slices], "the Opus stream is damaged")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class OpusEncoder:
    """24 kHz mono samples to a live Ogg/Opus stream, one page for each 80 ms.

    The first bytes out are the two header pages. `finish` ends the stream so that a decoder gives back exactly as many
    samples as went in.
    """

    def __init__(self) -> None:
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)
        self._serial = secrets.randbits(32)
        self._sequence = 0
        self._waiting = _EMPTY
        self._samples = 0
        self._frames = 0
        self._finished = False

    def header(self) -> bytes:
        """The header pages, if they have not been given out yet; else nothing."""
        if self._sequence:
            return b""
        head = (
            b"OpusHead"
            + bytes((1, 1))
            + _LOOKAHEAD.to_bytes(2, "little")
            + SAMPLE_RATE.to_bytes(4, "little")
            + bytes(3)
        )
        vendor = b"moshi-server"
        tags = b"OpusTags" + len(vendor).to_bytes(4, "little") + vendor + bytes(4)
        return self._write(head, ogg.lacing(head), 0, ogg.BEGIN) + self._write(tags, ogg.lacing(tags), 0)

    def encode(self, pcm: NDArray[np.float32]) -> bytes:
        """Take any number of samples, float32 of shape (samples,); returns the pages they complete."""
        assert not self._finished, "encode after finish"
        self._samples += len(pcm)
        self._waiting = np.concatenate([self._waiting, pcm.astype(np.float32, copy=False)])
        pages = [self.header()]
        while len(self._waiting) >= FRAME_SIZE:
            pages.append(self._frame(last=False))
        return b"".join(pages)

    def finish(self) -> bytes:
        """The rest, and the mark that the stream ends here."""
        assert not self._finished, "finish twice"
        self._finished = True
        pages = [self.header()]
        needed = len(self._waiting) + _LOOKAHEAD // _UNITS
        self._waiting = np.pad(self._waiting, (0, -(-needed // FRAME_SIZE) * FRAME_SIZE - len(self._waiting)))
        while len(self._waiting):
            pages.append(self._frame(last=len(self._waiting) == FRAME_SIZE))
        return b"".join(pages)

    def _frame(self, *, last: bool) -> bytes:
        frame, self._waiting = self._waiting[:FRAME_SIZE], self._waiting[FRAME_SIZE:]
        reader = ogg.PageReader()
        reader.push(self._writer.append_pcm(np.ascontiguousarray(frame)))
        made = [page for page in reader.pages() if not page.body.startswith((b"OpusHead", b"OpusTags"))]
        body, lacing = b"".join(page.body for page in made), b"".join(page.lacing for page in made)
        self._frames += 1
        granule = self._samples * _UNITS + _LOOKAHEAD if last else self._frames * FRAME_SIZE * _UNITS
        return self._write(body, lacing, granule, ogg.END if last else 0)

    def _write(self, body: bytes, lacing: bytes, granule: int, flags: int = 0) -> bytes:
        page = ogg.Page(flags, granule, self._serial, self._sequence, lacing, body)
        self._sequence += 1
        return page.to_bytes()


def codec_call(call: Callable[[], T], complaint: str) -> T:
    """Run a call into sphn; whatever it raises, its Rust panics included, becomes an `AudioError`."""
    try:
        return call()
    except Exception as error:
        raise AudioError(f"{complaint}: {first_line(error)}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # it derives from BaseException, and cannot be imported
            raise
        raise AudioError(f"{complaint}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """The message without the backtrace that sphn adds."""
    return str(error).strip().partition("\n")[0]
