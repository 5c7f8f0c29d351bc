"""What the server says over HTTP: whole files, status, health, metrics, static files."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moshi_server import __version__
from moshi_server.app.module import ClientLimits
from moshi_server.audio import OpusEncoder
from moshi_server.auth import Authenticator
from moshi_server.engine.worker import EngineLimits

from ..fakes import FakeRunner, say
from .server import KEY, PATH, Server, audio, events, serve, until

FLAC = Path(__file__).parents[1] / "data" / "speech.flac"


def wav(pcm: np.ndarray, rate: int = 24000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


async def test_a_posted_file_gives_upstreams_list() -> None:
    async with serve() as server:
        answer = await server.post(wav(say(3, 200, 3, 3, 999, 3, 300)))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == [
            {"type": "Word", "text": "<200>", "start_time": 0.0},
            {"type": "EndWord", "stop_time": 0.32},
            {"type": "Word", "text": "<300>", "start_time": 0.32},
            {"type": "EndWord", "stop_time": pytest.approx(0.56, abs=0.1)},
        ]
        assert server.engines[0].slots_used == 0


async def test_files_of_other_rates_and_kinds() -> None:
    silence = np.zeros(24000, np.float32)
    encoder = OpusEncoder()
    opus = encoder.encode(silence) + encoder.finish()
    async with serve() as server:
        for body in (opus, wav(silence[:8000], 8000), wav(silence[:5], 44100)):
            answer = await server.post(body)
            assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "no body"),
        (b"this is not audio at all", 400, "decoded"),
        (wav(say(3))[:30], 400, "decoded"),
        (bytes(20_000), 413, "larger than"),
    ],
)
async def test_a_file_that_cannot_be_served_is_refused(body: bytes, status: int, reason: str) -> None:
    async with serve(limits=ClientLimits(max_upload_bytes=10_000)) as server:
        answer = await server.post(body)
        assert answer.status_code == status
        assert reason in answer.json()["error"]
        assert server.engines[0].slots_used == 0


async def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 4096
            yield bytes(4096)

    async with serve(limits=ClientLimits(max_upload_bytes=100_000)) as server:
        try:
            answer = await server.post(endless())
        except httpx.HTTPError:  # the connection may be closed before the client looks for the answer
            pass
        else:
            assert answer.status_code == 413
        assert sent < 50_000_000


async def test_a_file_waits_for_a_slot_and_then_503() -> None:
    limits = ClientLimits(post_wait_seconds=0.5)
    async with serve(FakeRunner(1), limits=limits) as server:
        async with server.connect() as holder:
            await events(holder, "Ready")
            answer = await server.post(wav(say(200)))
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"] == "no free channels"
            waiting = asyncio.create_task(server.post(wav(say(200))))
            await until(lambda: server.engines[0].slots_waiting == 1)
        answer = await waiting
        assert answer.status_code == 200
        assert answer.json()[0]["text"] == "<200>"


async def test_only_so_many_files_wait() -> None:
    limits = ClientLimits(post_wait_seconds=5, max_waiting_posts=2)
    async with serve(FakeRunner(1), limits=limits) as server:
        async with server.connect() as holder:
            await events(holder, "Ready")
            tasks = [asyncio.create_task(server.post(wav(say(200)))) for _ in range(3)]
            await until(lambda: server.engines[0].slots_waiting == 3)
            assert (await server.post(wav(say(200)))).status_code == 503
        assert [(await task).status_code for task in tasks] == [200] * 3


async def test_a_client_that_stops_waiting_leaves_the_queue() -> None:
    async with serve(FakeRunner(1)) as server, server.connect() as holder:
        await events(holder, "Ready")
        body = wav(say(200))
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nkyutai-api-key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: server.engines[0].slots_waiting == 1)
        writer.transport.abort()
        await until(lambda: server.engines[0].slots_waiting == 0)


async def test_a_file_longer_than_a_session_may_last() -> None:
    runner = FakeRunner(1)
    async with serve(runner, engine_limits=EngineLimits(session_seconds=0.2)) as server:
        runner.before_step = lambda: __import__("time").sleep(0.02)
        answer = await server.post(wav(np.zeros(24000 * 60, np.float32)))
        assert answer.status_code == 413
        assert server.engines[0].slots_used == 0


async def test_a_post_of_more_hours_than_are_decoded_is_refused() -> None:
    header = bytearray(FLAC.read_bytes())
    header[21] |= 0x0F  # 2^36 samples, if it were true
    async with serve() as server:
        answer = await server.post(bytes(header))
        assert answer.status_code == 400
        assert "longer than 4 h" in answer.json()["error"]
        assert server.engines[0].slots_used == 0


async def test_plain_get_says_what_the_path_is_for() -> None:
    async with serve() as server:
        answer = await server.get(PATH)
        assert answer.status_code == 426
        assert "WebSocket" in answer.json()["error"]


async def test_8_modules_info_is_upstreams() -> None:
    async with serve([FakeRunner(2), FakeRunner(3)], paths=("/a", "/b")) as server, server.connect("/a") as client:
        await events(client, "Ready")
        assert (await server.get("/api/modules_info")).json() == [
            {
                "type": "batched_asr",
                "path": path,
                "lm": "lm.safetensors",
                "audio_tokenizer": "mimi.safetensors",
                "used_slots": used,
                "total_slots": total,
            }
            for path, used, total in (("/a", "1", "2"), ("/b", "0", "3"))
        ]


async def test_8_build_info_and_status_tell_no_secrets() -> None:
    secret = "a secret of more than thirty-two bytes, as it should be"
    async with serve(auth=Authenticator([KEY], secret)) as server:
        build = (await server.get("/api/build_info")).json()
        assert build["version"] == __version__
        assert {"git_hash", "python", "torch", "platform"} <= set(build)
        answer = await server.get("/api/status")
        status = answer.json()
        assert status["status"] == "ok"
        assert status["uptime_seconds"] > 0
        assert status["build"] == build
        assert status["auth"] == {"api_keys": True, "better_auth": True}
        assert status["modules"] == [
            {
                "name": "asr0",
                "type": "BatchedAsr",
                "path": PATH,
                "status": "ready",
                "auth": True,
                "used_slots": 0,
                "total_slots": 4,
                "free_slots": 4,
                "waiting": 0,
            }
        ]
        assert secret not in answer.text
        assert KEY not in answer.text


async def test_7_health_is_red_while_the_model_warms_up() -> None:
    import threading

    warm = threading.Event()

    class Slow(FakeRunner):
        def warmup(self) -> None:
            warm.wait(10)

    async def observe(server: Server) -> None:
        answer = await server.get("/api/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
        async with server.connect() as early:
            got = await events(early, "Error")
            assert "warming up" in got[0]["message"]
        warm.set()
        await until(lambda: server.engines[0].status == "ready")
        assert (await server.get("/api/health")).status_code == 200
        assert await server.metric("warmup_success_total") == 1

    async with serve(Slow(1), wait=False) as server:
        await observe(server)


async def test_8_metrics_of_a_stream_are_scraped() -> None:
    async with serve() as server:
        async with server.connect() as client:
            await client.send(audio(say(3, 3, 3)))
            await events(client, "Step")
            assert await server.metric('asr_open_channels{handler="all"}') == 1
        await until(lambda: server.engines[0].slots_used == 0)
        answer = await server.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        names = {family.name for family in text_string_to_metric_families(answer.text)}
        assert {"asr_connect", "asr_model_step_duration", "asr_connection_num_steps", "asr_open_channels"} <= names
        assert await server.metric('asr_connect{handler="all"}') == 1
        assert await server.metric("asr_model_step_duration_count") > 0
        assert await server.metric("asr_connection_num_steps_count") == 1


async def test_8_static_files_and_the_index_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>home</p>")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "index.html").write_text("<p>app</p>")
    (tmp_path.parent / "outside.txt").write_text("secret")
    async with serve(static_dir=tmp_path) as server:
        assert (await server.get("/")).text == "<p>home</p>"
        assert (await server.get("/app/")).text == "<p>app</p>"
        assert (await server.get("/missing")).status_code == 404
        assert (await server.get("/%2e%2e/outside.txt")).status_code == 404
        assert (await server.get("/api/health")).json() == {"status": "ok"}
        assert (await server.get("/main.js")).status_code == 404  # a page of one's own is not mixed with ours


async def test_our_page_is_there_where_the_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("theirs")
    for folder in (tmp_path, tmp_path / "missing", None):
        async with serve(static_dir=folder) as server:
            page = await server.get("/")
            assert page.status_code == 200
            assert "main.js" in page.text
            assert (await server.get("/main.js")).status_code == 200
            assert (await server.get("/notes.txt")).status_code == (200 if folder == tmp_path else 404)


async def test_whether_a_key_will_do() -> None:
    async with serve() as server:
        accepted = await server.get("/api/access/asr0", headers={"kyutai-api-key": KEY})
        assert (accepted.status_code, accepted.json()) == (200, {"accepted": True, "by": "api_key"})
        refused = await server.get("/api/access/asr0?auth_id=wrong")
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_key")
        assert (await server.get("/api/access/nobody")).status_code == 404


async def test_the_api_describes_itself() -> None:
    async with serve() as server:
        described = json.loads((await server.get("/api/openapi.json")).text)
        assert {"/api/health", "/api/status", "/api/modules_info", "/api/build_info", "/metrics"} <= set(
            described["paths"]
        )
