"""What the fuzzer can feed: a decoder with its seeds; it does not know how inputs are made or watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Feed = Callable[[bytes], None]
"""Takes one input. A refusal that the decoder's contract names is caught in here; whatever comes out is a finding."""


class Disagreement(AssertionError):  # noqa: N818
    """Two ways to read the same bytes gave two answers, or an answer broke its contract."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder of bytes from outside.

    Attributes:
        feed: the decoder, and what must hold of its answer.
        seeds: inputs that are right, or nearly, for others to be made of.
        share: of all inputs, against the other targets; what is slow gets less.
        max_len: bytes of an input.
    """

    name: str
    feed: Feed
    seeds: Sequence[bytes]
    share: float = 1.0
    max_len: int = 4096


def agree(holds: bool, what: str) -> None:
    """Raise `Disagreement` unless this holds."""
    if not holds:
        raise Disagreement(what)


def framed(*parts: bytes) -> bytes:
    """Several messages as one input, each behind its length in two bytes."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def parts_of(data: bytes) -> list[bytes]:
    """The messages of an input; what `framed` made, or whatever can be cut so."""
    parts, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        parts.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return parts
