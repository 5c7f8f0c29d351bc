"""No evaluation sentence can be in training, and numbers are spoken as numbers are."""

import random

from training.vocabulary import (
    FIRST_TIER,
    LEXICON_GB,
    LEXICON_US,
    OUTSIDE_EVALUATION,
    OUTSIDE_RARE,
    OUTSIDE_TRAINING,
    WORDS,
)

from training import sentences, voices


def test_training_and_evaluation_share_no_sentence():
    rng = random.Random(0)
    mixes = (sentences.TRAIN_MIX, sentences.SECOND_MIX)
    train = {sentences.sentence(rng, mix=mix).replace(",", "") for mix in mixes for _ in range(3000)}
    held = {
        sentences.sentence(rng, evaluation=True, mix=mix).replace(",", "")
        for mix in (sentences.NUMBER_MIX, sentences.MIXED_MIX, sentences.EVERYDAY_MIX)
        for _ in range(300)
    }
    assert not train & held
    assert all(sentences.is_eval(s) for s in held)
    assert not any(sentences.is_eval(s) for s in train)


def test_every_word_comes_up_and_can_be_pronounced():
    rng = random.Random(1)
    said = {w for _ in range(2000) for w in sentences.sentence(rng).replace(",", "").split()}
    assert said == set(FIRST_TIER)
    lines = [sentences.sentence(rng, mix=sentences.SECOND_MIX) for _ in range(6000)]
    said = {w for line in lines for w in line.replace(",", "").split()}
    assert set(WORDS) < said <= {*WORDS, *OUTSIDE_TRAINING, *OUTSIDE_RARE}
    assert set(LEXICON_US) == set(LEXICON_GB) > said


def test_words_outside_are_split_into_those_of_training_and_those_of_evaluation():
    assert not set(OUTSIDE_TRAINING) & set(OUTSIDE_EVALUATION)
    assert not set(WORDS) & {*OUTSIDE_TRAINING, *OUTSIDE_EVALUATION}
    assert len(OUTSIDE_EVALUATION) > 300
    rng = random.Random(4)
    said = {w for _ in range(500) for w in sentences.sentence(rng, evaluation=True, mix=sentences.OUTSIDE_MIX).split()}
    assert said <= set(OUTSIDE_EVALUATION)


def test_no_word_outside_sounds_like_one_inside():
    sounds = lambda words: {p.translate(str.maketrans("", "", "ˈˌː")) for w in words for p in LEXICON_US[w].split()}  # noqa: E731
    assert not sounds(WORDS) & sounds({*OUTSIDE_TRAINING, *OUTSIDE_EVALUATION})


def test_numbers():
    rng = random.Random(2)
    assert sentences.number_words(0, rng) == ["zero"]
    assert sentences.number_words(17, rng) == ["seventeen"]
    assert sentences.number_words(90, rng) == ["ninety"]
    assert [w for w in sentences.number_words(120_304, rng) if w != "and"] == (
        ["one", "hundred", "twenty", "thousand", "three", "hundred", "four"]
    )


def test_held_out_voices_are_never_picked_for_training():
    rng = random.Random(3)
    espeak = {voices.pick_espeak(rng, held_out=False).split("+")[1] for _ in range(2000)}
    assert not espeak & set(voices.HELD_OUT["espeak"])
    assert {voices.pick_espeak(rng, held_out=True).split("+")[1] for _ in range(500)} == set(voices.HELD_OUT["espeak"])
    for _ in range(2000):
        parts = {part.split("*")[0] for part in voices.pick_kokoro(rng, held_out=False).split("+")}
        assert not parts & set(voices.HELD_OUT["kokoro"])
