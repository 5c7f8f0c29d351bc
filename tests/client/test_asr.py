"""The SDK against the real server: socket, pump and engine are those that are shipped; only the model is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import websockets

from moshi_server.app.module import ClientLimits
from moshi_server.audio import OpusEncoder, wav_bytes
from moshi_server.client import (
    AsrClient,
    AudioError,
    AuthError,
    ClientTimeoutError,
    GoingAwayError,
    InvalidMessageError,
    NoFreeSlotError,
    ResourceNotFoundError,
    ServerUnreachableError,
    SessionError,
    SessionLimitError,
    TranscriptWord,
    transcribe,
)
from moshi_server.client.asr import full_url
from moshi_server.engine.worker import EngineLimits
from moshi_server.events import EndWord, Flush, Marker, Step, Turn, Word

from ..app.server import KEY, Server, free_port, serve
from ..fakes import FakeRunner, say

SAID = say(3, 3, 11, 12, 999, 3, 13, 999, 3, 3)


def client_of(server: Server, **options):
    return AsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key=KEY, **options)


async def test_send_and_iterate():
    async with serve() as server, client_of(server) as client:
        await client.send_audio(SAID)
        await client.marker(5)
        await client.flush()
        got = []
        async for event in client:
            got.append(event)
            if isinstance(event, Flush):
                break
    assert [event.text for event in got if isinstance(event, Word)] == ["<11><12>", "<13>"]
    assert [event for event in got if isinstance(event, Marker)] == [Marker(5)]
    assert [event.step_idx for event in got if isinstance(event, Step)] == list(range(1, 11))
    assert any(isinstance(event, EndWord) for event in got)


async def test_connect_may_be_awaited_and_closed_by_hand():
    async with serve() as server:
        client = await client_of(server)
        assert server.engines[0].slots_used == 1
        await client.close()
        async with asyncio.timeout(5):
            while server.engines[0].slots_used:
                await asyncio.sleep(0.01)


async def test_a_transcript_has_words_with_times():
    async with serve() as server, client_of(server) as client:
        transcript = await client.transcribe(SAID)
    assert transcript.text == "<11><12> <13>"
    assert transcript.duration == pytest.approx(0.8)
    assert all(isinstance(word, TranscriptWord) and word.start < word.stop for word in transcript.words)
    assert transcript.words[0].stop <= transcript.words[1].start


async def test_a_file_and_its_bytes_and_its_samples_are_the_same(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(SAID))
    async with serve() as server, client_of(server) as client:
        transcripts = [
            await client.transcribe(audio)
            for audio in (SAID, tmp_path / "a.wav", str(tmp_path / "a.wav"), wav_bytes(SAID))
        ]
    assert transcripts[0].words
    assert all(transcript == transcripts[0] for transcript in transcripts)


async def test_sixteen_bit_samples_are_scaled():
    async with serve() as server, client_of(server) as client:
        await client.send_audio((say(11, 3) * 32768).round().astype(np.int16))
        await client.flush()
        words = []
        async for event in client:
            if isinstance(event, Flush):
                break
            if isinstance(event, Word):
                words.append(event.text)
    assert words == ["<11>"]


@pytest.mark.parametrize("bad", [np.zeros((2, 100), np.float32), np.array([1, 2]), np.array(["a"])])
async def test_samples_of_the_wrong_kind_are_refused_before_they_are_sent(bad):
    async with serve() as server, client_of(server) as client:
        with pytest.raises(AudioError):
            await client.send_audio(bad)


async def test_opus_reaches_the_model_and_its_end_flushes():
    runner = FakeRunner(1)
    encoder = OpusEncoder()
    tone = (0.1 * np.sin(np.arange(24_000) / 10)).astype(np.float32)
    data = encoder.encode(tone) + encoder.finish()
    async with serve(runner) as server, client_of(server) as client:
        for at in range(0, len(data), 777):
            await client.send_opus(data[at : at + 777])
        steps = 0
        async for event in client:
            steps += isinstance(event, Step)
            if isinstance(event, Flush):
                break
    assert steps == 13


async def test_an_hour_at_once_is_heard_whole_and_progress_is_told():
    minutes = 3  # the fake is quick; what matters is that it is far more than the queue holds
    pcm = np.concatenate([say(11, 999, 3, 3, 3)] * round(minutes * 60 / 0.4))
    done: list[float] = []
    async with serve(engine_limits=EngineLimits(queue_seconds=1.0)) as server, client_of(server) as client:
        transcript = await client.transcribe(pcm, on_progress=done.append)
    assert len(transcript.words) == round(minutes * 60 / 0.4)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(minutes * 60)


async def test_realtime_takes_as_long_as_the_recording():
    async with serve() as server, client_of(server) as client:
        start = asyncio.get_running_loop().time()
        await client.transcribe(SAID, realtime=True)
        assert 0.75 < asyncio.get_running_loop().time() - start < 3


async def test_turns_come_only_if_asked():
    class Turns:
        needs_reset = False
        consumed = 0

        def put(self, event, now):
            return [Turn("start", 1.5), Flush()]

        def take(self, now):
            return None

        def deadline(self):
            return None

    for turns in (False, True):
        async with serve(make_stream=Turns) as server, client_of(server, turns=turns) as client:
            await client.flush()
            first = await client.receive()
            assert first == ([Turn("start", 1.5)] if turns else [Flush()])


# What goes wrong.


async def test_no_server_says_how_to_start_one():
    with pytest.raises(ServerUnreachableError, match="no server answers at ws://") as caught:
        await AsrClient.connect(f"ws://127.0.0.1:{free_port()}")
    assert "moshi-server worker" in caught.value.hint


@pytest.mark.parametrize(("key", "code"), [("wrong", "invalid_key"), (None, "missing_credentials")])
async def test_refused_credentials_carry_the_servers_words(key, code):
    async with serve() as server:
        with pytest.raises(AuthError) as caught:
            await AsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key=key)
    assert caught.value.code == code
    assert caught.value.message
    assert caught.value.hint


async def test_a_full_server():
    async with serve(FakeRunner(1)) as server, client_of(server):
        with pytest.raises(NoFreeSlotError, match="no free channels"):
            await client_of(server)


async def test_a_path_that_is_not_there():
    async with serve() as server:
        with pytest.raises(ResourceNotFoundError, match="/api/other") as caught:
            await AsrClient.connect(f"ws://127.0.0.1:{server.port}/api/other", api_key=KEY)
    assert caught.value.hint == "streams are served at /api/asr-streaming"


async def test_a_message_that_the_server_refuses():
    async with serve() as server, client_of(server) as client:
        await client.send_audio(np.full(10, np.nan, np.float32))
        with pytest.raises(InvalidMessageError, match="sample 0 of 'pcm' is nan"):
            await client.receive()
        with pytest.raises(InvalidMessageError, match="sample 0 of 'pcm' is nan"):
            await client.flush()


async def test_events_before_the_end_are_not_lost_to_a_failing_send():
    async with serve() as server, client_of(server) as client:
        await client.send_audio(say(11, 999, 3, 3, 3))
        await client.flush()
        await asyncio.sleep(0.3)
        await client.send_audio(np.full(10, np.inf, np.float32))
        await asyncio.sleep(0.3)
        with pytest.raises(InvalidMessageError, match="sample 0"):
            await client.flush()
        got = []
        with pytest.raises(InvalidMessageError):
            while True:
                got += await client.receive()
        assert Word("<11>", 0.0) in got


async def test_a_stream_that_reaches_its_limit():
    async with serve(engine_limits=EngineLimits(session_seconds=0.2)) as server, client_of(server) as client:
        with pytest.raises(SessionLimitError):
            await client.receive()


async def test_a_client_that_says_nothing():
    async with serve(limits=ClientLimits(message_seconds=0.2)) as server, client_of(server) as client:
        with pytest.raises(ClientTimeoutError, match="no message"):
            await client.receive()


async def test_a_server_that_ends():
    async with serve(grace_seconds=0.0) as server, client_of(server) as client:
        server.worker.end()
        with pytest.raises(GoingAwayError):
            await client.receive()


async def test_transcribing_ends_with_the_streams_reason():
    async with serve(engine_limits=EngineLimits(session_seconds=0.3)) as server, client_of(server) as client:
        with pytest.raises(SessionLimitError):
            await client.transcribe(say(*[11] * 100), realtime=True)


async def test_a_failing_callback_is_raised_and_nothing_hangs():
    def fail(seconds: float) -> None:
        raise ZeroDivisionError

    async with serve(FakeRunner(1, heads=False)) as server, client_of(server) as client:
        with pytest.raises(ZeroDivisionError):
            await client.transcribe(SAID, on_progress=fail)


async def test_a_connection_that_breaks():
    async def drop(socket: websockets.ServerConnection) -> None:
        await socket.send(b"\x81\xa4type\xa5Ready")
        socket.transport.abort()

    async with websockets.serve(drop, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with AsrClient.connect(f"ws://127.0.0.1:{port}") as client:
            with pytest.raises(SessionError, match="broke"):
                await client.receive()


async def test_upstreams_way_to_be_full():
    """It sends `Error` and leaves the socket open."""

    async def full(socket: websockets.ServerConnection) -> None:
        await socket.send(b"\x82\xa4type\xa5Error\xa7message\xb0no free channels")
        await socket.wait_closed()

    async with websockets.serve(full, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoFreeSlotError):
            await AsrClient.connect(f"ws://127.0.0.1:{port}")


async def test_what_is_no_server_of_ours():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail ready\r\n\r\n")
        await writer.drain()
        writer.close()

    for handler, complaint in ((silent, "did not answer"), (web, "status 200"), (junk, "no WebSocket")):
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ServerUnreachableError, match=complaint):
                await AsrClient.connect(f"ws://127.0.0.1:{port}", timeout=0.5)


def test_addresses():
    assert full_url("ws://h:1") == "ws://h:1/api/asr-streaming"
    assert full_url("localhost:8080") == "ws://localhost:8080/api/asr-streaming"
    assert full_url("https://h/") == "wss://h/api/asr-streaming"
    assert full_url("http://h/my/path?auth_id=a%20b", turns=True) == "ws://h/my/path?auth_id=a+b&turns=1"
    for bad in ("ftp://h", "ws://", "ws://h:99999", "ws://[1", ""):
        with pytest.raises(ServerUnreachableError, match="no address"):
            full_url(bad)


async def test_errors_do_not_show_the_key_in_the_address():
    with pytest.raises(ServerUnreachableError) as caught:
        await AsrClient.connect(f"ws://user:hunter2@127.0.0.1:{free_port()}/x?auth_id=sesame")
    assert "sesame" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


# The blocking form.


@pytest.fixture
def running() -> Iterator[str]:
    """A server on a thread of its own, as a blocking caller needs one."""
    url: list[str] = []
    up = threading.Event()

    async def run() -> None:
        async with serve_here() as server:
            url.append(f"ws://127.0.0.1:{server.port}")
            loop = asyncio.get_running_loop()
            over = asyncio.Event()
            url_end.append(lambda: loop.call_soon_threadsafe(over.set))
            up.set()
            await over.wait()

    url_end: list = []
    # The worker takes the process's signals, which only the main thread may: here that part is left out.
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert up.wait(10)
    yield url[0]
    url_end[0]()
    thread.join(10)


@contextlib.asynccontextmanager
async def serve_here() -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler = lambda *_: None  # type: ignore[method-assign]
    loop.remove_signal_handler = lambda *_: True  # type: ignore[method-assign]
    async with serve() as server:
        yield server


def test_blocking(running, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(SAID))
    transcript = transcribe(tmp_path / "a.wav", running, api_key=KEY)
    assert transcript.text == "<11><12> <13>"
    with pytest.raises(AudioError, match="No such file"):
        transcribe(tmp_path / "none.wav", running, api_key=KEY)


def test_blocking_without_a_server():
    with pytest.raises(ServerUnreachableError):
        transcribe(SAID, f"ws://127.0.0.1:{free_port()}")


def test_the_sdk_imports_no_torch():
    code = (
        "import sys, moshi_server.client as c; sys.exit('torch' in sys.modules or 'moshi_server.engine' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
