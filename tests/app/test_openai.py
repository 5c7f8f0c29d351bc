"""OpenAI's interfaces, asked by their own Python client over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np
import openai
import pytest

from moshi_server.app.module import ClientLimits
from moshi_server.audio import wav_bytes

from ..fakes import FakeRunner, say
from .server import KEY, Server, serve, until

TEXT_AS_FILE = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'
SPOKEN = wav_bytes(say(3, 200, 3, 999, 201, 3, 999, *[3] * 20, 999, 300))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


def client(server: Server, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{server.http}/v1", max_retries=0)


async def test_the_plain_transcript(server: Server) -> None:
    async with client(server) as api:
        got = await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="whisper-1")
    assert got.text == "<200> <201> <300>"
    assert got.usage is not None
    assert got.usage.type == "duration"
    assert got.usage.seconds == pytest.approx(29 * 0.08, abs=0.001)
    assert await server.metric('asr_connect{handler="all"}') == 1


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
async def test_transcripts_that_are_text(server: Server, kind: str) -> None:
    async with client(server) as api:
        got = await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="asr0", response_format=kind)
    assert isinstance(got, str)
    assert ("<200>" if kind != "vtt" else "&lt;200&gt;") in got
    assert ("-->" in got) == (kind != "text")


async def test_words_and_segments_have_times(server: Server) -> None:
    async with client(server) as api:
        got = await api.audio.transcriptions.create(
            file=("a.wav", SPOKEN),
            model="asr0",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            language="en",
        )
        only_segments = await api.audio.transcriptions.create(
            file=("a.wav", SPOKEN), model="asr0", response_format="verbose_json"
        )
    assert [word.word for word in got.words or []] == ["<200>", "<201>", "<300>"]
    assert all(word.start <= word.end for word in got.words or [])
    assert [segment.text for segment in got.segments or []] == ["<200> <201>", "<300>"]
    assert (got.language, got.duration) == ("en", pytest.approx(2.32))
    assert only_segments.words is None
    assert only_segments.segments


async def test_words_stream_as_they_are_heard(server: Server) -> None:
    async with client(server) as api:
        stream = await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="asr0", stream=True)
        events = [event async for event in stream]
    assert [event.type for event in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == "<200> <201> <300>"
    assert server.engines[0].slots_used == 0


async def test_a_stream_that_is_left_frees_its_slot(server: Server) -> None:
    hours = wav_bytes(np.tile(say(3, 200, 3), 4000))
    async with client(server) as api:
        stream = await api.audio.transcriptions.create(file=("a.wav", hours), model="asr0", stream=True)
        assert (await anext(aiter(stream))).type == "transcript.text.delta"
        await stream.close()
    await until(lambda: server.engines[0].slots_used == 0)


async def test_wrong_and_missing_keys(server: Server) -> None:
    async with client(server, "wrong") as api:
        with pytest.raises(openai.AuthenticationError) as refused:
            await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="asr0")
    assert refused.value.code == "invalid_api_key"
    assert (await server.post(b"", "/v1/audio/transcriptions", headers={})).status_code == 401


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "names: Ada"}, "prompt"),
        ({"temperature": "0.7"}, "temperature"),
        ({"include[]": "logprobs"}, "include"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities"),
        ({"stream": "perhaps"}, "stream"),
        ({"model": "gpt-9"}, "model"),
        ({"model": "tts-1"}, "model"),
    ],
)
async def test_what_is_not_supported_says_so(server: Server, fields: dict[str, str], param: str) -> None:
    async with httpx.AsyncClient(base_url=server.http, headers={"Authorization": f"Bearer {KEY}"}) as http:
        answer = await http.post("/v1/audio/transcriptions", data=fields, files={"file": ("a.wav", SPOKEN)})
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"--x\r\nnonsense",
        b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n',
    ],
)
async def test_forms_that_are_none(server: Server, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=x"}
    answer = await server.post(body, "/v1/audio/transcriptions", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_files_that_are_no_audio_or_too_large() -> None:
    async with serve(limits=ClientLimits(max_upload_bytes=100_000)) as server, client(server) as api:
        with pytest.raises(openai.BadRequestError, match="decoded"):
            await api.audio.transcriptions.create(file=("a.wav", b"no audio" * 99), model="asr0")
        with pytest.raises(openai.APIStatusError) as refused:
            await api.audio.transcriptions.create(file=("a.wav", bytes(200_000)), model="asr0")
        assert refused.value.status_code == 413


async def test_a_full_server_is_busy() -> None:
    limits = ClientLimits(post_wait_seconds=0.1)
    async with serve(FakeRunner(1, 3), limits=limits) as server, client(server) as api, server.connect() as socket:
        await socket.recv()
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as refused:
                await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="asr0", stream=stream)
            assert refused.value.status_code == 503
            assert refused.value.response.headers["retry-after"]


async def test_the_models_are_the_modules(server: Server) -> None:
    async with client(server) as api:
        assert [model.id async for model in api.models.list()] == ["asr0"]
        assert (await api.models.retrieve("asr0")).owned_by == "moshi-server"
        with pytest.raises(openai.NotFoundError) as missing:
            await api.models.retrieve("whisper-9")
    assert missing.value.code == "model_not_found"


async def test_many_at_once_each_get_their_own(server: Server) -> None:
    async with client(server) as api:
        texts = await asyncio.gather(
            *(
                api.audio.transcriptions.create(file=("a.wav", wav_bytes(say(3, 100 + n, 3))), model="asr0")
                for n in range(8)
            )
        )
    assert [text.text for text in texts] == [f"<{100 + n}>" for n in range(8)]


async def test_a_refusal_is_logged_and_counted_as_everywhere(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with client(server, "wrong") as api:
        with pytest.raises(openai.AuthenticationError):
            await api.audio.transcriptions.create(file=("a.wav", SPOKEN), model="asr0")
    refused = [record for record in caplog.records if record.getMessage().startswith("refused: ")]
    assert [record.fields["code"] for record in refused] == ["invalid_key"]  # type: ignore[attr-defined]
    assert await server.metric('auth_error_total{error_type="invalid_key"}') == 1
