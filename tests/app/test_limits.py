"""What one caller may have, and how each refusal is said and counted: over real sockets, WebSocket and HTTP alike."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import httpx
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from moshi_server.app.admission import Admission, CallerLimits
from moshi_server.app.module import ClientLimits
from moshi_server.auth import Authenticator, Caller
from moshi_server.engine.worker import EngineLimits
from moshi_server.errors import RateLimitedError

from ..dialogue_fakes import EchoRunner, make_stream
from ..fakes import FakeRunner, say
from . import test_openai_realtime, test_rooms, test_speech
from .server import KEY, PATH, Server, audio, close_of, events, message, serve, until
from .test_http import wav

OTHER = "public_token_of_another"


def limited(server: Server, **limits: int) -> None:
    server.state.admission = Admission(CallerLimits(**limits))


async def refused(server: Server, limit: str) -> float:
    return await server.metric(f'limit_refusals_total{{limit="{limit}",module="asr0"}}')


async def test_one_key_has_no_more_sessions_than_it_may_and_another_has_its_own() -> None:
    async with serve(auth=Authenticator([KEY, OTHER])) as server:
        limited(server, sessions=1)
        async with server.connect() as first:
            await events(first, "Ready")
            async with server.connect() as second:
                got, code, reason = await close_of(second)
            assert code == 4004
            assert got[-1] == {"type": "Error", "message": reason}
            assert "1 streams and requests open already" in reason
            answer = await server.post(wav(say(61)))
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            assert answer.json()["error"] == reason
            theirs = await server.post(wav(say(61)), "/v1/audio/speech", headers={"authorization": f"Bearer {KEY}"})
            assert theirs.status_code == 404  # this server does not speak
            form = {"file": ("a.wav", wav(say(61)))}
            theirs = await _post_form(server, form)
            assert theirs.status_code == 429
            assert theirs.json()["error"]["code"] == "rate_limit_exceeded"
            async with server.connect(query=f"?auth_id={OTHER}") as third:
                await events(third, "Ready")
            assert await refused(server, "sessions_per_key") == 3
            assert await server.metric('connection_error_total{error_type="rate_limit",module="asr0"}') == 1
            assert await server.metric('ws_close_total{code="4004",reason="rate_limited"}') == 1
        await until(lambda: server.state.admission.served == 0)
        assert (await server.post(wav(say(61)))).status_code == 200
        assert server.state.admission.served == 0


async def _post_form(server: Server, form: dict[str, tuple[str, bytes]]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.http, timeout=30) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        return await client.post("/v1/audio/transcriptions", files=form, headers=headers)


async def test_one_key_begins_no_more_streams_a_minute_than_it_may() -> None:
    async with serve() as server:
        limited(server, per_minute=2)
        for _ in range(2):
            async with server.connect() as client:
                await events(client, "Ready")
        async with server.connect() as client:
            _, code, reason = await close_of(client)
        assert code == 4004
        assert "more than 2 streams and requests in a minute" in reason
        assert (await server.post(wav(say(61)))).status_code == 429
        assert await refused(server, "rate") == 2


def test_the_pace_recovers_with_time_and_masked_keys_are_told_apart() -> None:
    now = 0.0
    admission = Admission(CallerLimits(per_minute=2), lambda: now)
    one, two = (Caller("api_key", "*hidden*", identity=name) for name in ("one", "two"))

    def begin(caller: Caller) -> None:
        with admission.admit(caller):
            pass

    for caller in (one, two):
        begin(caller)
        begin(caller)
        with pytest.raises(RateLimitedError):
            begin(caller)
    now = 29.0
    with pytest.raises(RateLimitedError) as error:
        begin(one)
    assert error.value.hint.startswith("wait 1 s")
    now = 31.0
    begin(one)
    for _ in range(9):  # whoever shows no key has no limit of its own
        begin(Caller("open", "anyone"))
    assert admission.served == 0


async def test_who_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moshi_server.app.admission.MAX_REMEMBERED", 10)
    now = 0.0
    admission = Admission(CallerLimits(per_minute=60), lambda: now)
    for number in range(1000):
        now = float(number)
        with admission.admit(Caller("token", f"user {number}")):
            pass
    assert len(admission._starts) <= 11


async def test_a_full_server_refuses_before_the_upgrade_if_it_is_set_so() -> None:
    async with serve(FakeRunner(1)) as server:
        server.state.refuse_before_upgrade = True
        async with server.connect() as first:
            await events(first, "Ready")
            with pytest.raises(InvalidStatus) as refusal:
                await server.connect()
            response = refusal.value.response
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert b'"error":"no free channels"' in (response.body or b"")
            assert await refused(server, "slots") == 1
            await first.send(audio(say(61)))  # the one that is there goes on
            await first.send(message("Flush"))
            await events(first, "Flush")
        await until(lambda: server.engines[0].slots_used == 0)
        async with server.connect() as next_one:
            await next_one.send(audio(say(62)))
            await next_one.send(message("Flush"))
            words = [event["text"] for event in await events(next_one, "Flush") if event["type"] == "Word"]
            assert words == ["<62>"]
        await until(lambda: server.engines[0].slots_used == 0)
        assert server.state.admission.served == 0


async def test_an_ending_server_and_a_key_with_too_many_are_refused_before_the_upgrade_too() -> None:
    async with serve() as server:
        server.state.refuse_before_upgrade = True
        limited(server, sessions=1)
        async with server.connect() as first:
            await events(first, "Ready")
            with pytest.raises(InvalidStatus, match="429"):
                await server.connect()
            server.worker.grace_seconds = 30
            server.worker.end()
            await until(lambda: server.state.draining)
            limited(server)
            with pytest.raises(InvalidStatus, match="503"):
                await server.connect()
        await asyncio.wait_for(server.task, 10)


async def test_a_client_that_leaves_during_an_early_upgrade_holds_no_slot() -> None:
    async with serve(FakeRunner(1)) as server:
        server.state.refuse_before_upgrade = True
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                f"GET {PATH}?auth_id={KEY} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            writer.transport.abort()
        await until(lambda: server.engines[0].slots_used == 0 and server.state.admission.served == 0)
        async with server.connect() as client:
            await events(client, "Ready")


async def test_a_body_that_trickles_or_is_too_large_has_its_status_and_its_count() -> None:
    limits = ClientLimits(upload_seconds=0.3, max_upload_bytes=1000)
    async with serve(limits=limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nkyutai-api-key: {KEY}\r\nContent-Length: 900\r\n\r\nslow".encode()
        )
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"408"
        # The connection is closed: what else of it comes is not waited for.
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert (await server.post(b"x" * 1001)).status_code == 413
        assert await refused(server, "body_time") == 1
        assert await refused(server, "body_size") == 1


async def test_each_limit_of_a_stream_has_its_own_code_and_count() -> None:
    async with serve(limits=ClientLimits(message_seconds=0.4, max_message_bytes=2000)) as server:
        async with server.connect() as client:
            await events(client, "Ready")
            await client.send(b"x" * 2001)
            assert (await close_of(client))[1] == 4003
        async with server.connect() as client:
            assert (await close_of(client))[1] == 4006
        assert await refused(server, "message_size") == 1
        assert await refused(server, "message_time") == 1
    async with serve(engine_limits=EngineLimits(session_seconds=0.5)) as server:
        async with server.connect() as client:
            assert (await close_of(client))[1] == 4002
        assert await refused(server, "session_time") == 1


async def test_requests_beyond_those_that_may_wait_are_counted() -> None:
    runner, go = FakeRunner(1), threading.Event()
    runner.before_step = go.wait  # type: ignore[assignment]
    async with serve(runner, limits=ClientLimits(max_waiting_posts=0)) as server:
        running = asyncio.create_task(server.post(wav(say(61, 3, 3, 3))))
        await until(lambda: server.engines[0].slots_used == 1)
        assert (await server.post(wav(say(61)))).status_code == 503
        assert await refused(server, "waiting_posts") == 1
        go.set()
        assert (await running).status_code == 200


async def test_every_protocol_asks_the_same_gate() -> None:
    async def code_of(connection: websockets.connect) -> int | None:
        async with connection as client:
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await asyncio.wait_for(client.recv(), 10)
        return client.close_code

    chat = {"paths": ("/api/chat",), "kind": "Lm", "make_stream": make_stream}
    async with serve(EchoRunner(2), **chat) as server:
        limited(server, sessions=0)
        assert await code_of(server.connect("/api/chat")) == 4004
    async with serve() as server:
        limited(server, sessions=0)
        assert await code_of(test_openai_realtime.by_hand(server)) == 4004
    async with test_rooms.serving(auth=True) as server:
        limited(server, sessions=0)
        assert await code_of(test_rooms.produce(server)) == 4004
        assert await code_of(test_rooms.listen(server, f"?auth_id={KEY}")) == 4004
    async with test_speech.speaking() as server:
        limited(server, sessions=0)
        assert await code_of(server.connect(test_speech.PATH)) == 4004
        assert (await server.post(b'{"text": "hello"}', test_speech.PATH)).status_code == 429
        body = b'{"input": "hello", "model": "tts"}'
        assert (await server.post(body, "/v1/audio/speech")).status_code == 429
        assert await server.metric('limit_refusals_total{limit="sessions_per_key",module="tts"}') == 3
        limited(server, sessions=1)
        for path, text in ((test_speech.PATH, b'{"text": "hello"}'), ("/v1/audio/speech", body)):
            for _ in range(2):  # sound that is sent as it is spoken keeps its place until it was sent, and no longer
                assert (await server.post(text, path)).status_code == 200
        await until(lambda: server.state.admission.served == 0)
