"""A stream from connect to close over a real WebSocket, and every way in which one can end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from moshi_server.app.module import ClientLimits
from moshi_server.engine.worker import EngineLimits

from ..fakes import FakeRunner, say
from .server import KEY, audio, close_of, events, message, serve, until


async def test_words_steps_and_markers_come_back() -> None:
    async with serve() as server, server.connect() as client:
        await client.send(audio(say(3, 3, 11, 12, 3)))
        await client.send(message("Marker", id=-7))
        got = await events(client, "Marker")
        assert got[0] == {"type": "Ready"}
        assert got[-1] == {"type": "Marker", "id": -7}
        assert [event for event in got if event["type"] == "Word"] == [
            {"type": "Word", "text": "<11><12>", "start_time": 0.0}
        ]
        steps = [event for event in got if event["type"] == "Step"]
        assert [step["step_idx"] for step in steps] == [1, 2, 3, 4, 5]
        assert list(steps[0]) == ["type", "step_idx", "prs", "buffered_pcm"]
        assert steps[0]["prs"] == pytest.approx([0.9] * 4)


async def test_flush_answers_at_once_and_the_stream_goes_on() -> None:
    async with serve() as server, server.connect() as client:
        for word in (21, 22):
            await client.send(audio(say(word)))
            await client.send(message("Flush"))
            got = await events(client, "Flush")
            assert [event["text"] for event in got if event["type"] == "Word"] == [f"<{word}>"]


async def test_init_and_text_frames() -> None:
    async with serve() as server, server.connect() as client:
        await client.send("a text frame is ignored")
        await client.send(message("Init"))
        await client.send(audio(say(5)))
        await client.send(message("Flush"))
        got = await events(client, "Flush")
        assert [event["type"] for event in got].count("Ready") == 2
        assert [event["text"] for event in got if event["type"] == "Word"] == ["<5>"]


async def test_a_message_may_come_in_fragments() -> None:
    async with serve() as server, server.connect() as client:
        data = audio(say(31))
        await client.send([data[:7], data[7:1000], data[1000:]])
        await client.send(message("Flush"))
        assert "<31>" in [event.get("text") for event in await events(client, "Flush")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the message is empty"),
        (b"\xc1\x00", "not valid MessagePack"),
        (msgpack.packb([1, 2]), "must be a MessagePack map"),
        (message("Shout"), "unknown message type 'Shout'"),
        (message("Audio", pcm=["a", "b"]), "numbers only"),
        (message("Audio", pcm=[0.0, float("nan")]), "sample 1 of 'pcm' is nan"),
        (message("Audio", pcm=[1e30]), "sample 0 of 'pcm' is 1e+30"),
        (message("Audio"), "needs 'pcm'"),
        (message("OggOpus", data=b"RIFF, not Ogg"), "cannot be decoded"),
    ],
)
async def test_a_bad_message_gets_a_reason_and_frees_the_slot(data: bytes, reason: str) -> None:
    async with serve(FakeRunner(1)) as server:
        async with server.connect() as other_waiting, server.connect() as refused:
            assert (await close_of(refused))[1] == 4000
            await other_waiting.send(data)
            got, code, text = await close_of(other_waiting)
        assert code == 4003
        assert reason in text
        assert got[-1]["type"] == "Error"
        assert reason in got[-1]["message"]
        await until(lambda: server.engines[0].slots_used == 0)
        async with server.connect() as next_one:
            assert (await events(next_one, "Ready"))[0] == {"type": "Ready"}
        assert await server.metric('ws_close_total{code="4003",reason="invalid_message"}') == 1
        assert await server.metric('connection_error_total{error_type="protocol",module="asr0"}') == 1


async def test_a_bad_message_disturbs_nobody_else() -> None:
    async with serve() as server, server.connect() as good, server.connect() as bad:
        await good.send(audio(say(41)))
        await bad.send(b"\xc1")
        assert (await close_of(bad))[1] == 4003
        await good.send(audio(say(42, 3)))
        await good.send(message("Flush"))
        got = await events(good, "Flush")
        assert [event["text"] for event in got if event["type"] == "Word"] == ["<41><42>"]


async def test_a_message_over_the_limit_is_refused_while_it_arrives() -> None:
    """100 MB in one message: the client reads the reason, and the server never holds the bytes."""
    async with serve(limits=ClientLimits(max_message_bytes=2**20)) as server, server.connect() as client:
        await events(client, "Ready")
        started = time.perf_counter()
        with pytest.raises(websockets.ConnectionClosed):
            await client.send(bytes(100_000_000))
            await client.recv()
            await client.recv()
        assert client.close_code == 4003
        assert client.close_reason == "a message is larger than 1 MiB"
        assert time.perf_counter() - started < 10
        await until(lambda: server.engines[0].slots_used == 0)


async def test_the_reason_comes_as_an_error_message_too() -> None:
    async with serve(limits=ClientLimits(max_message_bytes=1000)) as server, server.connect() as client:
        await events(client, "Ready")
        await client.send(bytes(2000))
        got, code, _ = await close_of(client)
        assert got == [{"type": "Error", "message": "a message is larger than 0.000953674 MiB"}]
        assert code == 4003


async def test_broken_frames_are_a_protocol_error() -> None:
    async with serve() as server, server.connect() as client:
        await events(client, "Ready")
        client.transport.write(b"\xff\xff\xff\xff")  # reserved bits and an unknown opcode
        got, code, reason = await close_of(client)
        assert code == 1002
        assert "WebSocket protocol" in reason
        assert got[-1]["type"] == "Error"
        await until(lambda: server.engines[0].slots_used == 0)


async def test_a_full_server_says_so_in_upstreams_words() -> None:
    async with serve(FakeRunner(2)) as server:
        async with server.connect() as one, server.connect() as two:
            await events(one, "Ready")
            await events(two, "Ready")
            async with server.connect() as three:
                got, code, reason = await close_of(three)
        assert got == [{"type": "Error", "message": "no free channels"}]
        assert (code, reason) == (4000, "no free channels")
        assert await server.metric('asr_connect{handler="all"}') == 3
        assert await server.metric('connection_error_total{error_type="capacity",module="asr0"}') == 1


async def test_two_hundred_connections_for_four_slots() -> None:
    async with serve(FakeRunner(4)) as server:

        async def visit() -> str:
            async with server.connect(open_timeout=30) as client:
                first = msgpack.unpackb(await client.recv())
                if first["type"] == "Ready":
                    await holding.wait()
                    await client.send(audio(say(51)))
                    await client.send(message("Flush"))
                    got = await events(client, "Flush")
                    return "".join(event.get("text", "") for event in got)
                done.append(first["message"])
                if len(done) == 196:
                    holding.set()
                return first["message"]

        holding, done = asyncio.Event(), list[str]()
        results = await asyncio.wait_for(asyncio.gather(*(visit() for _ in range(200))), 60)
        assert sorted(results) == ["<51>"] * 4 + ["no free channels"] * 196
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('asr_open_channels{handler="all"}') == 0


async def test_the_clients_close_frees_the_slot_at_once() -> None:
    async with serve(FakeRunner(1)) as server:
        for _ in range(5):
            async with server.connect() as client:
                assert (await events(client, "Ready"))[0] == {"type": "Ready"}
            await until(lambda: server.engines[0].slots_used == 0, 1)
        assert await server.metric('ws_close_total{code="1000",reason="normal"}') == 5


async def test_a_client_that_vanishes_frees_the_slot() -> None:
    async with serve(FakeRunner(1)) as server, server.connect() as client:
        await events(client, "Ready")
        await client.send(audio(say(3)))
        client.transport.abort()
        await until(lambda: server.engines[0].slots_used == 0, 2)
        assert await server.metric('ws_close_total{code="1006",reason="connection_lost"}') == 1


async def test_what_ended_streams_leave_in_cycles_is_soon_collected() -> None:
    ballast = [[] for _ in range(1_000_000)]  # as much as a worker has loaded
    async with serve(FakeRunner(1)):
        before = gc.get_stats()[2]["collections"]
        garbage = [[] for _ in range(150_000)]
        assert gc.get_stats()[2]["collections"] > before
    assert len(ballast) > len(garbage)


async def test_a_close_frame_without_a_code_is_no_lost_connection() -> None:
    async with serve(FakeRunner(1)) as server, server.connect() as client:
        await events(client, "Ready")
        client.transport.write(b"\x88\x80\0\0\0\0")
        await until(lambda: server.engines[0].slots_used == 0, 2)
        assert await server.metric('ws_close_total{code="1005",reason="no_status"}') == 1


def silence_pongs(client: websockets.ClientConnection) -> None:
    """As if the cable were cut: nothing reaches the server any more, pongs included."""
    client.transport.write = lambda data: None  # type: ignore[method-assign]


async def test_a_client_of_which_nothing_is_heard_is_closed() -> None:
    limits = ClientLimits(idle_seconds=0.6)
    async with serve(FakeRunner(1), limits=limits) as server:
        async with server.connect(ping_interval=None, close_timeout=0.1) as client:
            await events(client, "Ready")
            silence_pongs(client)
            started = time.perf_counter()
            await until(lambda: server.engines[0].slots_used == 0)
            assert 0.4 < time.perf_counter() - started < 2
            got, code, reason = await close_of(client)
        assert code == 4006
        assert "nothing was heard" in reason
        assert got[-1]["type"] == "Error"
        assert await server.metric('connection_error_total{error_type="timeout",module="asr0"}') == 1


async def test_pongs_keep_a_silent_client_but_only_until_the_message_limit() -> None:
    limits = ClientLimits(idle_seconds=0.4, message_seconds=1.2)
    async with serve(limits=limits) as server, server.connect() as client:
        started = time.perf_counter()
        await client.send(audio(say(3)))
        _, code, reason = await close_of(client)
        assert time.perf_counter() - started >= 1.2
        assert (code, reason) == (4006, "the client sent no message for 1.2 s")


async def test_an_event_loop_that_stood_still_is_no_fault_of_the_clients() -> None:
    async with serve(limits=ClientLimits(idle_seconds=0.5)) as server, server.connect() as client:
        await events(client, "Ready")
        for _ in range(3):
            await client.send(audio(say(3)))
            time.sleep(0.7)  # noqa: ASYNC251 - server and client share this loop
            await asyncio.sleep(0.2)
        await client.send(message("Flush"))
        await events(client, "Flush")


async def test_a_client_that_waits_for_a_slow_answer_need_not_speak() -> None:
    """The last words of a model that is behind may take longer than a client may be silent."""
    runner = FakeRunner(1, 8)
    runner.before_step = lambda: time.sleep(0.15)
    limits = ClientLimits(message_seconds=0.5)
    async with serve(runner, delay=8, limits=limits) as server, server.connect() as client:
        await client.send(audio(say(61)))
        await client.send(message("Flush"))
        assert "<61>" in [event.get("text") for event in await events(client, "Flush")]


async def test_text_frames_are_no_messages() -> None:
    async with serve(limits=ClientLimits(message_seconds=0.6)) as server, server.connect() as client:
        for _ in range(6):
            await client.send("still here")
            await asyncio.sleep(0.1)
        assert (await close_of(client, 2))[1] == 4006


async def test_a_client_that_never_reads_is_closed() -> None:
    limits = ClientLimits(send_seconds=0.5, idle_seconds=30)
    async with serve(FakeRunner(2), limits=limits, send_buffer=4096) as server:
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plug.connect(("127.0.0.1", server.port))
        plug.setblocking(False)
        client = await websockets.connect(server.ws(), sock=plug, compression=None, ping_interval=None)
        await events(client, "Ready")
        client.transport.pause_reading()
        second = audio(say(*[3] * 12))
        with contextlib.suppress(websockets.ConnectionClosed):
            async with asyncio.timeout(20):
                while server.engines[0].slots_used:
                    await client.send(second)
                    await asyncio.sleep(0)
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('ws_close_total{code="4006",reason="client_timeout"}') == 1
        async with server.connect() as other:
            await other.send(audio(say(61)))
            await other.send(message("Flush"))
            assert "<61>" in [event.get("text") for event in await events(other, "Flush")]
        # Its connection goes too, though it never takes the goodbye.
        await until(lambda: server.worker.open_connections <= 1, 10)
        client.transport.abort()


async def test_audio_sent_faster_than_it_is_heard_is_all_heard() -> None:
    """Minutes at once: the socket is not read while the queue is full, and nothing is lost or held against it."""
    runner = FakeRunner(1)
    runner.before_step = lambda: time.sleep(0.005) if len(runner.batches) % 20 == 0 else None
    limits = ClientLimits(idle_seconds=1, message_seconds=1)
    async with serve(runner, limits=limits, engine_limits=EngineLimits(queue_seconds=5)) as server:
        async with server.connect() as client:
            minute = audio(np.concatenate([say(71), say(*[3] * 749)]))

            async def send() -> None:
                for _ in range(5):
                    await client.send(minute)
                await client.send(message("Flush"))

            sending = asyncio.create_task(send())
            got = await events(client, "Flush", 60)
            await sending
        assert [event["text"] for event in got if event["type"] == "Word"] == ["<71>"] * 5
        assert len([event for event in got if event["type"] == "Step"]) == 3750
        session_samples = max(event["buffered_pcm"] for event in got if event["type"] == "Step")
        assert session_samples <= 5 * 24000 + 60 * 24000


async def test_a_session_limit_closes_with_4002() -> None:
    async with serve(engine_limits=EngineLimits(session_seconds=0.3)) as server, server.connect() as client:
        while True:
            try:
                await client.send(audio(say(3)))
                await asyncio.sleep(0.05)
            except websockets.ConnectionClosed:
                break
        assert client.close_code == 4002


async def test_a_model_that_stops_closes_sockets_and_turns_health_red() -> None:
    runner = FakeRunner(2)
    async with serve(runner) as server:
        assert (await server.get("/api/health")).status_code == 200

        def fail() -> None:
            raise RuntimeError("the device is gone")

        runner.before_step = fail
        async with server.connect() as idle:
            await events(idle, "Ready")
            for _ in range(3):
                async with server.connect() as client:
                    await client.send(audio(say(3)))
                    assert (await close_of(client))[1] == 1011
                await until(lambda: server.engines[0].slots_used <= 1)
            got, code, reason = await close_of(idle)
        assert code == 1011
        assert "failed" in reason
        assert got[-1]["type"] == "Error"
        health = await server.get("/api/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        async with server.connect() as late:
            assert (await close_of(late))[1] == 1011


async def test_opus_is_decoded_and_its_end_is_a_flush() -> None:
    from moshi_server.audio import OpusEncoder

    encoder = OpusEncoder()
    data = encoder.encode(np.zeros(24000, np.float32)) + encoder.finish()
    async with serve() as server, server.connect() as client:
        for start in range(0, len(data), 100):  # pages cut anywhere
            await client.send(message("OggOpus", data=data[start : start + 100]))
        got = await events(client, "Flush")
        assert len([event for event in got if event["type"] == "Step"]) == 13
        await client.send(message("OggOpus", data=list(encoder_bytes())))
        assert len([e for e in await events(client, "Flush") if e["type"] == "Step"]) == 7


def encoder_bytes() -> bytes:
    from moshi_server.audio import OpusEncoder

    encoder = OpusEncoder()
    return encoder.encode(np.zeros(12000, np.float32)) + encoder.finish()


async def test_an_opus_page_cut_short_is_refused_and_only_that_stream_ends() -> None:
    data = encoder_bytes()
    async with serve() as server, server.connect() as good, server.connect() as bad:
        await bad.send(message("OggOpus", data=data[:-20]))
        await bad.send(message("OggOpus", data=data))
        got, code, reason = await close_of(bad)
        assert code == 4003
        assert "cannot be decoded" in reason
        assert got[-1]["type"] == "Error"
        await good.send(message("OggOpus", data=data))
        await events(good, "Flush")


async def test_two_modules_each_at_its_path() -> None:
    paths = ("/api/one", "/api/two")
    async with (
        serve([FakeRunner(1), FakeRunner(1)], paths=paths) as server,
        server.connect(paths[0]) as one,
        server.connect(paths[1]) as two,
    ):
        await events(one, "Ready")
        await events(two, "Ready")
        async with server.connect(paths[1]) as more:
            assert (await close_of(more))[1] == 4000


async def refused(connecting: websockets.connect) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    response = caught.value.response
    is_json = response.headers.get("content-type") == "application/json"
    return response.status_code, json.loads(response.body or b"{}") if is_json else {}


async def test_401_before_the_upgrade() -> None:
    async with serve() as server:
        for query, code in (("", "missing_credentials"), ("?auth_id=wrong", "invalid_key")):
            status, body = await refused(server.connect(query=query))
            assert status == 401
            assert list(body) == ["error", "code", "message", "hint"]
            assert (body["error"], body["code"]) == ("unauthorized", code)
            assert await server.metric(f'auth_error_total{{error_type="{code}"}}') == 1
            assert (await server.post(b"x", headers={}, params=query.lstrip("?"))).status_code == 401
        assert server.engines[0].slots_used == 0
        assert await server.metric('asr_connect{handler="all"}') == 0
        async with server.connect(query="", additional_headers={"kyutai-api-key": KEY}) as client:
            await events(client, "Ready")


async def test_headers_that_are_too_long_or_too_many_are_refused() -> None:
    async with serve() as server:
        headers = {"x-long": "x" * 30_000, "kyutai-api-key": KEY}
        async with server.connect(query="", additional_headers=headers) as client:
            await events(client, "Ready")
        for bad in ({"x-long": "x" * 70_000}, {f"x-{number}": "x" for number in range(200)}):
            assert (await refused(server.connect(additional_headers=bad)))[0] == 431
        assert (await refused(server.connect(query="?auth_id=" + "x" * 70_000)))[0] == 414


async def test_an_unknown_path_is_404_before_the_upgrade_and_says_which_there_are(tmp_path: Path) -> None:
    two = ("/api/one", "/api/two")
    for static_dir in (None, tmp_path):
        async with serve([FakeRunner(1), FakeRunner(1)], paths=two, static_dir=static_dir) as server:
            for path in ("/api/asr-streaming", "/", "/api/one/", "/api/health", "/metrics"):
                status, body = await refused(server.connect(path))
                assert status == 404
                assert body["error"] == "not found"
                assert body["message"] == f"no module answers at {path}"
                assert body["paths"] == list(two)
                assert KEY not in str(body)
            assert (await server.get("/api/health")).status_code == 200
            async with server.connect("/api/two") as client:
                await events(client, "Ready")


async def test_4_a_module_may_be_open() -> None:
    async with serve(require_auth=False) as server, server.connect(query="") as client:
        await events(client, "Ready")


async def test_the_key_is_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with serve() as server:
        async with server.connect() as client:
            await events(client, "Ready")
        with pytest.raises(InvalidStatus):
            await server.connect(query=f"?auth_id={KEY}x")
        await until(lambda: any("stream ended" in record.message for record in caplog.records))
    ours = [r for r in caplog.records if not r.name.startswith(("websockets.client", "httpx", "httpcore"))]
    assert ours
    assert not [r for r in ours if KEY in r.getMessage() or KEY in str(getattr(r, "fields", ""))]
