"""When a recogniser counts as stuck."""

from __future__ import annotations

from moshi_server.speech.watchdog import LOOP_WORDS, Watchdog

LOUD, QUIET = 0.1, 0.001
SPEECH, PAUSE = 0.1, 0.9


def test_speech_without_a_word_is_noticed_after_the_limit_and_only_once() -> None:
    watchdog = Watchdog(seconds=2.0)
    assert [watchdog.frame(LOUD, SPEECH) for _ in range(30)].index(True) == 24
    assert not any(watchdog.frame(LOUD, SPEECH) for _ in range(10))


def test_words_silence_and_pauses_are_not_stuck() -> None:
    watchdog = Watchdog(seconds=2.0)
    for _ in range(200):
        assert not watchdog.frame(QUIET, SPEECH)
        assert not watchdog.frame(LOUD, PAUSE)
    for number in range(200):
        assert not watchdog.frame(LOUD, SPEECH)
        if number % 20 == 0:
            watchdog.word(f"word{number}")


def test_a_loop_of_words_is_noticed() -> None:
    watchdog = Watchdog(seconds=2.0)
    for _ in range(LOOP_WORDS // 2):
        watchdog.word("the")
        assert not watchdog.frame(LOUD, SPEECH)
        watchdog.word("end")
    assert watchdog.frame(LOUD, SPEECH)
    assert not watchdog.frame(LOUD, SPEECH)


def test_zero_seconds_is_off() -> None:
    watchdog = Watchdog(seconds=0)
    assert not watchdog.enabled
    assert not any(watchdog.frame(LOUD, SPEECH) for _ in range(1000))
