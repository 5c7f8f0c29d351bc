"""Words to forced tokens: every text ends, however it comes and whatever the model samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.speech.text import Pause, SpokenText, TextQueue, Word
from moshi_server.speech.tts import DelayedWords, Machine, PaddedWords, Padding, SpokenAt

VOCABULARY = 100
WORDS = st.lists(
    st.one_of(
        st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=6).map(lambda t: Word("w", tuple(t))),
        st.floats(0.01, 2.0).map(Pause),
    ),
    max_size=12,
)
SAMPLED = st.lists(st.integers(-5, VOCABULARY), min_size=1, max_size=20)
PADDINGS = st.builds(Padding, st.integers(0, 4), st.integers(0, 9), st.integers(0, 3), st.integers(0, 5))


class Letters:
    """A tokenizer of sorts."""

    def encode(self, text: str) -> list[int]:
        return [4 + ord(letter) % 90 for letter in text]


def run(machine: Machine, entries: list[Word | Pause], sampled: list[int], limit: int) -> list[int]:
    """Step to the end, giving words as they are wanted."""
    waiting, out = list(entries), []
    while not machine.finished:
        while machine.wanted and waiting:
            machine.add(waiting.pop(0))
        if not waiting and not machine.ready:
            machine.close()
        if not waiting and machine.wanted:
            machine.close()
        assert machine.ready
        out.append(machine.force(sampled[len(out) % len(sampled)]))
        assert len(out) <= limit, "no end"
    assert not machine.ready
    return out


@given(WORDS, SAMPLED, PADDINGS, st.integers(0, 3))
def test_every_text_ends_and_is_said_whole(
    entries: list[Word | Pause], sampled: list[int], padding: Padding, ahead: int
) -> None:
    machine = DelayedWords(padding, 7, ahead=ahead, vocabulary=VOCABULARY)
    tokens = sum(len(entry.tokens) if isinstance(entry, Word) else entry.frames for entry in entries)
    limit = (len(entries) + 1) * (padding.most + padding.between + 4) + 3 * tokens + padding.initial + 40
    out = run(machine, entries, sampled, limit)
    said = [token % VOCABULARY if ahead else token for token in out]
    assert all(0 <= token < VOCABULARY for token in said)
    expected = [token for entry in entries if isinstance(entry, Word) for token in entry.tokens]
    assert [token for token in said if token not in (0, 3)] == expected
    told = machine.spoken()
    assert [each.text for each in told] == [entry.text for entry in entries]
    assert all(each.begin <= each.end for each in told)
    assert [each.end for each in told[:-1]] == [each.begin for each in told[1:]]


@given(WORDS, SAMPLED, st.integers(0, 10))
def test_every_text_ends_for_the_other_kind_of_model(
    entries: list[Word | Pause], sampled: list[int], most: int
) -> None:
    machine = PaddedWords(most, 6, 2)
    tokens = sum(len(entry.tokens) if isinstance(entry, Word) else entry.frames for entry in entries)
    out = run(machine, entries, sampled, (len(entries) + 2) * (most + 3) + 2 * tokens + 40)
    expected = [token for entry in entries if isinstance(entry, Word) for token in entry.tokens]
    assert [token for token in out if token not in (0, 3)] == expected
    assert [each.text for each in machine.spoken()] == [entry.text for entry in entries]


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=5), SAMPLED, st.booleans())
def test_any_text_cut_anywhere_ends(text: str, cuts: list[int], sampled: list[int], ahead: bool) -> None:
    queue = TextQueue(SpokenText(Letters(), 1))
    machine = DelayedWords(Padding(), 7, ahead=2 * ahead, vocabulary=VOCABULARY)
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(edges)]
    steps = 0
    while not machine.finished:
        if pieces and (steps % 3 == 0 or not machine.ready):
            queue.put(pieces.pop(0))
            if not pieces:
                queue.end()
        for entry in queue.pull(machine.wanted):
            machine.add(entry)
        if not pieces and queue.empty:
            machine.close()
        if machine.ready:
            machine.force(sampled[steps % len(sampled)])
        steps += 1
        assert steps < 4000, "no end"


def fed(*entries: Word | Pause, **options: int) -> DelayedWords:
    machine = DelayedWords(Padding(0, 5, 0, 2), 4, vocabulary=VOCABULARY, **options)
    for entry in entries:
        machine.add(entry)
    return machine


def test_the_model_chooses_when_a_word_begins_but_not_for_ever() -> None:
    machine = fed(Word("a", (10, 11)), Word("b", (12,)))
    assert [machine.force(token) for token in (3, 3, 0)] == [0, 10, 11]
    # After its two tokens, at most as many paddings as may be in a row in all.
    assert [machine.force(3) for _ in range(4)] == [3, 3, 3, 0]


def test_padding_is_forced_at_first_and_between_words() -> None:
    machine = DelayedWords(Padding(2, 5, 1, 2), 4)
    machine.add(Word("a", (10, 11)))
    machine.add(Word("b", (12,)))
    assert [machine.force(0) for _ in range(7)] == [3, 3, 0, 10, 11, 0, 12]


def test_two_streams_of_text_look_ahead() -> None:
    machine = fed(Word("a", (10,)), Word("b", (12, 13)), Word("c", (14, 15)), ahead=2)
    first = machine.force(0)
    assert divmod(first, VOCABULARY) == (1, 10)  # a new word, and its token at once
    assert [divmod(machine.force(3), VOCABULARY) for _ in range(3)] == [(15, 3), (16, 3), (0, 3)]


def test_a_stream_waits_for_the_words_that_it_must_look_ahead_to() -> None:
    machine = fed(Word("a", (10,)), Word("b", (12,)), ahead=2)
    assert not machine.ready
    assert machine.wanted == 1
    machine.add(Pause(1.0))
    assert not machine.ready
    machine.add(Word("c", (14,)))
    assert machine.ready
    machine.force(0)
    assert not machine.ready
    machine.close()
    assert machine.ready


def test_a_pause_is_heard_for_its_length() -> None:
    machine = fed(Pause(0.4), Word("b", (12,)))
    assert [machine.force(0) for _ in range(7)] == [3, 3, 3, 3, 3, 0, 12]
    machine.close()


def test_the_end_leaves_time_for_the_sound() -> None:
    machine = fed(Word("a", (10,)))
    machine.close()
    out = []
    while not machine.finished:
        out.append(machine.force(0))
    assert out == [0, 10, *[3] * 6]
    assert machine.spoken() == [SpokenAt("a", 1, 8)]


@pytest.mark.parametrize("make", [lambda: DelayedWords(Padding(), 3), lambda: PaddedWords(3, 4, 5)])
def test_no_text_ends_too(make: Callable[[], Machine]) -> None:
    machine = make()
    assert not machine.ready
    machine.close()
    steps = 0
    while not machine.finished:
        assert machine.force(3) == 3
        steps += 1
    assert steps < 40
    assert machine.spoken() == []
