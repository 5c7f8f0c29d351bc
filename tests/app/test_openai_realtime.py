"""OpenAI's realtime transcription, spoken by their own Python client and by hand, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
import websockets

from moshi_server.app.module import ClientLimits
from moshi_server.audio import SAMPLE_RATE, read_audio
from moshi_server.cli.demo import API_KEY, running_worker, samples

from ..fakes import FakeRunner, say
from .server import KEY, Server, serve, until

PATH = "/v1/realtime"
ASK = "?intent=transcription"
DELTA = "conversation.item.input_audio_transcription.delta"
DONE = "conversation.item.input_audio_transcription.completed"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


def base64_of(pcm: np.ndarray) -> str:
    # Rounded up: the fake hears a token's thousandth, and 16 bits may not reach it.
    return base64.b64encode(np.ceil(pcm * 32768).clip(-32768, 32767).astype("<i2").tobytes()).decode()


def append(pcm: np.ndarray) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64_of(pcm)})


def by_hand(server: Server, query: str = ASK, **options: Any) -> websockets.connect:
    headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
    return websockets.connect(server.ws(PATH, query), additional_headers=headers, **options)


async def received(socket: websockets.ClientConnection, last: str) -> list[dict[str, Any]]:
    got: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not got or got[-1]["type"] != last:
            got.append(json.loads(await socket.recv()))
    return got


async def test_their_client_appends_commits_and_gets_the_words(server: Server) -> None:
    api = openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{server.http}/v1", websocket_base_url=f"ws://127.0.0.1:{server.port}/v1"
    )
    async with api, api.realtime.connect(model="asr0", extra_query={"intent": "transcription"}) as realtime:
        created = await realtime.recv()
        assert created.type == "session.created"
        detection = {"input": {"turn_detection": None, "transcription": {"model": "whisper-1", "language": "en"}}}
        await realtime.session.update(session={"type": "transcription", "audio": detection})
        assert (await realtime.recv()).type == "session.updated"
        await realtime.input_audio_buffer.append(audio=base64_of(say(3, 200, 3, 201, 3)))
        await realtime.input_audio_buffer.commit()
        events: list[Any] = []
        async with asyncio.timeout(10):
            while not events or events[-1].type != DONE:
                events.append(await realtime.recv())
    kinds = [event.type for event in events]
    assert kinds.index("input_audio_buffer.committed") < kinds.index("conversation.item.added") < kinds.index(DONE)
    assert "".join(event.delta for event in events if event.type == DELTA) == "<200> <201>"
    assert events[-1].transcript == "<200> <201>"
    assert events[-1].usage.seconds == pytest.approx(0.4)
    committed = next(event for event in events if event.type == "input_audio_buffer.committed")
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {committed.item_id}


async def test_commits_follow_each_other(server: Server) -> None:
    async with by_hand(server) as socket:
        await received(socket, "session.created")
        previous = None
        for word in (200, 300, 400):
            await socket.send(append(say(3, word, 3, 3)))
            await socket.send('{"type": "input_audio_buffer.commit"}')
            events = await received(socket, DONE)
            assert events[-1]["transcript"] == f"<{word}>"
            committed = next(event for event in events if event["type"] == "input_audio_buffer.committed")
            assert committed["previous_item_id"] == previous
            previous = committed["item_id"]


async def test_a_cleared_buffer_is_forgotten(server: Server) -> None:
    async with by_hand(server) as socket:
        await received(socket, "session.created")
        await socket.send(append(say(3, 200, 3, 3, 3, 3)))
        await received(socket, DELTA)
        await socket.send('{"type": "input_audio_buffer.clear"}')
        await received(socket, "input_audio_buffer.cleared")
        await socket.send('{"type": "input_audio_buffer.commit", "event_id": "mine"}')
        refused = (await received(socket, "error"))[-1]["error"]
        assert (refused["code"], refused["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
        await socket.send(append(say(3, 300, 3, 3)))
        await socket.send('{"type": "input_audio_buffer.commit"}')
        assert (await received(socket, DONE))[-1]["transcript"] == "<300>"


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("{", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("3", "invalid_event"),
        ('{"type": 3}', "invalid_event"),
        ('{"type": "response.create"}', "unsupported_event"),
        ('{"type": "input_audio_buffer.append"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "&&&"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_value"),
        ('{"type": "session.update", "session": 3}', "invalid_value"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "invalid_value"),
        ('{"type": "session.update", "session": {"include": ["logprobs"]}}', "unsupported_parameter"),
        ('{"type": "session.update", "session": {"audio": {"input": 3}}}', "invalid_value"),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
            "unsupported_parameter",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "gpt-9"}}}}}',
            "model_not_found",
        ),
        ('{"type": "transcription_session.update", "session": {"turn_detection": {"type": "x"}}}', "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_said_and_the_session_goes_on(server: Server, event: str, code: str) -> None:
    async with by_hand(server) as socket:
        await received(socket, "session.created")
        await socket.send(event)
        refused = await received(socket, "error")
        assert refused[-1]["error"]["code"] == code
        await socket.send(append(say(3, 200, 3, 3)))
        await socket.send('{"type": "input_audio_buffer.commit"}')
        assert (await received(socket, DONE))[-1]["transcript"] == "<200>"


async def test_older_clients_are_answered_in_their_words(server: Server) -> None:
    async with by_hand(server, headers={"OpenAI-Beta": "realtime=v1"}) as socket:
        await received(socket, "transcription_session.created")
        session = {
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1"},
            "turn_detection": None,
        }
        await socket.send(json.dumps({"type": "transcription_session.update", "session": session}))
        updated = (await received(socket, "transcription_session.updated"))[-1]["session"]
        assert (updated["input_audio_format"], updated["turn_detection"]) == ("pcm16", None)
        await socket.send(append(say(3, 200, 3, 3)))
        await socket.send('{"type": "input_audio_buffer.commit"}')
        assert "conversation.item.created" in [event["type"] for event in await received(socket, DONE)]


async def test_keys_come_in_the_header_or_as_browsers_send_them(server: Server) -> None:
    names = ["realtime", f"openai-insecure-api-key.{KEY}"]
    async with websockets.connect(server.ws(PATH, ASK), subprotocols=names) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == "realtime"
        await received(socket, "session.created")
    for query, headers, status in (
        (ASK, {"Authorization": "Bearer wrong"}, 401),
        ("", {"Authorization": f"Bearer {KEY}"}, 400),
        (f"{ASK}&model=gpt-9", {"Authorization": f"Bearer {KEY}"}, 404),
    ):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(server.ws(PATH, query), additional_headers=headers)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["message"]


async def test_the_log_says_who_speaks(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        async with by_hand(server) as socket:
            await received(socket, "session.created")
    opened = [record for record in caplog.records if record.getMessage() == "stream opened"]
    assert [record.fields for record in opened] == [  # type: ignore[attr-defined]
        {"caller": "public...ests", "by": "api_key"}
    ]


async def test_a_binary_message_ends_the_session_with_the_reason(server: Server) -> None:
    async with by_hand(server) as socket:
        await received(socket, "session.created")
        await socket.send(b"\x00")
        assert "JSON" in (await received(socket, "error"))[-1]["error"]["message"]
        with contextlib.suppress(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4003
    await until(lambda: server.engines[0].slots_used == 0)


async def test_a_full_server_says_so() -> None:
    async with serve(FakeRunner(1, 3), limits=ClientLimits()) as server, by_hand(server) as first:
        await received(first, "session.created")
        async with by_hand(server) as second:
            assert "no free" in (await received(second, "error"))[-1]["error"]["message"]


async def test_turns_commit_themselves_on_the_embedded_model() -> None:
    spoken = [path for path in samples() if path.suffix in (".wav", ".flac")][:2]
    said = [path.with_suffix(".txt").read_text().strip() for path in spoken]
    pause = np.zeros(3 * SAMPLE_RATE, np.float32)
    pcm = np.concatenate([pause, *(part for path in spoken for part in (read_audio(path), pause))])
    with running_worker("demo") as url:
        uri = f"{url}{PATH}{ASK}"
        async with websockets.connect(uri, additional_headers={"Authorization": f"Bearer {API_KEY}"}) as socket:
            for start in range(0, len(pcm), SAMPLE_RATE):
                await socket.send(append(pcm[start : start + SAMPLE_RATE]))
            got: list[dict[str, Any]] = []
            async with asyncio.timeout(60):
                while sum(event["type"] == DONE for event in got) < 2:
                    got.append(json.loads(await socket.recv()))
    assert [event["transcript"] for event in got if event["type"] == DONE] == said
    kinds = [event["type"].removeprefix("input_audio_buffer.") for event in got]
    turns = [kind for kind in kinds if kind in ("speech_started", "speech_stopped", "committed")]
    assert turns == ["speech_started", "speech_stopped", "committed"] * 2
    starts = [event["audio_start_ms"] / 1000 for event in got if "audio_start_ms" in event]
    stops = [event["audio_end_ms"] / 1000 for event in got if "audio_end_ms" in event]
    lengths = [len(read_audio(path)) / SAMPLE_RATE for path in spoken]
    assert starts == pytest.approx([3, 6 + lengths[0]], abs=1.0)
    assert stops == pytest.approx([3 + lengths[0], 6 + sum(lengths)], abs=1.5)
