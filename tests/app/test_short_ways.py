"""The short ways of a message past the tasks: the same bytes and the same order as the long ones."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from websockets.frames import Frame, Opcode

from moshi_server.app.connection import frame_of
from moshi_server.app.module import ClientLimits
from moshi_server.engine.worker import EngineLimits
from moshi_server.events import Audio
from moshi_server.protocol import asr

from ..fakes import FakeRunner, say
from .server import audio, close_of, events, message, serve


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_frame_is_as_the_library_makes_it(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert frame_of(data[:size]) == Frame(Opcode.BINARY, data[:size]).serialize(mask=False)
    text = "é" * (size // 2)
    assert frame_of(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


def test_quick_samples_are_those_of_the_decoder_and_all_else_is_left_to_it() -> None:
    pcm = np.linspace(-1, 1, 1920, dtype=np.float32)
    event = asr.decode_samples(audio(pcm))
    assert isinstance(event, Audio)
    assert np.array_equal(event.pcm, pcm)
    for bad in (np.float32("nan"), np.float32("inf"), 101.0):
        assert asr.decode_samples(audio(np.full(4, bad, np.float32))) is None
    others = [b"", b"\x00", message("Init"), message("Marker", id=1), message("Audio", pcm=[0, 1]), audio(pcm)[:-1]]
    assert [asr.decode_samples(other) for other in others] == [None] * len(others)


async def test_samples_markers_and_samples_keep_their_order() -> None:
    async with serve(FakeRunner(1)) as server, server.connect() as socket:
        await events(socket, "Ready")
        for number in range(30):
            await socket.send(audio(say(10 + number, 999)))
            await socket.send(message("Marker", id=number))
        await socket.send(message("Flush"))
        got = await events(socket, "Flush")
    order = [each.get("text", each.get("id")) for each in got if each["type"] in ("Marker", "Word")]
    assert [each for each in order if isinstance(each, str)] == [f"<{10 + n}>" for n in range(30)]
    assert [each for each in order if isinstance(each, int)] == list(range(30))
    assert all(order.index(f"<{10 + n}>") < order.index(n) for n in range(30)), "a marker comes after its words"
    steps = [each["step_idx"] for each in got if each["type"] == "Step"]
    assert steps == list(range(1, 61))


async def test_too_much_at_once_is_taken_by_the_long_way_and_nothing_is_lost() -> None:
    limits = EngineLimits(queue_seconds=0.5)
    async with serve(FakeRunner(1), engine_limits=limits) as server, server.connect() as socket:
        await events(socket, "Ready")

        async def send() -> None:
            for number in range(200):
                await socket.send(audio(say(10 + number)))
            await socket.send(message("Flush"))

        task = asyncio.create_task(send())
        got = await events(socket, "Flush", 30)
        await task
    assert sum(each["type"] == "Step" for each in got) == 200
    assert "".join(each["text"] for each in got if each["type"] == "Word") == "".join(f"<{10 + n}>" for n in range(200))


async def test_a_message_over_the_limit_is_refused_on_either_way() -> None:
    limits = ClientLimits(max_message_bytes=10_000)
    async with serve(FakeRunner(1), limits=limits) as server, server.connect() as socket:
        await events(socket, "Ready")
        await socket.send(audio(say(10)))
        await events(socket, "Step")
        await socket.send(audio(say(10, 11)))
        _, code, reason = await close_of(socket)
    assert code == 4003
    assert "larger than" in reason
