"""Fuzz target: the events of Wyoming, as the bridge for Home Assistant reads them; no worker is behind it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event, async_read_event
from wyoming.ping import Ping
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeVoice

from moshi_server.client import wyoming
from moshi_server.errors import InvalidMessageError

from .requests import run
from .target import Target, agree


class _Nobody(wyoming.Bridge):
    async def services(self) -> wyoming.Services:
        return wyoming.Services()


def feed_wyoming(data: bytes) -> None:
    """A connection from its first byte to its last, and its audio read into samples."""
    run(_serve(data))
    run(_hear(data))


def _reader(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def _serve(data: bytes) -> None:
    written = bytearray()

    async def done() -> None:
        pass

    writer = SimpleNamespace(
        write=written.extend, writelines=lambda parts: written.extend(b"".join(parts)), drain=done, close=lambda: None,
        wait_closed=done,
    )  # fmt: skip
    said: list[str] = []
    bridge = _Nobody("http://here", "http://here", None, ("en",), said.append)
    await bridge.handler(_reader(data), cast("Any", writer)).run()


async def _hear(data: bytes) -> None:
    reader, samples = _reader(data), None
    try:
        while (event := await async_read_event(reader)) is not None:
            if event.type == "audio-start":
                start = AudioStart.from_event(event)
                samples = wyoming._Samples(start.rate, start.width, start.channels)
            elif event.type == "audio-chunk" and samples is not None:
                pcm = samples.add(AudioChunk.from_event(event))
                agree(pcm.dtype == np.float32 and pcm.ndim == 1, "not mono float32")
                agree(bool((np.abs(pcm) <= 2).all()), "louder than full scale")
    except (
        InvalidMessageError,
        asyncio.IncompleteReadError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        pass  # what `Handler.run` takes for a fault of the client


def _bytes(*events: Event) -> bytes:
    out = b""
    for event in events:
        extra = json.dumps(event.data).encode()
        head: dict[str, Any] = {
            "type": event.type,
            "data_length": len(extra),
            "payload_length": len(event.payload or b""),
        }
        out += json.dumps(head).encode() + b"\n" + extra + (event.payload or b"")
    return out


def targets() -> list[Target]:
    tone = (np.sin(np.arange(480) / 9) * 9000).astype("<i2").tobytes()
    shape = {"rate": 16_000, "width": 2, "channels": 1}
    wide = {"rate": 24_000, "width": 4, "channels": 2}
    heard = [AudioStart(**shape).event(), AudioChunk(audio=tone, **shape).event(), AudioStop().event()]
    also = [AudioStart(**wide).event(), AudioChunk(audio=tone, **wide).event()]
    spoken = [SynthesizeStart(voice=SynthesizeVoice(name="a")).event(), SynthesizeChunk("one").event()]
    seeds = [_bytes(*heard), _bytes(*also), _bytes(*spoken), _bytes(Synthesize("Hello.").event(), Ping("x").event())]
    return [Target("wyoming", feed_wyoming, [*seeds, _bytes(Event("describe"))], share=0.4)]
