"""The stream that outlives its connection, over real sockets: cut, refused, stalled, moved to another server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from moshi_server.app.module import ClientLimits
from moshi_server.audio import OpusEncoder
from moshi_server.client import (
    AuthError,
    ClientTimeoutError,
    ConnectionLost,
    ConnectionResumed,
    InvalidMessageError,
    NoFreeSlotError,
    Reconnect,
    ReconnectingAsrClient,
    ResourceNotFoundError,
    ServerUnreachableError,
    SessionError,
    SessionLimitError,
    transcribe,
)
from moshi_server.client.backoff import in_turn, passes
from moshi_server.engine.worker import EngineLimits
from moshi_server.errors import EngineFailedError, GoingAwayError, MoshiServerError
from moshi_server.events import Flush, Step, Turn, Word

from ..app.server import KEY, free_port, serve, until
from ..fakes import FakeRunner, say
from .cutting import wire

QUICK = Reconnect(first_seconds=0.02, most_seconds=0.1, give_up_seconds=5.0)
TEXTS = [f"<{11 + index}>" for index in range(40)]
SAID = say(*(token for index in range(40) for token in (3, 999, 11 + index, 3, 3)))


def client_of(*ports: int, how: Reconnect = QUICK, **options):
    return ReconnectingAsrClient.connect(
        [f"ws://127.0.0.1:{port}" for port in ports], api_key=KEY, reconnect=how, **options
    )


async def listen(client: ReconnectingAsrClient, got: list) -> None:
    async for event in client:
        got.append(event)
        if isinstance(event, Flush):
            return


def of(kind: type, events: Sequence) -> list:
    return [event for event in events if isinstance(event, kind)]


async def test_a_stream_that_is_cut_again_and_again_has_every_word_once():
    async with serve() as server, wire(server.port) as way, client_of(way.port) as client:
        got: list = []
        listening = asyncio.create_task(listen(client, got))
        for at in range(0, len(SAID), 1920):
            await client.send_audio(SAID[at : at + 1920])
            if at // 1920 in (30, 80, 81, 140):
                await until(lambda number=at // 1920: len(of(Step, got)) > number - 20)
                way.cut()
        await client.flush()
        async with asyncio.timeout(20):
            await listening
    assert [word.text for word in of(Word, got)] == TEXTS
    assert [round(word.start_time / 0.4, 1) for word in of(Word, got)] == [index + 0.2 for index in range(40)]
    assert [step.step_idx for step in of(Step, got)] == list(range(1, 201))
    assert 2 <= len(of(ConnectionLost, got)) <= 4
    assert len(of(ConnectionLost, got)) == len(of(ConnectionResumed, got)) == way.opened - 1
    assert all(type(lost.reason) is SessionError for lost in of(ConnectionLost, got))


async def test_another_server_takes_over_at_once_and_the_first_is_asked_last():
    async with serve() as one, serve() as two, wire(one.port) as first, wire(two.port) as second:
        how = Reconnect(first_seconds=0.02, give_up_seconds=5)
        async with client_of(first.port, second.port, how=how) as client:
            await client.send_audio(SAID[: len(SAID) // 2])
            while not of(Word, await client.receive()):
                pass
            first.refusing = True
            first.cut()
            await client.send_audio(SAID[len(SAID) // 2 :])
            await client.flush()
            got: list = []
            await listen(client, got)
    (resumed,) = of(ConnectionResumed, got)
    assert resumed.url == client.url == f"ws://127.0.0.1:{second.port}/api/asr-streaming"
    assert resumed.seconds < 2
    assert resumed.again > 0
    assert first.opened == 1
    assert of(Word, got)[-1].text == TEXTS[-1]


async def test_a_full_server_is_passed_by():
    async with serve(FakeRunner(1)) as full, serve() as other, client_of(full.port):
        async with client_of(full.port, other.port) as client:
            assert client.url.startswith(f"ws://127.0.0.1:{other.port}/")
        with pytest.raises(NoFreeSlotError):
            await client_of(full.port)


async def test_what_is_sent_while_nobody_answers_is_heard_later():
    async with serve() as server, wire(server.port) as way, client_of(way.port) as client:
        way.refusing = True
        way.cut()
        while not of(ConnectionLost, await client.receive()):
            pass
        await client.send_audio(SAID)
        await client.marker(3)
        await client.flush()
        way.refusing = False
        got: list = []
        await listen(client, got)
    assert [word.text for word in of(Word, got)] == TEXTS


async def test_a_sender_waits_while_too_much_is_not_transcribed():
    how = Reconnect(first_seconds=0.02, most_seconds=0.05, give_up_seconds=10, buffer_seconds=6.0)
    async with serve() as server, wire(server.port) as way, client_of(way.port, how=how) as client:
        way.refusing = True
        way.cut()
        while not of(ConnectionLost, await client.receive()):
            pass
        await client.send_audio(SAID[: 5 * 24_000])
        sending = asyncio.create_task(client.send_audio(SAID[5 * 24_000 :]))
        done, _ = await asyncio.wait([sending], timeout=0.2)
        assert not done
        way.refusing = False
        async with asyncio.timeout(10):
            await sending


@pytest.mark.parametrize("heads", [True, False])
async def test_more_than_the_buffer_passes_in_one_go(heads):
    how = Reconnect(buffer_seconds=6.0)
    silence = np.zeros(24_000 * 20, np.float32)
    async with serve(FakeRunner(1, heads=heads)) as server, client_of(server.port, how=how) as client:
        transcript = await client.transcribe(np.concatenate([silence, SAID]))
    assert [word.text for word in transcript.words] == TEXTS


async def test_a_server_that_falls_silent_is_taken_for_lost():
    how = Reconnect(first_seconds=0.02, give_up_seconds=5, stall_seconds=0.4)
    async with serve() as one, serve() as two, wire(one.port) as way, client_of(way.port, two.port, how=how) as client:
        way.flowing.clear()
        await client.send_audio(SAID)
        await client.flush()
        got: list = []
        async with asyncio.timeout(10):
            await listen(client, got)
    assert [word.text for word in of(Word, got)] == TEXTS
    (lost,) = of(ConnectionLost, got)
    assert "nothing has come" in str(lost.reason)


async def test_a_silent_client_is_not_taken_for_a_silent_server():
    how = Reconnect(first_seconds=0.02, give_up_seconds=5, stall_seconds=0.1)
    async with serve() as server, client_of(server.port, how=how) as client:
        await client.send_audio(SAID[:9600])
        got: list = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await listen(client, got)
    assert of(ConnectionLost, got) == []


async def test_a_server_that_goes_away_hands_over():
    async with serve(grace_seconds=0.0) as one, serve() as two, client_of(one.port, two.port) as client:
        one.worker.end()
        while not of(ConnectionResumed, await client.receive()):
            pass
        transcript = await client.transcribe(SAID)
    assert [word.text for word in transcript.words] == TEXTS


async def test_a_server_that_says_it_ends_is_left_while_it_still_serves():
    async with serve(grace_seconds=10.0) as one, serve() as two, client_of(one.port, two.port) as client:
        await client.send_audio(SAID[: len(SAID) // 2])
        got: list = []
        while not of(Word, got):
            got += await client.receive()
        one.worker.end()
        while not of(ConnectionResumed, got):
            got += await client.receive()
        await client.send_audio(SAID[len(SAID) // 2 :])
        await client.flush()
        await listen(client, got)
        await until(lambda: one.task.done(), 5)  # nobody was left to wait for
    assert [word.text for word in of(Word, got)] == TEXTS
    assert isinstance(of(ConnectionLost, got)[0].reason, GoingAwayError)
    assert of(ConnectionResumed, got)[0].seconds < 1


async def test_a_server_that_ends_with_nobody_to_follow_is_used_to_its_end():
    async with serve(grace_seconds=10.0) as server, client_of(server.port) as client:
        await client.send_audio(SAID[: len(SAID) // 2])
        await client.receive()
        server.worker.end()
        await client.send_audio(SAID[len(SAID) // 2 :])
        await client.flush()
        got: list = []
        await listen(client, got)
    assert of(ConnectionLost, got) == []
    assert of(Word, got)[-1].text == TEXTS[-1]


async def test_a_model_that_failed_is_left():
    broken = FakeRunner(1)
    steps = iter(range(1000))

    def fail() -> None:
        if next(steps) > 20:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    broken.before_step = fail
    async with serve(broken) as one, serve() as two, client_of(one.port, two.port) as client:
        got: list = []
        transcript = await client.transcribe(SAID, on_event=got.append)
    assert [word.text for word in transcript.words] == TEXTS
    assert isinstance(of(ConnectionLost, got)[0].reason, EngineFailedError)


async def test_audio_that_ends_every_server_ends_the_stream():
    """What kills one worker is not to be carried to all the others for ever."""
    runners = [FakeRunner(4), FakeRunner(4)]

    def fail() -> None:
        raise RuntimeError("on this audio")

    for runner in runners:
        runner.before_step = fail
    how = Reconnect(first_seconds=0.01, most_seconds=0.02, give_up_seconds=30, fruitless_losses=3)
    async with serve(runners[0]) as one, serve(runners[1]) as two, client_of(one.port, two.port, how=how) as client:
        with pytest.raises(EngineFailedError, match="failed"):
            await client.transcribe(SAID)
    assert len(runners[0].batches) == len(runners[1].batches) == 0


async def test_nobody_comes_back_and_the_stream_ends_with_the_last_reason():
    how = Reconnect(first_seconds=0.02, most_seconds=0.05, give_up_seconds=0.5)
    async with serve() as server, wire(server.port) as way, client_of(way.port, how=how) as client:
        way.refusing = True
        way.cut()
        start = asyncio.get_running_loop().time()
        with pytest.raises(ServerUnreachableError):
            await listen(client, [])
        assert asyncio.get_running_loop().time() - start < 3
        with pytest.raises(ServerUnreachableError):
            await client.send_audio(SAID)


async def test_no_storm_while_nobody_answers():
    how = Reconnect(first_seconds=0.05, most_seconds=0.4, give_up_seconds=2.0)
    async with serve() as server, wire(server.port) as way, client_of(way.port, how=how) as client:
        way.refusing = True
        way.cut()
        with pytest.raises(ServerUnreachableError):
            await listen(client, [])
        # Waits of 0.025, 0.05, 0.1 and then 0.2 s in the mean: far fewer than one attempt after another.
        assert 3 < way.opened < 30


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine_limits": EngineLimits(session_seconds=0.2)}, SessionLimitError),
        ({"limits": ClientLimits(message_seconds=0.2)}, ClientTimeoutError),
    ],
)
async def test_what_another_connection_would_not_change_ends_the_stream(options, error):
    async with serve(**options) as server, client_of(server.port) as client:
        with pytest.raises(error):
            await listen(client, [])


async def test_a_bad_message_ends_the_stream():
    async with serve() as server, client_of(server.port) as client:
        await client.send_audio(np.full(10, np.nan, np.float32))
        with pytest.raises(InvalidMessageError, match="sample 0"):
            await client.receive()


async def test_a_first_connection_is_not_waited_for():
    async with serve() as server:
        with pytest.raises(AuthError):
            await ReconnectingAsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key="wrong")
        with pytest.raises(ResourceNotFoundError):
            await ReconnectingAsrClient.connect(f"ws://127.0.0.1:{server.port}/other", api_key=KEY)
    with pytest.raises(ServerUnreachableError, match="no server answers"):
        await client_of(free_port(), free_port())
    with pytest.raises(ServerUnreachableError, match="no server's address"):
        await ReconnectingAsrClient.connect([])


async def test_opus_is_heard_over_a_loss_too():
    encoder = OpusEncoder()
    tone = (0.1 * np.sin(np.arange(48_000) / 10)).astype(np.float32)
    data = encoder.encode(tone) + encoder.finish()
    async with serve() as server, wire(server.port) as way, client_of(way.port) as client:
        await client.send_opus(data[: len(data) // 2])
        way.cut()
        await client.send_opus(data[len(data) // 2 :])
        got: list = []
        await listen(client, got)
    assert [step.step_idx for step in of(Step, got)] == list(range(1, 26))


async def test_closing_frees_the_slot_and_ends_the_iteration():
    async with serve() as server:
        client = await client_of(server.port)
        listening = asyncio.create_task(listen(client, []))
        await client.close()
        await listening
        await until(lambda: not server.engines[0].slots_used)
        with pytest.raises(SessionError, match="closed"):
            await client.flush()


def test_the_blocking_call_needs_no_server_that_stays():
    async def run() -> str:
        async with serve() as server, wire(server.port) as way:
            url = f"ws://127.0.0.1:{way.port}"
            seen: list[float] = []
            loop = asyncio.get_running_loop()

            def cut_once(seconds: float) -> None:
                seen.append(seconds)
                if len(seen) == 30:
                    loop.call_soon_threadsafe(way.cut)

            transcript = await asyncio.to_thread(
                transcribe, SAID, [url], api_key=KEY, on_progress=cut_once, reconnect=QUICK
            )
            assert way.opened == 2
            return transcript.text

    assert asyncio.run(run()) == " ".join(TEXTS)


def test_the_one_that_was_lost_is_asked_last():
    urls = [f"ws://h{i}/api?turns=1" for i in range(6)]
    orders = {tuple(in_turn(urls, "ws://h2/api")) for _ in range(50)}
    assert len(orders) > 10
    assert all(order[-1] == urls[2] and sorted(order) == urls for order in orders)


def test_waits_double_up_to_a_limit_and_differ():
    how = Reconnect(first_seconds=1.0, most_seconds=8.0)
    for fruitless, limits in ((0, [1, 2, 4, 8, 8]), (2, [4, 8, 8, 8, 8])):
        drawn = [[wait for wait, _ in zip(how.waits(fruitless), limits, strict=False)] for _ in range(300)]
        for limit, waits in zip(limits, zip(*drawn, strict=True), strict=True):
            assert 0 <= min(waits) < 0.1 * limit
            assert 0.9 * limit < max(waits) <= limit


@pytest.mark.parametrize(
    ("error", "owed", "again"),
    [
        (SessionError("the connection broke"), False, True),
        (GoingAwayError("bye"), False, True),
        (EngineFailedError("x"), True, True),
        (ClientTimeoutError("x"), True, True),
        (ClientTimeoutError("x"), False, False),
        (SessionLimitError("x"), True, False),
        (InvalidMessageError("x"), True, False),
        (AuthError("invalid_key", "x"), True, False),
    ],
)
def test_what_passes(error: MoshiServerError, owed: bool, again: bool):
    assert passes(error, owed=owed) is again


async def test_turns_are_asked_of_the_next_server_too():
    class Turns:
        needs_reset = False
        consumed = 0

        def put(self, event, now):
            return [Turn("start", 1.5), Flush()]

        def take(self, now):
            return None

        def deadline(self):
            return None

    async with serve(make_stream=Turns) as server, wire(server.port) as way, client_of(way.port, turns=True) as client:
        way.cut()
        while not of(ConnectionResumed, await client.receive()):
            pass
        await client.flush()
        got: list = []
        await listen(client, got)
    assert of(Turn, got) == [Turn("start", 1.5)]
