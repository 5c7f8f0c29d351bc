"""One conversation's logic without a model: what is heard when, controls, settings; and its queue of frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.engine.dialogue import HEADER, Begin, DialogueStream, Spoken
from moshi_server.engine.frames import FrameQueue
from moshi_server.errors import InvalidMessageError, SessionLimitError
from moshi_server.events import Audio, Control, Marker, Metadata, Settings, Text

from ..dialogue_fakes import PAD, EchoRunner, make_stream

FRAME = 0.08


def sound(frames: float, value: float = 0.5) -> Audio:
    return Audio(np.full(round(frames * 1920), value, np.float32))


def run(stream: DialogueStream, now: float, runner: EchoRunner) -> list[Any]:
    """Step the stream as the batcher would, until it has nothing to run."""
    events: list[Any] = []
    while (given := stream.take(now)) is not None:
        if stream.needs_reset:
            runner.reset([0])
            stream.needs_reset = False
        events += stream.accept(runner.step([0], [given])[0])
    return events


@given(st.lists(st.integers(0, 5000), max_size=12))
def test_frames_are_the_samples_whatever_the_pieces(sizes: list[int]) -> None:
    samples = np.arange(sum(sizes), dtype=np.float32)
    queue = FrameQueue()
    for piece in np.split(samples, np.cumsum(sizes)[:-1]) if sizes else []:
        queue.push(piece)
    frames = []
    while (frame := queue.take()) is not None:
        frames.append(frame)
    whole = len(samples) // 1920 * 1920
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.float32), *frames]), samples[:whole])
    rest = queue.take_padded()
    np.testing.assert_array_equal(rest[: len(samples) - whole], samples[whole:])
    assert not rest[len(samples) - whole :].any()
    assert (queue.waiting, queue.consumed) == (0, len(samples))


def test_the_first_step_waits_for_no_audio_and_brings_the_header() -> None:
    stream, runner = make_stream(), EchoRunner(1)
    assert stream.take(0.0) is None, "the client has not said how the dialogue is to be held"
    stream.put(Settings({"text_topk": "7"}), 0.0)
    events = run(stream, 0.0, runner)
    assert events == [HEADER]
    assert runner.settings[0].text_topk == 7


def test_each_frame_heard_gives_a_frame_spoken_and_text_comes_before_its_sound() -> None:
    stream, runner = make_stream(), EchoRunner(1, delay=2)
    stream.put(Settings({}), 0.0)
    stream.put(sound(3.5, 0.1), 0.0)
    events = run(stream, 0.0, runner)
    assert [type(event) for event in events] == [Audio, Audio, Audio]
    stream.put(sound(1.5, 0.2), 0.0)
    events = run(stream, 0.0, runner)
    assert isinstance(events[0], Text)
    assert events[0].text == "well"
    assert len(events) == 3
    assert stream.consumed == 5 * 1920


def test_restart_begins_anew_with_the_same_settings_and_drops_what_waits() -> None:
    stream, runner = make_stream(), EchoRunner(1)
    stream.put(Settings({"seed": "4"}), 0.0)
    stream.put(sound(5), 0.0)
    run(stream, 0.0, runner)
    stream.put(sound(2.25), 0.0)
    stream.put(Control("restart"), 0.0)
    assert run(stream, 0.0, runner) == [], "one header is enough for the Opus stream"
    assert runner.settings[0].text_seed == 4
    assert runner.resets == [0, 0]
    assert stream.consumed == round(7.25 * 1920)


def test_pause_holds_the_dialogue_and_start_goes_on() -> None:
    stream, runner = make_stream(), EchoRunner(1)
    stream.put(Settings({}), 0.0)
    stream.put(sound(3), 0.0)
    run(stream, 0.0, runner)
    stream.put(Control("pause"), 0.0)
    stream.put(sound(3), 0.0)
    assert run(stream, 1.0, runner) == []
    assert stream.consumed == 6 * 1920
    assert stream.deadline() is None
    stream.put(Control("start"), 2.0)
    assert run(stream, 2.0, runner) == []
    stream.put(sound(1), 2.0)
    assert len(run(stream, 2.0, runner)) == 2
    assert runner.resets == [0], "the state was kept"


def test_after_the_clients_turn_the_model_hears_silence_at_the_pace_of_time() -> None:
    stream, runner = make_stream(), EchoRunner(1)
    stream.put(Settings({}), 0.0)
    stream.put(sound(2.5), 0.0)
    run(stream, 0.0, runner)
    stream.put(Control("end_turn"), 1.0)
    run(stream, 1.0, runner)
    assert len(runner.heard[0]) == 1 + 3
    assert runner.heard[0][-1][:960].all(), "what was said is heard to its end"
    assert not runner.heard[0][-1][960:].any()
    assert stream.deadline() == pytest.approx(1.0 + FRAME)
    for tick in range(1, 11):
        run(stream, 1.0 + tick * FRAME + 0.001, runner)
        assert len(runner.heard[0]) == 4 + tick
    run(stream, 100.0, runner)
    assert len(runner.heard[0]) <= 4 + 10 + 2, "silence that was late is not made up for"
    stream.put(sound(1), 100.0)
    run(stream, 200.0, runner)
    assert stream.deadline() is None


def test_metadata_says_how_the_dialogue_is_held() -> None:
    stream = make_stream(conditions={"description": ("bad", "good")}, about={"lm_model_file": "lm"})
    stream.put(Settings({"description": "bad", "audio_topk": "9"}), 0.0)
    (told,) = stream.put(Metadata({}), 0.0)
    assert told.value["lm_model_file"] == "lm"
    assert told.value["audio_topk"] == 9
    assert told.value["conditions"] == {"description": "bad"}


def test_what_cannot_be_is_refused() -> None:
    stream = make_stream()
    with pytest.raises(InvalidMessageError, match="text_topk=x"):
        stream.put(Settings({"text_topk": "x"}), 0.0)
    stream.put(sound(0.1), 0.0)
    with pytest.raises(InvalidMessageError, match="cannot be set otherwise"):
        stream.put(Settings({}), 0.0)
    with pytest.raises(InvalidMessageError, match="Marker"):
        stream.put(Marker(1), 0.0)


def test_a_conversation_ends_after_the_steps_it_asked_for() -> None:
    stream, runner = make_stream(), EchoRunner(1)
    stream.put(Settings({"max_steps": "4"}), 0.0)
    stream.put(sound(3), 0.0)
    run(stream, 0.0, runner)
    stream.put(sound(1), 0.0)
    with pytest.raises(SessionLimitError, match="4 steps"):
        stream.take(0.0)


def test_padding_shows_nothing() -> None:
    stream = make_stream()
    stream.put(Settings({}), 0.0)
    assert isinstance(stream.take(0.0), Begin)
    assert stream.accept(Spoken(PAD, None)) == [HEADER]
    assert stream.accept(Spoken(PAD, None)) == []
