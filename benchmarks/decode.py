"""How long one 80 ms frame of float32 MessagePack takes to decode: in place, against the general decoder, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ormsgpack

from moshi_server.protocol import asr


def microseconds(decode: Callable[[bytes], Any], data: bytes) -> float:
    started = time.perf_counter()
    for _ in range(100):
        decode(data)
    return (time.perf_counter() - started) * 1e4


def main() -> None:
    pcm = np.random.default_rng(0).uniform(-1, 1, 1920).astype(np.float32)
    data = ormsgpack.packb({"type": "Audio", "pcm": pcm}, option=ormsgpack.OPT_SERIALIZE_NUMPY)
    pairs = [(microseconds(asr.decode, data), microseconds(asr.decode_slow, data)) for _ in range(50)]
    fast, slow = (np.median(column) for column in zip(*pairs, strict=True))
    ratio = np.median([a / b for a, b in pairs])
    print(f"in place {fast:.0f} us, general decoder {slow:.0f} us a frame; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
