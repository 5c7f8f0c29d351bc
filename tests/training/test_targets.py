"""The text stream that training asks for is the one that the server's word logic reads back."""

import random

import numpy as np
import pytest
from training.synth.speech import SpokenWord
from training.vocabulary import WORDS

from moshi_server.events import EndWord, Word
from moshi_server.speech.asr import WordAssembler
from training import targets


def _utterance(rng: random.Random, gaps: float) -> list[SpokenWord]:
    words, at = [], rng.uniform(0, 1)
    for _ in range(rng.randint(1, 12)):
        length = rng.uniform(0.08, 0.7)
        words.append(SpokenWord(rng.choice(WORDS), at, at + length))
        at += length + (rng.uniform(0, gaps) if rng.random() < 0.5 else 0)
    return words


@pytest.mark.parametrize("seed", range(20))
def test_round_trip_through_the_servers_word_logic(seed):
    rng = random.Random(seed)
    words = _utterance(rng, gaps=2.0)
    frames = int(words[-1].end * targets.FRAME_RATE) + 60
    spans = targets.frame_spans(words, frames)
    names = {token: word for word, token in targets.TOKENS.items()}
    assembler = WordAssembler(targets.DELAY, lambda tokens: " ".join(names[t] for t in tokens))
    events = [e for token in targets.text_tokens(spans, frames) for e in assembler.step(int(token))]
    heard = [e for e in events if isinstance(e, Word)]
    assert [e.text for e in heard] == [w.text for w in words]
    assert [e.start_time for e in heard] == pytest.approx([start / 12.5 for _, start, _ in spans])
    ends = [e.stop_time for e in events if isinstance(e, EndWord)]
    assert ends == pytest.approx([end / 12.5 for _, _, end in spans])
    assert targets.words_of(list(targets.text_tokens(spans, frames))) == [
        SpokenWord(text, start / 12.5, end / 12.5) for text, start, end in spans
    ]


def test_words_at_ordinary_speed_keep_their_times_to_half_a_frame():
    words = [SpokenWord("one", 0.5, 0.9), SpokenWord("two", 1.0, 1.3), SpokenWord("three", 2.5, 2.9)]
    for word, (_, start, end) in zip(words, targets.frame_spans(words, 100), strict=True):
        assert abs(start / 12.5 - word.start) <= 0.04 + 1e-9
        assert abs(end / 12.5 - word.end) <= 0.12


def test_pauses_count_from_the_last_frame_of_speech_heard():
    spans = [("one", 5, 10)]
    labels = targets.pause_labels(spans, 60)
    # Frame 9 is the last with speech; step 10 has just heard it.
    first = [int(np.flatnonzero(labels[10:, i])[0]) + 10 for i in range(4)]
    assert first == [10 + int(np.ceil(p * 12.5)) for p in targets.PAUSES]
    assert not labels[6:11].any()


def test_a_word_outside_the_vocabulary_is_speech_but_no_token():
    words = [SpokenWord("one", 0.5, 0.9), SpokenWord("zucchini", 1.0, 1.6), SpokenWord("two", 1.7, 2.0)]
    spans = targets.frame_spans(words, 60)
    assert [text for text, _, _ in spans] == ["one", "zucchini", "two"]
    tokens = list(targets.text_tokens(spans, 60))
    assert [w.text for w in targets.words_of(tokens)] == ["one", "two"] == [w.text for w in targets.known(words)]
    pauses = targets.pause_labels(spans, 60)
    assert not pauses[spans[1][1] + 1 : spans[1][2] + 1].any(), "it is no pause either"
