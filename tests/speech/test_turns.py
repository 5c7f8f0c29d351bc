"""Pause probabilities to turns."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moshi_server.events import Turn
from moshi_server.speech.turns import TurnDetector, TurnSettings


def turns_of(values: list[float], settings: TurnSettings | None = None) -> list[tuple[str, int]]:
    detector = TurnDetector(settings or TurnSettings(head=0))
    found = [detector.frame((value,), frame) for frame, value in enumerate(values)]
    return [(turn.kind, int(turn.time)) for turn in found if turn is not None]


def test_a_pause_ends_a_turn_and_its_fall_starts_the_next():
    assert turns_of([0, 0.9, 0.1, 0.1, 0.9, 0.9, 0.2]) == [("start", 2), ("end", 4), ("start", 6)]


def test_what_wavers_between_the_thresholds_changes_nothing():
    assert turns_of([0.9, 0.5, 0.41, 0.59, 0.4, 0.59, 0.45, 0.6]) == [("start", 4), ("end", 7)]


def test_before_the_first_pause_a_turn_starts_with_the_first_word():
    detector = TurnDetector(TurnSettings())
    assert detector.frame((0, 0, 0, 0), 0.08) is None
    assert detector.word(0.8) == Turn("start", 0.8)
    assert detector.word(1.2) is None
    assert detector.frame((1, 1, 1, 0), 4.0) == Turn("end", 4.0)
    assert detector.word(4.1) is None, "a late word is of the turn that has ended"


def test_the_head_is_chosen_and_a_model_with_fewer_has_its_last():
    for head, frame in ((0, 0), (1, 1), (3, 2)):
        detector = TurnDetector(TurnSettings(head=head))
        detector.word(0)
        ends = [detector.frame(prs, i) for i, prs in enumerate([(1, 0, 0), (1, 1, 0), (1, 1, 1)])]
        assert [turn is not None for turn in ends].index(True) == frame


def test_without_heads_there_are_no_turns():
    detector = TurnDetector(TurnSettings())
    assert [detector.frame((), time) for time in range(5)] == [None] * 5


@given(
    st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans()), max_size=60),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_they_alternate_and_time_never_goes_back(frames, head, one, other):
    detector = TurnDetector(TurnSettings(head, min(one, other), max(one, other)))
    found: list[Turn] = []
    for index, (prs, spoken) in enumerate(frames):
        found += [turn for turn in (detector.frame(prs, index / 12.5),) if turn is not None]
        if spoken:
            found += [turn for turn in (detector.word(index / 12.5),) if turn is not None]
    assert [turn.kind for turn in found] == (["start", "end"] * len(found))[: len(found)]
    assert all(a.time <= b.time for a, b in itertools.pairwise(found))
