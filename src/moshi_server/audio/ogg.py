"""Ogg pages (RFC 3533): cut a byte stream into pages and write them; it does not know what the packets hold."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import AudioError

CAPTURE: Final = b"OggS"
HEADER_SIZE: Final = 27
BEGIN: Final = 2
"""Flag of a stream's first page."""
END: Final = 4
"""Flag of a stream's last page."""
CONTINUED: Final = 1
"""Flag of a page that begins in the middle of a packet."""

MAX_PACKET: Final = 4_000_000
"""No sound packet is that large; tags with a cover picture may come near."""

_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        flags: `CONTINUED`, `BEGIN`, `END`.
        granule: the stream's position at the end of the last packet that ends here; -1 if none does.
        serial: which logical stream it belongs to.
        lacing: segment lengths; a packet ends with the first that is below 255.
        body: the packets' bytes.
    """

    flags: int
    granule: int
    serial: int
    sequence: int
    lacing: bytes
    body: bytes

    def to_bytes(self) -> bytes:
        """The page with its checksum."""
        head = (
            CAPTURE
            + bytes((0, self.flags))
            + self.granule.to_bytes(8, "little", signed=True)
            + self.serial.to_bytes(4, "little")
            + self.sequence.to_bytes(4, "little")
        )
        tail = bytes((len(self.lacing),)) + self.lacing + self.body
        return head + checksum(head + bytes(4) + tail).to_bytes(4, "little") + tail


class PageReader:
    """Bytes cut anywhere to whole pages.

    Checksums are verified: over a reliable transport a wrong one means bytes lost or mixed by the sender.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> None:
        """Add bytes; `pages` then gives what is complete."""
        self._buffer += data

    @property
    def waiting(self) -> int:
        """Bytes of a page that has not come whole."""
        return len(self._buffer)

    def pages(self) -> Iterator[Page]:
        """Take out the complete pages, one at a time.

        Raises:
            AudioError: if a page does not begin where one must.
        """
        buffer = self._buffer
        while buffer:
            if not buffer.startswith(CAPTURE[: len(buffer)]):
                raise AudioError(
                    "this is no Ogg stream: a page must begin with 'OggS'",
                    hint="send every byte of the stream, in order",
                )
            if len(buffer) < HEADER_SIZE:
                return
            body_at = HEADER_SIZE + buffer[26]
            end = body_at + sum(buffer[HEADER_SIZE:body_at])
            if len(buffer) < end or len(buffer) < body_at:
                return
            page = Page(
                flags=buffer[5],
                granule=int.from_bytes(buffer[6:14], "little", signed=True),
                serial=int.from_bytes(buffer[14:18], "little"),
                sequence=int.from_bytes(buffer[18:22], "little"),
                lacing=bytes(buffer[HEADER_SIZE:body_at]),
                body=bytes(buffer[body_at:end]),
            )
            claimed = int.from_bytes(buffer[22:26], "little")
            buffer[22:26] = bytes(4)
            if checksum(bytes(buffer[:end])) != claimed:
                raise AudioError("an Ogg page is damaged: its checksum does not fit")
            del buffer[:end]
            yield page


class PacketReader:
    """The packets of one logical stream, put together where they span pages."""

    def __init__(self) -> None:
        self._partial = b""

    def take(self, page: Page) -> Iterator[bytes]:
        """The packets that end in this page.

        Raises:
            AudioError: for a packet of more than `MAX_PACKET` bytes.
        """
        size, at = 0, 0
        partial = self._partial if page.flags & CONTINUED else b""
        self._partial = b""
        for length in page.lacing:
            size += length
            if length < 255:
                yield partial + page.body[at : at + size]
                at, size, partial = at + size, 0, b""
        self._partial = partial + page.body[at:]
        if len(self._partial) > MAX_PACKET:
            raise AudioError(f"a packet of the Ogg stream is larger than {MAX_PACKET} bytes")


def lacing(packet: bytes) -> bytes:
    """The segment lengths of a page that holds just this packet."""
    assert len(packet) < 255 * 255, "a page holds 255 segments"
    whole, rest = divmod(len(packet), 255)
    return b"\xff" * whole + bytes((rest,))


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page whose checksum field is zero: polynomial 0x04c11db7, most significant bit first."""
    # zlib's runs over the same polynomial from the other end, so both the bytes and the result are turned round.
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")
