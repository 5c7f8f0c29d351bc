"""The application under a web server that knows nothing of ours: plain uvicorn, real sockets, real clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
import websockets

from moshi_server.app.factory import create_app, hooks_for
from moshi_server.app.foreign import Foreign
from moshi_server.app.module import ServedModule
from moshi_server.app.routes import ServerState
from moshi_server.auth import Authenticator
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.worker import Engine
from moshi_server.metrics import Metrics

from ..fakes import FakeRunner, say, spell
from .server import KEY, PATH, audio, close_of, events, free_port, message, until


@contextlib.asynccontextmanager
async def foreign(slots: int = 2) -> AsyncIterator[tuple[str, Engine]]:
    metrics = Metrics()
    counted = metrics.module("BatchedAsr")
    engine = Engine("asr", "BatchedAsr", FakeRunner(slots), lambda: AsrStream(3, spell), hooks=hooks_for(counted))
    module = ServedModule("asr", "BatchedAsr", PATH, engine, counted, files={})
    state = ServerState([module], Authenticator([KEY]), metrics, instance="foreign")
    port = free_port()
    config = uvicorn.Config(
        Foreign(create_app(state)), host="127.0.0.1", port=port, ws="websockets-sansio", log_level="error"
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    engine.start()
    await engine.wait_ready()
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield f"ws://127.0.0.1:{port}{PATH}?auth_id={KEY}", engine
    finally:
        server.should_exit = True
        await task
        engine.stop()


async def test_words_come_and_the_slot_is_free_after_the_close() -> None:
    async with foreign() as (url, engine):
        async with websockets.connect(url, proxy=None) as client:
            await client.send(audio(say(3, 200, 3, 3, 999, 3)))
            await client.send(message("Flush"))
            got = await events(client, "Flush")
            assert [event["text"] for event in got if event["type"] == "Word"] == ["<200>"]
        await until(lambda: engine.slots_used == 0)


async def test_refusals_have_their_codes() -> None:
    async with foreign(slots=1) as (url, engine):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url.partition("?")[0], proxy=None)
        assert caught.value.response.status_code == 401
        async with websockets.connect(url, proxy=None) as client:
            await events(client, "Ready")
            async with websockets.connect(url, proxy=None) as second:
                got, code, reason = await close_of(second)
                assert (got[-1]["type"], code, reason) == ("Error", 4000, "no free channels")
            await client.send(b"\x01garbage")
            got, code, _ = await close_of(client)
            assert (got[-1]["type"], code) == ("Error", 4003)
        await until(lambda: engine.slots_used == 0)


async def test_an_ending_engine_says_so() -> None:
    async with foreign() as (url, engine), websockets.connect(url, proxy=None) as client:
        await events(client, "Ready")
        await engine.drain(0)
        _, code, _ = await close_of(client)
        assert code == 1001


async def test_a_client_that_breaks_off_frees_its_slot() -> None:
    async with foreign() as (url, engine):
        client = await websockets.connect(url, proxy=None)
        await events(client, "Ready")
        client.transport.abort()
        await until(lambda: engine.slots_used == 0)
