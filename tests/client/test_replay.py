"""What goes on with the next server, without sockets: a stream that is cut anywhere says what an uncut one says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.audio import FRAME_SIZE
from moshi_server.client.replay import CONTEXT, LAG, Replay
from moshi_server.engine.asr import AsrOutput, AsrStream
from moshi_server.errors import InvalidMessageError
from moshi_server.events import Audio, EndWord, Flush, Init, Marker, OggOpus, Step, Turn, Word

from ..fakes import FakeRunner, say, spell

DELAY = 3


class Hearing:
    """One connection's server: the real stream logic, on a model that hears what each frame says."""

    def __init__(self, *, heads: bool = True) -> None:
        self.stream = AsrStream(DELAY, spell)
        self.runner = FakeRunner(1, DELAY, heads=heads)

    def put(self, event: object) -> None:
        self.stream.put(event, 0.0)

    def step(self) -> list[object] | None:
        """The events of one step; None if there is nothing to step."""
        frame = self.stream.take(0.0)
        if frame is None:
            return None
        (output,) = self.runner.step([0], [frame])
        assert isinstance(output, AsrOutput)
        return self.stream.accept(output)


def through(replay: Replay, *, steps: int | None = None, heads: bool = True) -> list[object]:
    """What the caller is told by one connection that is lost after so many steps, or by one that is not."""
    hearing = Hearing(heads=heads)
    while (event := replay.following()) is not None:
        hearing.put(event)
    told: list[object] = []
    while steps is None or steps > 0:
        steps = None if steps is None else steps - 1
        events = hearing.step()
        if events is None:
            break
        told += [said for event in events for said in replay.take(event)]
    return told


def words(events: Sequence[object]) -> list[tuple[str, float]]:
    return [(event.text, round(event.start_time, 6)) for event in events if isinstance(event, Word)]


def spoken(gaps: Sequence[int]) -> list[int]:
    """Words of one token, each ended before the next, with so many frames of padding before it."""
    tokens: list[int] = []
    for index, gap in enumerate(gaps):
        tokens += [3] * gap + [999, 11 + index, 3]
    return tokens


def recording(tokens: Sequence[int], chunk: int = FRAME_SIZE) -> Replay:
    replay = Replay()
    pcm = say(*tokens)
    for at in range(0, len(pcm), chunk):
        replay.add(Audio(pcm[at : at + chunk]))
    replay.add(Flush())
    return replay


@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=25),
    cuts=st.lists(st.integers(1, 150), max_size=4),
    chunk=st.sampled_from([FRAME_SIZE, 777, 6 * FRAME_SIZE]),
)
@settings(deadline=None, max_examples=60)
def test_every_word_comes_once_in_order_and_at_its_time_wherever_the_stream_is_cut(
    gaps: list[int], cuts: list[int], chunk: int
) -> None:
    tokens = spoken(gaps)
    uncut = recording(tokens)
    uncut.begin()
    whole = through(uncut)
    replay = recording(tokens, chunk)
    told: list[object] = []
    for cut in cuts:
        replay.begin()
        told += through(replay, steps=cut)
        if any(isinstance(event, Flush) for event in told):
            break
    else:
        replay.begin()
        told += through(replay)
    assert words(told) == words(whole)
    assert told.count(Flush()) == 1
    steps = [event.step_idx for event in told if isinstance(event, Step)]
    assert steps == sorted(set(steps))
    stops = [event.stop_time for event in told if isinstance(event, EndWord)]
    assert stops == sorted(stops)
    assert len(stops) <= len(words(told))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_model_that_tells_no_steps(cut: int) -> None:
    tokens = spoken([6, 2, 0, 9, 1, 4, 0, 3])
    replay = recording(tokens)
    replay.begin()
    told = through(replay, steps=cut, heads=False)
    if Flush() not in told:
        replay.begin()
        told += through(replay, heads=False)
    assert [text for text, _ in words(told)] == [f"<{11 + index}>" for index in range(8)]


def test_audio_is_let_go_once_it_is_proven() -> None:
    replay = recording([3] * 3000 + spoken([0] * 300))
    replay.begin()
    through(replay)
    assert sum(len(chunk) for _, chunk in replay._chunks) <= (CONTEXT + LAG + 3) * 24_000
    assert replay.unproven == 0
    assert not replay.owed


def test_a_marker_is_answered_once_and_asked_again_if_it_was_not() -> None:
    replay = Replay()
    replay.add(Audio(say(3, 999, 11, 3)))
    replay.add(Marker(7))
    replay.add(Audio(say(3, 3, 3, 999, 12, 3, 3, 3, 3, 3, 3)))
    replay.add(Marker(8))
    replay.add(Flush())
    replay.begin()
    told = through(replay, steps=9)
    assert [event for event in told if isinstance(event, Marker)] == [Marker(7)]
    replay.begin()
    again = through(replay)
    assert [event for event in again if isinstance(event, Marker | Flush)] == [Marker(8), Flush()]
    assert [text for text, _ in words(told + again)] == ["<11>", "<12>"]


def test_markers_of_our_own_are_told_to_nobody_and_prove_silence() -> None:
    replay = Replay()
    replay.add(Audio(say(*[3] * 100)))
    replay.begin()
    replay.ask()
    replay.ask()
    hearing = Hearing(heads=False)
    asked = []
    while (event := replay.following()) is not None:
        asked.append(event)
        hearing.put(event)
    assert sum(isinstance(event, Marker) for event in asked) == 1
    assert replay.unproven == pytest.approx(8)
    for _ in range(100):
        assert [told for event in hearing.step() or [] for told in replay.take(event)] == []
    hearing.put(Audio(say(*[3] * DELAY)))
    for _ in range(DELAY):
        assert [told for event in hearing.step() or [] for told in replay.take(event)] == []
    assert replay.unproven == 0


def test_turns_alternate_over_a_loss() -> None:
    replay = Replay()
    replay.begin()
    assert replay.take(Turn("start", 1.0)) == [Turn("start", 1.0)]
    replay.begin()
    assert replay.take(Turn("start", 1.0)) == []
    assert replay.take(Turn("end", 2.0)) == [Turn("end", 2.0)]


@pytest.mark.parametrize("event", [Init(), OggOpus(b"")])
def test_what_cannot_be_said_twice_is_refused(event: object) -> None:
    with pytest.raises(InvalidMessageError, match="samples, markers and flushes"):
        Replay().add(event)


def test_the_place_to_begin_again_is_the_quietest() -> None:
    rng = np.random.default_rng(1)
    pcm = rng.normal(0, 0.1, 24_000 * 6).astype(np.float32)
    quiet = 3 * 24_000
    pcm[quiet - 2000 : quiet + 2000] = 0
    replay = Replay()
    replay.add(Audio(pcm))
    replay.begin()
    while replay.following() is not None:
        pass
    for index in range(1, 76):
        replay.take(Step(index, (0.1,), 0))
        if index in (20, 41, 55):
            replay.take(Word(str(index), index * 0.08 - 0.2))
    replay.begin()
    assert abs(replay._base - quiet) <= FRAME_SIZE
    assert [word.text for word in replay._expected] == ["41", "55"]
