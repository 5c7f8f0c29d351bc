"""Subtitles: nothing is lost, nothing overlaps, cues break where speech does."""

from __future__ import annotations

import itertools
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.speech.subtitles import LINE, MAX_SECONDS, cues, to_srt, to_vtt
from moshi_server.speech.transcript import TranscriptWord


def spoken(text: str, *, gap: float = 0.05, seconds: float = 0.3, start: float = 0.0) -> list[TranscriptWord]:
    words = []
    for word in text.split():
        words.append(TranscriptWord(word, start, start + seconds))
        start += seconds + gap
    return words


@st.composite
def transcripts(draw) -> list[TranscriptWord]:
    at, words = 0.0, []
    for _ in range(draw(st.integers(0, 40))):
        at += draw(st.floats(0, 3))
        stop = at + draw(st.floats(0, 2))
        text = "w" * draw(st.integers(1, 30)) + draw(st.sampled_from(["", "", ".", ",", "?"]))
        words.append(TranscriptWord(text, at, stop))
        at = stop
    return words


@settings(max_examples=50, deadline=None)
@given(transcripts())
def test_every_word_is_shown_once_in_order_and_cues_fit(words):
    made = cues(words)
    assert " ".join(line for cue in made for line in cue.lines).split() == [word.text for word in words]
    for cue in made:
        assert 1 <= len(cue.lines) <= 2
        assert all(len(line) <= LINE for line in cue.lines)
        assert cue.start <= cue.stop
    for one, two in itertools.pairwise(made):
        assert one.stop <= two.start
    assert [cue.start for cue in made] == sorted(cue.start for cue in made)


@settings(max_examples=50, deadline=None)
@given(transcripts())
def test_times_are_read_back(words):
    stamps = re.findall(r"(\d\d):(\d\d):(\d\d),(\d\d\d)", to_srt(words))
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in stamps]
    wanted = [time for cue in cues(words) for time in (cue.start, cue.stop)]
    assert all(abs(a - b) <= 0.0011 for a, b in zip(seconds, wanted, strict=True))


def test_a_pause_ends_a_cue():
    words = [*spoken("one two three"), *spoken("four five", start=3.0)]
    assert [cue.lines for cue in cues(words)] == [("one two three",), ("four five",)]


def test_a_sentence_ends_a_cue_unless_it_is_very_short():
    words = spoken("Yes. This is a whole sentence of words. And another one.")
    assert [" ".join(cue.lines) for cue in cues(words)] == [
        "Yes. This is a whole sentence of words.",
        "And another one.",
    ]


def test_long_speech_is_cut_at_clauses_and_into_even_lines():
    words = spoken(
        "when the train came in at last the people on the platform who had waited since the morning, "
        "cold and tired as they were, began to push towards the doors all at once"
    )
    made = cues(words)
    assert len(made) >= 2
    assert any(cue.lines[-1].endswith("morning,") for cue in made)
    for cue in made:
        assert cue.stop - cue.start <= MAX_SECONDS
        if len(cue.lines) == 2:
            assert abs(len(cue.lines[0]) - len(cue.lines[1])) < LINE / 2


def test_a_short_word_stays_long_enough_to_be_read():
    assert cues([TranscriptWord("no", 1.0, 1.1)])[0].stop == 2.0
    two = [TranscriptWord("no", 1.0, 1.1), TranscriptWord("yes", 1.95, 2.2)]
    assert [(cue.start, cue.stop) for cue in cues(two)] == [(1.0, 1.95), (1.95, 2.95)]


def test_the_formats_to_the_letter():
    words = [*spoken("a <b> & c", seconds=0.25, gap=0), *spoken("later", start=3661.5)]
    assert to_srt(words) == ("1\n00:00:00,000 --> 00:00:01,000\na <b> & c\n\n2\n01:01:01,500 --> 01:01:02,500\nlater\n")
    assert to_vtt(words) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na &lt;b&gt; &amp; c\n\n01:01:01.500 --> 01:01:02.500\nlater\n"
    )


def test_silence_makes_an_empty_file():
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n"


def test_hours_without_a_pause_take_no_time():
    words = spoken("word " * 30_000)
    start = time.perf_counter()
    assert len(cues(words)) > 1000
    assert time.perf_counter() - start < 5
