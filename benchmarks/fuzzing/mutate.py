"""Seeds to inputs that are nearly right, by a seed of its own; it does not know what they mean or what they reach."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_ODD = (0, 1, 2, 0x0F, 0x10, 0x20, 0x7F, 0x80, 0xC0, 0xC1, 0xCA, 0xCB, 0xDC, 0xDD, 0xDF, 0xFE, 0xFF)
_TEXTS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"%00",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"[[",
    b'{"',
    b"..",
    b"=",
    b"\r\n",
    b'"',
)


def mutants(seeds: Sequence[bytes], rng: random.Random, max_len: int) -> Iterator[bytes]:
    """The seeds as they are, then changed ones without end, each by one to eight changes."""
    yield from seeds
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(min(8, 1 + int(rng.expovariate(0.7)))):
            _change(data, seeds, rng)
        yield bytes(data[:max_len])


def _change(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    size = min(1 << rng.randrange(8), len(data) - at)
    match rng.randrange(9):
        case 0:
            data[at:at] = rng.randbytes(1 << rng.randrange(5))
        case 1:
            del data[at : at + size]
        case 2:
            del data[at:]
        case 3:  # repeated, as often as not many times
            data[at:at] = data[at : at + size] * (1 << rng.randrange(6))
        case 4:  # another seed's end
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        case 5:
            data[at:at] = rng.choice(_TEXTS)
        case 6 if at < len(data):
            data[at] = rng.choice(_ODD)
        case 7 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case _:  # a number in a few bytes
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.getrandbits(8 * width)))
            if at + width <= len(data):
                data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))
