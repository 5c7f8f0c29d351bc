"""A worker says whether it lives and has room, tells its streams that it ends, and ends when it must."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import msgpack
import pytest
import websockets

from moshi_server.protocol import moshi
from moshi_server.protocol.moshi import Kind

from ..dialogue_fakes import EchoRunner, make_stream
from ..fakes import FakeRunner, say
from . import test_openai_realtime, test_rooms, test_speech
from .server import PATH, Server, audio, events, message, serve, until
from .test_http import wav

NOTICES = "&notices=1"
SECONDS = 30.0


async def asked(server: Server, path: str) -> tuple[int, dict[str, object]]:
    answer = await server.get(path)
    return answer.status_code, answer.json()


async def begin_to_end(server: Server) -> None:
    server.worker.grace_seconds = SECONDS
    server.worker.end()
    await until(lambda: server.state.draining)


async def test_8_ready_says_why_not_while_it_warms_up() -> None:
    runner, go = FakeRunner(1), threading.Event()
    runner.warmup = go.wait  # type: ignore[method-assign]
    async with serve(runner, wait=False) as server:
        assert await asked(server, "/live") == (200, {"status": "live"})
        status, said = await asked(server, "/ready")
        assert (status, said["status"]) == (503, "starting")
        assert await server.metric("worker_ready") == 0
        assert await server.metric('module_slots_free{module="asr0",type="BatchedAsr"}') == 0
        go.set()
        await server.engines[0].wait_ready()
        assert (await asked(server, "/ready"))[0] == 200
        assert await server.metric("worker_ready") == 1
        assert await server.metric('module_slots_free{module="asr0",type="BatchedAsr"}') == 1


async def test_8_ready_counts_slots_and_says_full() -> None:
    async with serve([FakeRunner(1), FakeRunner(2)], paths=(PATH, "/api/other")) as server:
        async with server.connect() as client:
            await events(client, "Ready")
            status, said = await asked(server, "/ready?module=asr0")
            assert status == 503
            assert said == {
                "status": "full",
                "reason": "every slot is taken",
                "modules": [
                    {
                        "name": "asr0",
                        "status": "ready",
                        "used_slots": 1,
                        "total_slots": 1,
                        "free_slots": 0,
                        "waiting": 0,
                    }
                ],
            }
            assert (await server.get("/ready?module=asr0")).headers["retry-after"] == "1"
            # The other module has room: the worker as a whole is not full.
            for path in ("/ready", "/ready?module=asr1"):
                status, said = await asked(server, path)
                assert (status, said["status"]) == (200, "ready")
            assert (await asked(server, "/live"))[0] == 200
        await until(lambda: server.engines[0].slots_used == 0)
        assert (await asked(server, "/ready?module=asr0"))[0] == 200
        assert (await asked(server, "/ready?module=nobody"))[0] == 404


async def test_8_ready_says_draining_and_live_does_not_mind() -> None:
    async with serve() as server, server.connect() as client:
        await events(client, "Ready")
        await begin_to_end(server)
        status, said = await asked(server, "/ready")
        assert (status, said["status"]) == (503, "draining")
        assert (await asked(server, "/live"))[0] == 200


async def test_8_live_is_red_once_the_model_has_failed_for_good() -> None:
    runner = FakeRunner(2)

    def fail() -> None:
        raise RuntimeError("broken")

    async with serve(runner) as server:
        runner.before_step = fail
        while server.engines[0].status != "failed":
            async with server.connect() as client:
                await client.send(audio(say(3)))
                with pytest.raises(websockets.ConnectionClosed):
                    while True:
                        await asyncio.wait_for(client.recv(), 10)
                assert client.close_code == 1011
        assert await asked(server, "/live") == (503, {"status": "failed"})
        assert (await asked(server, "/ready"))[1]["status"] == "failed"


async def test_8_a_stream_that_asked_for_notices_is_told_that_the_server_ends_and_goes_on() -> None:
    async with serve() as server:
        old = server.connect()
        new = server.connect(query=f"?auth_id=public_token_for_tests{NOTICES}")
        async with old as unaware, new as aware:
            for client in (unaware, aware):
                await events(client, "Ready")
            await begin_to_end(server)
            assert (await events(aware, "GoingAway"))[-1] == {"type": "GoingAway", "seconds": SECONDS}
            for client in (unaware, aware):
                await client.send(audio(say(61)))
                await client.send(message("Flush"))
                got = await events(client, "Flush")
                assert [event["text"] for event in got if event["type"] == "Word"] == ["<61>"]
                assert "GoingAway" not in {event["type"] for event in got}


async def test_8_text_to_speech_is_told_in_its_message_formats_only() -> None:
    async with test_speech.speaking() as server:
        query = f"?auth_id=public_token_for_tests{NOTICES}&format="
        path = test_speech.PATH
        async with server.connect(path, f"{query}PcmMessagePack") as told, server.connect(path, f"{query}Pcm") as raw:
            await events(told, "Ready")
            await until(lambda: server.engines[0].slots_used == 2)
            await begin_to_end(server)
            assert (await events(told, "GoingAway"))[-1]["seconds"] == SECONDS
            await raw.send(message("Text", text="hello"))
            await raw.send(message("Eos"))
            assert all(len(frame) == 4 * 1920 for frame in [frame async for frame in raw])
            await told.send(message("Text", text="hello"))
            await told.send(message("Eos"))
            kinds = {msgpack.unpackb(frame)["type"] async for frame in told}
            assert kinds == {"Audio", "Text"}
            assert told.close_code == 1000


async def test_8_a_dialogue_is_told_by_metadata() -> None:
    options = {"paths": ("/api/chat",), "kind": "Lm", "make_stream": make_stream}
    query = f"?auth_id=public_token_for_tests{NOTICES}"
    async with serve(EchoRunner(2), **options) as server, server.connect("/api/chat", query) as client:
        await client.recv()
        await begin_to_end(server)
        async with asyncio.timeout(10):
            while (frame := moshi.decode(await client.recv())) is None or frame.kind is not Kind.METADATA:
                pass
        assert frame.metadata == {"going_away": SECONDS}


async def test_8_a_rooms_producer_and_listeners_are_told_if_they_asked() -> None:
    async with (
        test_rooms.serving() as server,
        server.connect(test_rooms.RECV, f"?{NOTICES[1:]}") as aware,
        test_rooms.listen(server) as unaware,
        server.connect(test_rooms.SEND, f"?room_id=main&auth_id=public_token_for_tests{NOTICES}") as producer,
    ):
        for client in (aware, unaware):
            await test_rooms.seated(client)
        await until(lambda: server.engines[0].slots_used == 1)
        await begin_to_end(server)
        for client in (aware, producer):
            frame = moshi.decode(await asyncio.wait_for(client.recv(), 10))
            assert frame is not None
            assert frame.metadata == {"going_away": SECONDS}
        await producer.close()
        # What comes next to who did not ask is the end.
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                frame = moshi.decode(await asyncio.wait_for(unaware.recv(), 10))
                assert frame is None or frame.kind is not Kind.METADATA
        assert unaware.close_code == 1001


async def test_8_a_realtime_session_is_told_by_an_event() -> None:
    async with serve() as server, test_openai_realtime.by_hand(server, f"?intent=transcription{NOTICES}") as client:
        await client.recv()
        await begin_to_end(server)
        async with asyncio.timeout(10):
            while (event := json.loads(await client.recv()))["type"] != "server.going_away":
                pass
        assert event["seconds"] == SECONDS


async def test_8_a_recording_posted_before_the_end_is_answered_and_one_after_it_is_503() -> None:
    runner, go = FakeRunner(1), threading.Event()
    runner.before_step = go.wait  # type: ignore[assignment]
    async with serve(runner) as server:
        running = asyncio.create_task(server.post(wav(say(61, 3, 3, 3, 3, 3))))
        await until(lambda: server.engines[0].slots_used == 1)
        await begin_to_end(server)
        late = await server.post(wav(say(61)))
        assert (late.status_code, late.headers["retry-after"]) == (503, "5")
        assert late.json()["error"] == "the server is shutting down"
        go.set()
        assert [word["text"] for word in (await running).json() if word["type"] == "Word"] == ["<61>"]
        await asyncio.wait_for(server.task, 10)


async def test_8_what_outlasts_the_grace_time_is_closed_with_1001_in_every_protocol() -> None:
    """And never with the web server's own 1012."""

    async def end_with(server: Server, count: int) -> None:
        await until(lambda: server.state.admission.served == count)
        server.worker.grace_seconds = 0.2
        server.worker.end()

    async def code_of(client: websockets.ClientConnection) -> int | None:
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                await asyncio.wait_for(client.recv(), 10)
        return client.close_code

    key = "?auth_id=public_token_for_tests"
    chat = {"paths": ("/api/chat",), "kind": "Lm", "make_stream": make_stream}
    servers = (
        (serve(), lambda server: [server.connect(), test_openai_realtime.by_hand(server)]),
        (serve(EchoRunner(2), **chat), lambda server: [server.connect("/api/chat")]),
        (test_speech.speaking(), lambda server: [server.connect(test_speech.PATH, f"{key}&format={kind}")
                                                 for kind in ("PcmMessagePack", "OggOpus")]),
        (test_rooms.serving(), lambda server: [test_rooms.produce(server), test_rooms.listen(server)]),
    )  # fmt: skip
    for opening, connections in servers:
        async with opening as server, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connection) for connection in connections(server)]
            await end_with(server, len(clients))
            assert await asyncio.gather(*map(code_of, clients)) == [1001] * len(clients)
            await asyncio.wait_for(server.task, 10)
