"""Where the second hearing goes on after the first: repeated words, moved words, misheard words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.client.joining import Heard, repeated

SPOKEN = [Heard("one", 1.0), Heard("one", 1.32), Heard("two", 1.64), Heard("one", 2.08), Heard("three", 2.4)]


@pytest.mark.parametrize("first", range(len(SPOKEN)))
@pytest.mark.parametrize("known", range(len(SPOKEN) + 1))
def test_what_is_heard_as_before_repeats(first: int, known: int) -> None:
    assert repeated(SPOKEN[first:known], SPOKEN[first:]) == max(0, known - first)


def test_equal_words_are_told_apart_by_their_times() -> None:
    ones = [Heard("one", 1.0 + 0.3 * i) for i in range(6)]
    assert repeated(ones[:3], ones) == 3
    assert repeated(ones[:3], ones[1:]) == 2  # the first was not heard again


def test_another_spelling_at_the_same_time_is_the_same_word() -> None:
    again = [SPOKEN[0], Heard("won", 1.32), *SPOKEN[2:]]
    assert repeated(SPOKEN[:2], again) == 2


def test_a_fragment_before_the_first_word_is_not_new() -> None:
    assert repeated(SPOKEN[1:3], [Heard("un", 1.0), *SPOKEN[1:]]) == 3


def test_nothing_was_known() -> None:
    assert repeated([], SPOKEN) == 0
    assert repeated(SPOKEN, []) == 0


@given(
    gaps=st.lists(st.integers(3, 12), min_size=1, max_size=20),
    texts=st.lists(st.sampled_from(["one", "two", "three"]), min_size=20, max_size=20),
    moved=st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=20, max_size=20),
    known=st.integers(1, 20),
)
def test_words_that_move_by_a_frame_are_still_the_same(
    gaps: list[int], texts: list[str], moved: list[int], known: int
) -> None:
    at, first = 0, []
    for gap, text in zip(gaps, texts, strict=False):
        at += gap
        first.append((text, at))
    known = min(known, len(first))
    told = [Heard(text, at * 0.08) for text, at in first[:known]]
    # The last known word's own move and that of the next one are what the times between them must bear.
    again = [Heard(text, (at + move) * 0.08) for (text, at), move in zip(first, moved, strict=False)]
    assert repeated(told, again) == known
