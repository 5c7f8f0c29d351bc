"""OpenAI's speech interface, asked by their own Python client over a real socket."""

from __future__ import annotations

import base64
import io
import json
import wave
from typing import Any

import numpy as np
import openai
import pytest

from moshi_server.app.module import ClientLimits
from moshi_server.audio import read_audio

from ..speech_fakes import ToneRunner
from .server import KEY, Server, serve, until
from .test_speech import LONG, speaking, tone

SAID = "hello to you"


def client(server: Server, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{server.http}/v1", max_retries=0)


async def spoken(server: Server, **options: Any) -> tuple[bytes, str]:
    fields = {"model": "tts-1", "input": SAID, "voice": "alloy"} | options
    async with client(server) as api, api.audio.speech.with_streaming_response.create(**fields) as answer:
        return await answer.read(), answer.headers["content-type"]


async def test_a_wav() -> None:
    async with speaking() as server:
        data, kind = await spoken(server, response_format="wav")
        assert kind == "audio/wav"
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels()) == (24_000, 1)
        assert np.abs(np.frombuffer(data[44:], "<i2") / 32767 - tone(SAID)).max() < 1e-3
        assert await server.metric('py_connect{handler="all"}') == 1


async def test_raw_samples() -> None:
    async with speaking() as server:
        data, kind = await spoken(server, response_format="pcm", voice="expresso/happy.wav")
        assert kind == "audio/pcm"
        assert np.abs(np.frombuffer(data, "<i2") / 32767 - tone(SAID)).max() < 1e-3


async def test_opus() -> None:
    async with speaking() as server:
        data, kind = await spoken(server, response_format="opus")
        assert kind == "audio/ogg"
        assert len(read_audio(data)) == len(tone(SAID))


@pytest.mark.parametrize("kind", ["wav", "pcm", "opus"])
async def test_events(kind: str) -> None:
    async with speaking() as server:
        whole, _ = await spoken(server, response_format=kind)
        data, content = await spoken(server, response_format=kind, stream_format="sse")
        assert content.startswith("text/event-stream")
        events = [json.loads(block.removeprefix("data: ")) for block in data.decode().split("\n\n") if block]
        assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
        assert events[-1] == {"type": "speech.audio.done"}
        sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
        assert len(sound) == len(whole)
        assert kind == "opus" or sound == whole  # an Ogg stream has a number of its own


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "mp3"}, "response_format"),
        ({"speed": 2.0}, "speed"),
        ({"instructions": "whisper"}, "instructions"),
        ({"input": 3}, "input"),
        ({"voice": {"id": 3}}, "voice"),
        ({"stream_format": "x"}, "stream_format"),
        ({"model": "whisper-1"}, "model"),
    ],
)
async def test_what_is_not_supported_says_so(fields: dict[str, Any], param: str) -> None:
    async with speaking() as server:
        with pytest.raises(openai.APIStatusError) as refused:
            await spoken(server, **fields)
        assert refused.value.status_code in (400, 404)
        assert refused.value.param == param
        assert server.engines[0].slots_used == 0


async def test_unknown_voices_and_keys() -> None:
    async with speaking() as server:
        with pytest.raises(openai.NotFoundError, match=r"did you mean 'alba\.wav'"):
            await spoken(server, voice="alva.wav")
        async with client(server, "wrong") as api:
            with pytest.raises(openai.AuthenticationError):
                await api.audio.speech.create(model="tts", input=SAID, voice="alloy")
        refused = await server.post(b"[", "/v1/audio/speech", headers={"Authorization": f"Bearer {KEY}"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_full_server_is_busy() -> None:
    limits = ClientLimits(post_wait_seconds=0.1)
    async with speaking(ToneRunner(1), limits=limits) as server, server.connect("/api/tts_streaming") as first:
        await first.recv()
        with pytest.raises(openai.InternalServerError) as refused:
            await spoken(server)
        assert refused.value.status_code == 503


async def test_who_leaves_frees_the_slot() -> None:
    async with speaking() as server, client(server) as api:
        fields: dict[str, Any] = {"model": "tts", "input": " ".join([LONG] * 200), "voice": "alloy"}
        async with api.audio.speech.with_streaming_response.create(**fields, response_format="pcm") as answer:
            await anext(aiter(answer.iter_bytes(1920)))
            assert server.engines[0].slots_used == 1
        await until(lambda: server.engines[0].slots_used == 0)


async def test_where_nothing_speaks() -> None:
    async with serve() as server, client(server) as api:
        with pytest.raises(openai.NotFoundError, match="none"):
            await api.audio.speech.create(model="tts-1", input=SAID, voice="alloy")
