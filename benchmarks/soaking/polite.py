"""Visits of well-behaved clients: the SDK's, posts, OpenAI's routes, rooms. Some leave early, with a close."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from typing import Any

import msgpack

from moshi_server.audio import FRAME_RATE, frames, wav_bytes
from moshi_server.client import (
    AsrClient,
    DialogueClient,
    TtsClient,
)
from moshi_server.events import Marker, Step

from .visitor import (
    CHAT,
    HEARING,
    ROOMS,
    SEND,
    SPEAKING,
    VOICES,
    Fault,
    Visitor,
)


async def streams_to_text(visitor: Visitor) -> str:
    module, path = visitor.rng.choice(list(HEARING.items()))
    pcm = visitor.sound()
    with visitor.counted(module) as account:
        client = await AsrClient.connect(visitor.ws + path, api_key=visitor.key, turns=visitor.rng.random() < 0.3)
    account.sockets += 1
    account.opened += 1
    try:
        way = visitor.rng.choice(("whole", "marker", "leaves"))
        if way == "whole":
            await client.transcribe(pcm)
            return way
        async for chunk in visitor.pace(pcm):
            await client.send_audio(chunk)
        if way == "marker":
            await client.marker(7)
            async for event in client:
                if event == Marker(7):
                    return way
            raise Fault("the stream ended before its marker")
        return way
    finally:
        await client.close()


async def posts_a_recording(visitor: Visitor) -> str:
    module, path = visitor.rng.choice(list(HEARING.items()))
    async with visitor.client() as http:
        answer = await http.post(path, content=wav_bytes(visitor.sound()))
    return visitor.answered(module, answer.status_code)


async def asks_openai_for_text(visitor: Visitor) -> str:
    module = visitor.rng.choice(list(HEARING))
    fields = {"model": module, "response_format": visitor.rng.choice(("json", "text", "srt", "vtt", "verbose_json"))}
    if visitor.rng.random() < 0.4:
        fields |= {"stream": "true", "response_format": "json"}
    async with visitor.client() as http:
        file = {"file": ("a.wav", wav_bytes(visitor.sound()))}
        answer = await http.post("/v1/audio/transcriptions", data=fields, files=file)
    return visitor.answered(module, answer.status_code)


async def speaks_openai_realtime(visitor: Visitor) -> str:
    module = visitor.rng.choice(list(HEARING))
    pcm = (visitor.sound(0.5, 3.0) * 32767).astype("<i2").tobytes()
    account = visitor.ledger.of(module)
    async with visitor.socket(f"/v1/realtime?intent=transcription&model={module}") as ws:
        account.sockets += 1
        first = json.loads(await ws.recv())
        if first["type"] == "error":
            return "full"
        account.opened += 1
        detection = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        await ws.send(json.dumps({"type": "session.update", "session": detection}))
        audio = base64.b64encode(pcm).decode()
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while (event := json.loads(await ws.recv()))["type"] != "conversation.item.input_audio_transcription.completed":
            if event["type"] == "error":
                raise Fault(str(event))
    return "ok"


async def is_spoken_to(visitor: Visitor) -> str:
    module, path = visitor.rng.choice(list(SPEAKING.items()))
    voice, opus = visitor.rng.choice(VOICES[module]), visitor.rng.random() < 0.5
    with visitor.counted(module) as account:
        client = await TtsClient.connect(visitor.ws + path, api_key=visitor.key, voice=voice, opus=opus)
    account.sockets += 1
    account.opened += 1
    try:
        if visitor.rng.random() < 0.3:
            await client.send_text(visitor.text())
            await asyncio.sleep(visitor.rng.uniform(0, 1))
            return "leaves"
        if not len((await client.speak(visitor.text())).pcm):
            raise Fault("no sound came")
        return "whole"
    finally:
        await client.close()


async def posts_a_text(visitor: Visitor) -> str:
    module = visitor.rng.choice(list(SPEAKING))
    fields: dict[str, Any] = {"text": visitor.text(), "voice": visitor.rng.choice(VOICES[module])}
    if module == "speak":
        fields["return_timestamps"] = visitor.rng.random() < 0.5
    async with visitor.client() as http:
        answer = await http.post(
            SPEAKING[module].removesuffix("_streaming") if module == "speak" else SPEAKING[module], json=fields
        )
    return visitor.answered(module, answer.status_code)


async def asks_openai_for_speech(visitor: Visitor) -> str:
    module = visitor.rng.choice(list(SPEAKING))
    fields = {"model": module, "input": visitor.text(), "voice": visitor.rng.choice(VOICES[module])}
    fields["response_format"] = visitor.rng.choice(("wav", "pcm", "opus"))
    fields["stream_format"] = visitor.rng.choice(("audio", "sse"))
    async with visitor.client() as http:
        answer = await http.post("/v1/audio/speech", json=fields)
    return visitor.answered(module, answer.status_code)


async def converses(visitor: Visitor) -> str:
    with visitor.counted("lm") as account:
        client = await DialogueClient.connect(
            visitor.ws + CHAT, api_key=visitor.key, settings={"seed": visitor.rng.randrange(99)}
        )
    account.sockets += 1
    account.opened += 1
    heard = 0

    async def listen() -> None:
        nonlocal heard
        async for _ in client:
            heard += 1

    listening = asyncio.create_task(listen())
    try:
        async for chunk in visitor.pace(visitor.sound(1.0, 6.0)):
            await client.send_audio(chunk)
        if visitor.rng.random() < 0.3:
            await client.control("end_turn")
            await asyncio.sleep(visitor.rng.uniform(0, 2))
        for _ in range(100):
            if heard:
                return "heard"
            await asyncio.sleep(0.1)
        raise Fault("nothing was heard")
    finally:
        await client.close()
        await asyncio.gather(listening, return_exceptions=True)


async def makes_a_room_heard(visitor: Visitor) -> str:
    room = visitor.rng.choice(ROOMS)
    account = visitor.ledger.of("rooms")
    async with visitor.listener(room) as ear:
        async with visitor.socket(f"{SEND}?room_id={room}") as ws:
            account.sockets += 1
            if not await visitor.heard_in(ear, ws):
                return "full"
            for _ in range(visitor.rng.randint(1, 60)):
                await ws.send(visitor.codes())
                await ws.send(b"\x02hello")
        return "heard"


async def listens(visitor: Visitor) -> str:
    async with visitor.listener(visitor.rng.choice(ROOMS)) as ear:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(visitor.rng.uniform(0.2, 8)):
                while True:
                    await ear.recv()
    return "ok"


async def posts_a_voice(visitor: Visitor) -> str:
    async with visitor.client() as http:
        answer = await http.post("/api/spectrum", content=wav_bytes(visitor.sound()))
    if answer.status_code == 200 and msgpack.unpackb(answer.content)["shape"] != [1, 16, 40]:
        raise Fault("the array has another shape")
    return visitor.answered("spectrum", answer.status_code)


async def keeps_time(visitor: Visitor) -> str:
    """Real-time frames, each answered by a step: how long that takes."""
    pcm = visitor.sound(3.0, 8.0)
    with visitor.counted("asr") as account:
        client = await AsrClient.connect(visitor.ws + HEARING["asr"], api_key=visitor.key)
    account.sockets += 1
    account.opened += 1
    sent: list[float] = []

    async def listen() -> None:
        async for event in client:
            if isinstance(event, Step) and event.step_idx < len(sent):
                now = time.monotonic()
                visitor.ledger.delays.append((now, now - sent[event.step_idx]))

    listening = asyncio.create_task(listen())
    try:
        begun = time.monotonic()
        for number, frame in enumerate(frames(pcm)):
            await asyncio.sleep(max(0.0, begun + number / FRAME_RATE - time.monotonic()))
            sent.append(time.monotonic())
            await client.send_audio(frame)
        await asyncio.sleep(1)
        return "ok"
    finally:
        await client.close()
        await asyncio.gather(listening, return_exceptions=True)


TIMED = {keeps_time: 1}
POLITE = {
    streams_to_text: 5, posts_a_recording: 2, asks_openai_for_text: 2, speaks_openai_realtime: 2, is_spoken_to: 4,
    posts_a_text: 2, asks_openai_for_speech: 2, converses: 4, makes_a_room_heard: 2, listens: 1, posts_a_voice: 2,
}  # fmt: skip
