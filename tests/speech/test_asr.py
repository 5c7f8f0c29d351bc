"""Words and their times from text tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moshi_server.events import EndWord, Word
from moshi_server.speech.asr import StreamClock, WordAssembler

from ..fakes import spell

DELAY = 3


def run(tokens: list[int], clock: StreamClock | None = None) -> list[Word | EndWord]:
    words = WordAssembler(DELAY, spell, clock.seconds if clock else (lambda frame: frame / 12.5))
    return [event for token in tokens for event in words.step(token)]


def test_a_word_starts_at_the_last_boundary_and_is_sent_when_padding_follows() -> None:
    # Step s (from 1) speaks of frame s - DELAY.
    assert run([3, 3, 3, 3, 0, 7, 8, 3, 3, 0]) == [Word("<7><8>", 2 / 12.5), EndWord(7 / 12.5)]


def test_tokens_before_the_delay_are_ignored() -> None:
    assert run([7, 7, 3, 3]) == []


def test_one_boundary_ends_a_word_and_starts_the_next() -> None:
    assert run([3, 3, 0, 7, 0, 8, 3]) == [Word("<7>", 0.0), EndWord(2 / 12.5), Word("<8>", 2 / 12.5)]


def test_control_pieces_alone_are_no_word_but_keep_its_place() -> None:
    # The embedded model's mark of a word it does not know: nothing is sent, and the next word starts where it does.
    assert run([3, 3, 0, 1, 0, 8, 3, 0]) == [Word("<8>", 2 / 12.5), EndWord(5 / 12.5)]


def test_flush_gives_the_pending_word_and_ends_it_now() -> None:
    words = WordAssembler(DELAY, spell)
    for token in (3, 3, 0, 7):
        words.step(token)
    assert words.pending
    assert words.flush() == [Word("<7>", 0.0), EndWord(1 / 12.5)]
    assert not words.pending
    assert words.flush() == []


def test_a_restart_keeps_the_time() -> None:
    words = WordAssembler(DELAY, spell)
    words.restart(100)
    events = [event for token in (7, 7, 3, 0, 5, 3) for event in words.step(token)]
    assert events == [Word("<5>", 101 / 12.5)]


@given(st.lists(st.sampled_from([0, 3, 3, 3, 5, 6]), max_size=200))
def test_words_come_in_order_and_none_is_lost(tokens: list[int]) -> None:
    words = WordAssembler(DELAY, spell)
    events = [event for token in tokens for event in words.step(token)] + words.flush()
    said = "".join(event.text for event in events if isinstance(event, Word))
    assert said == spell([token for token in tokens[DELAY - 1 :] if token not in (0, 3)])
    times = [event.start_time if isinstance(event, Word) else event.stop_time for event in events]
    assert times == sorted(times)
    assert sum(isinstance(event, EndWord) for event in events) <= sum(isinstance(event, Word) for event in events)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=40))
def test_the_clock_leaves_out_exactly_the_silence_that_was_inserted(parts: list[tuple[bool, int]]) -> None:
    clock = StreamClock()
    audio: list[bool] = []
    for inserted, samples in parts:
        if inserted:
            clock.insert(len(audio), samples)
        audio += [not inserted] * samples
    for frame in range(len(audio) // 1920 + 1):
        assert clock.seconds(frame) == sum(audio[: frame * 1920]) / 24000
