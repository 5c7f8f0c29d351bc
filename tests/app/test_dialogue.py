"""Dialogue over a real socket with real Opus both ways, and every way in which a bad client's conversation ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets

from moshi_server.app.module import ClientLimits
from moshi_server.audio import OpusDecoder, OpusEncoder
from moshi_server.auth import Authenticator
from moshi_server.client.dialogue import DialogueClient
from moshi_server.engine.build import build_engines
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import EngineLimits
from moshi_server.errors import AuthError, InvalidMessageError, NoFreeSlotError, SessionLimitError
from moshi_server.events import Audio, Metadata, Settings, Text
from moshi_server.protocol import moshi
from moshi_server.protocol.moshi import Frame, Kind
from moshi_server.speech.dialogue import DialogueSettings

from ..dialogue_checkpoint import dialogue_config, write_dialogue
from ..dialogue_fakes import EchoRunner, make_stream
from ..golden.dialogue_spec import sound
from .server import KEY, Server, serve, until

PATH = "/api/chat"


def talk(
    slots: int = 2, *, runner: EchoRunner | None = None, **options: Any
) -> contextlib.AbstractAsyncContextManager[Server]:
    return serve(runner or EchoRunner(slots), paths=(PATH,), kind="Lm", make_stream=make_stream, **options)


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * 24000)) / 24000)).astype(np.float32)


async def frames(socket: websockets.ClientConnection, seconds: float = 10) -> AsyncIterator[Frame]:
    async with asyncio.timeout(seconds):
        while True:
            data = await socket.recv()
            assert isinstance(data, bytes)
            frame = moshi.decode(data)
            assert frame is not None
            yield frame


async def close_of(socket: websockets.ClientConnection) -> tuple[list[Frame], int, str]:
    got: list[Frame] = []
    with contextlib.suppress(websockets.ConnectionClosed):
        async for frame in frames(socket):
            got.append(frame)  # noqa: PERF401
    assert socket.close_code is not None
    return got, socket.close_code, socket.close_reason or ""


async def test_nine_bytes_then_the_opus_header_then_sound_and_text() -> None:
    async with talk() as server, server.connect(PATH) as client:
        assert await client.recv() == bytes(9)
        header = await client.recv()
        assert isinstance(header, bytes)
        assert header[0] == Kind.AUDIO
        assert header[1:5] == b"OggS"
        assert b"OpusHead" in header
        assert b"OpusTags" in header
        encoder, decoder, text, heard = OpusEncoder(), OpusDecoder(), "", [np.zeros(0, np.float32)]
        decoder.feed(header[1:])
        pcm = tone(4)
        for start in range(0, len(pcm), 1920):
            await client.send(b"\x01" + encoder.encode(pcm[start : start + 1920]))
        async for frame in frames(client):
            if frame.kind is Kind.TEXT:
                text += frame.text
            else:
                assert frame.kind is Kind.AUDIO
                heard.append(decoder.feed(frame.payload))
            if sum(map(len, heard)) > 46 * 1920:
                break
        assert text.startswith("well indeed, well indeed, well")
        sound = np.concatenate(heard)
        power = np.abs(np.fft.rfft(sound[24000:72000]))
        assert abs(float(power.argmax()) / 2 - 440) < 2, "the tone that was said comes back"


async def test_several_talk_at_once_and_each_hears_its_own() -> None:
    async with talk(3) as server:

        async def one(hertz: float) -> float:
            async with DialogueClient.connect(server.ws(PATH, ""), api_key=KEY) as client:
                await client.send_audio(tone(2, hertz))
                heard = np.zeros(0, np.float32)
                async for event in client:
                    if isinstance(event, Audio):
                        heard = np.concatenate((heard, event.pcm))
                    if len(heard) > 1.6 * 24000:
                        break
            return float(np.abs(np.fft.rfft(heard[6000:30000])).argmax())

        found = await asyncio.gather(one(300), one(500), one(700))
        assert found == pytest.approx([300, 500, 700], abs=3)
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('lm_connect{handler="all"}') == 3
        assert await server.metric('lm_open_channels{handler="all"}') == 0
        assert await server.metric("lm_connection_num_steps_count") == 3


async def test_the_query_sets_the_conversation_and_metadata_tells() -> None:
    async with talk() as server:
        settings = {"text_topk": 3, "seed": 12, "worker_auth_id": "x", "metadata": 1}
        async with DialogueClient.connect(server.ws(PATH, ""), api_key=KEY, settings=settings) as client:
            event = (await client.receive())[0]
            assert isinstance(event, Metadata)
            assert (event.value["text_topk"], event.value["audio_seed"]) == (3, 12)
            await client.ask_metadata()
            assert isinstance((await client.receive())[0], Metadata)


@pytest.mark.parametrize("name", ["text_topk", "audio_temperature"])
async def test_a_setting_that_is_none_ends_it_with_the_reason(name: str) -> None:
    async with talk(1) as server:
        client = await DialogueClient.connect(server.ws(PATH, ""), api_key=KEY, settings={name: "many"})
        with pytest.raises(InvalidMessageError, match=f"{name}=many is not"):
            await client.receive()
        await until(lambda: server.engines[0].slots_used == 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x01RIFF, not Ogg", "the audio cannot be decoded"),
        (b"\x01" + OpusEncoder().header()[:20] + bytes(200), "the audio cannot be decoded"),
        (b"\x03", "a control frame holds one byte"),
        (b"\x03\x09", "a control frame holds one byte"),
        (b"\x04{", "the metadata is not JSON"),
    ],
)
async def test_garbage_gets_an_error_frame_and_frees_the_slot(data: bytes, reason: str) -> None:
    async with talk(1) as server:
        async with server.connect(PATH) as client:
            await client.send(data)
            got, code, text = await close_of(client)
        assert code == 4003
        assert reason in text
        assert got[-1].kind is Kind.ERROR
        assert reason in got[-1].text
        await until(lambda: server.engines[0].slots_used == 0)
        assert await server.metric('connection_error_total{error_type="protocol",module="asr0"}') == 1
        async with DialogueClient.connect(server.ws(PATH, ""), api_key=KEY):
            pass


async def test_unknown_kinds_and_frames_not_for_us_are_discarded() -> None:
    async with talk(1) as server, server.connect(PATH) as client:
        for data in (
            b"",
            b"\x2a",
            b"\xff" + bytes(50),
            b"\x00" + bytes(8),
            b"\x02words",
            b"\x05oops",
            b"\x06",
            b"\x08",
        ):
            await client.send(data)
        await client.send("a text message")
        await client.send(b"\x01" + OpusEncoder().encode(tone(1)))
        kinds = [frame.kind async for frame in some(client, 6)]
        assert kinds[:2] == [Kind.HANDSHAKE, Kind.AUDIO]
        assert Kind.TEXT in kinds


async def some(socket: websockets.ClientConnection, count: int) -> AsyncIterator[Frame]:
    async for frame in frames(socket):
        yield frame
        count -= 1
        if not count:
            return


async def test_controls_over_the_wire() -> None:
    runner = EchoRunner(1)
    async with talk(runner=runner) as server, DialogueClient.connect(server.ws(PATH, ""), api_key=KEY) as client:
        await client.send_audio(tone(0.4))
        await until(lambda: len(runner.heard[0]) == 5)  # Opus keeps a few milliseconds back
        await client.control("pause")
        await client.send_audio(tone(0.4))
        await client.control("start")
        await client.send_audio(tone(0.08))
        await until(lambda: len(runner.heard[0]) == 6)
        await client.control("restart")
        await until(lambda: len(runner.heard[0]) == 1)
        await client.control("end_turn")
        await until(lambda: len(runner.heard[0]) >= 4)
        assert not runner.heard[0][-1].any()


async def test_the_end_of_an_opus_stream_ends_the_turn_and_another_may_follow() -> None:
    runner = EchoRunner(1)
    async with talk(runner=runner) as server, server.connect(PATH, max_queue=None) as client:
        for _ in range(2):
            encoder = OpusEncoder()
            await client.send(b"\x01" + encoder.encode(tone(0.4)) + encoder.finish())
            before = len(runner.heard[0])
            await until(lambda: len(runner.heard[0]) >= before + 8)  # noqa: B023
            assert not runner.heard[0][-1].any()


async def test_who_speaks_too_fast_is_slowed_down_and_loses_nothing() -> None:
    gate = threading.Event()
    runner = EchoRunner(1)
    runner.before_step = lambda: gate.wait(20) and None  # type: ignore[func-returns-value]
    limits = EngineLimits(queue_seconds=1.0)
    async with talk(runner=runner, engine_limits=limits) as server, server.connect(PATH) as client:
        encoder = OpusEncoder()
        pcm = tone(60)

        async def send() -> None:
            for start in range(0, len(pcm), 1920):
                await client.send(b"\x01" + encoder.encode(pcm[start : start + 1920]))

        sending = asyncio.create_task(send())
        session = await held(server)
        await until(lambda: session.buffered_samples > 24000)
        await asyncio.sleep(0.3)
        assert session.buffered_samples < 3 * 24000, "the socket is not read any more"
        gate.set()
        texts = 0
        async for frame in frames(client, 30):
            texts += frame.kind is Kind.TEXT
            if texts == 60 * 12.5 // 4:
                break
        await sending
        assert len(runner.heard[0]) >= 60 * 12.5


async def held(server: Server) -> Any:
    await until(lambda: bool(server.engines[0]._batcher.sessions()))
    return server.engines[0]._batcher.sessions()[0]


async def test_who_does_not_read_is_closed_and_disturbs_nobody() -> None:
    limits = ClientLimits(send_seconds=0.5)
    async with talk(2, limits=limits, send_buffer=8192) as server:
        deaf = await websockets.connect(
            server.ws(PATH), compression=None, max_queue=1, max_size=None, write_limit=2**24
        )
        encoder = OpusEncoder()
        noise = np.random.default_rng(1).uniform(-0.5, 0.5, 24000).astype(np.float32)
        async with DialogueClient.connect(server.ws(PATH, ""), api_key=KEY) as other:

            async def flood() -> None:
                with contextlib.suppress(websockets.ConnectionClosed):
                    for _ in range(600):
                        await deaf.send(b"\x01" + encoder.encode(noise))
                        await asyncio.sleep(0)

            flooding = asyncio.create_task(flood())
            await until(lambda: server.engines[0].slots_used == 1, 60)
            await other.send_audio(tone(1))
            async for event in other:
                if isinstance(event, Text):
                    break
            flooding.cancel()
        assert await server.metric('ws_close_total{code="4006",reason="client_timeout"}') == 1
        deaf.transport.abort()


async def test_limits_and_refusals() -> None:
    async with talk(1, engine_limits=EngineLimits(session_seconds=0.3)) as server:
        client = await DialogueClient.connect(server.ws(PATH, ""), api_key=KEY)
        with pytest.raises(NoFreeSlotError):
            await DialogueClient.connect(server.ws(PATH, ""), api_key=KEY)
        with pytest.raises(SessionLimitError, match=r"0\.3 s"):
            await client.receive()
        with pytest.raises(AuthError):
            await DialogueClient.connect(server.ws(PATH, ""), api_key="wrong_key_of_mine")
        response = await server.get(PATH)
        assert response.status_code == 426
        info = json.loads((await server.get("/api/modules_info")).text)
        assert info[0]["type"] == "lm"


async def test_a_real_conversation_over_the_wire_is_what_the_model_says(tmp_path: Path) -> None:
    """A seeded model, real Opus both ways: what comes back is what the model makes of what was sent."""
    config = dialogue_config(
        write_dialogue(tmp_path), tmp_path, sampling="text_temperature = 0.0\naudio_temperature = 0.0"
    )
    (built,) = build_engines(config, device="cpu", hooks_for=lambda name, kind: EngineHooks())
    runner, make = built.engine._runner, built.engine._make_stream
    encoder = OpusEncoder()
    sent = [encoder.encode(frame) for frame in sound(0)[:63]]
    heard = OpusDecoder().feed(b"".join(sent))

    spoken = []
    stream = make()
    stream.put(Settings({}), 0.0)
    stream.put(Audio(heard), 0.0)
    runner.reset([0])
    while (given := stream.take(0.0)) is not None:
        spoken += stream.accept(runner.step([0], [given])[0])
    want = np.concatenate([event.pcm for event in spoken if isinstance(event, Audio)])
    words = "".join(event.text for event in spoken if isinstance(event, Text))
    runner.reset([0])

    async with (
        serve(runner, paths=(PATH,), kind="Lm", make_stream=make) as server,
        DialogueClient.connect(server.ws(PATH, ""), api_key=KEY) as other,
        server.connect(PATH, max_queue=None) as client,
    ):
        await other.send_audio(tone(3))  # somebody else talks meanwhile
        for pages in sent:
            await client.send(b"\x01" + pages)
        decoder, got, text = OpusDecoder(), np.zeros(0, np.float32), ""
        async for frame in frames(client):
            if frame.kind is Kind.AUDIO:
                got = np.concatenate((got, decoder.feed(frame.payload)))
            elif frame.kind is Kind.TEXT:
                text += frame.text
            if len(got) >= len(want) - 1920:
                break
    assert words.startswith(text)
    assert len(text) > 10
    # Opus is lossy, the more so for a seeded model's noise; but it keeps the place and the loudness of everything.
    together = np.corrcoef(got, want[: len(got)])[0, 1]
    apart = np.corrcoef(got[4000:], want[: len(got) - 4000])[0, 1]
    assert together > 0.5 > 0.1 > abs(apart), (together, apart)


async def test_the_example_on_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dialogue.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    async with talk(auth=Authenticator(["public_token"])) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode()) == (0, "")
    assert out.decode().startswith("well indeed, well")
    for target in re.findall(r"\]\(([\w./-]+\.md)", page):
        assert (Path(__file__).parents[2] / "docs" / target).is_file()


def test_every_setting_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dialogue.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in DialogueSettings().public() if name != "conditions")
