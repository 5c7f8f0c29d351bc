"""No evaluation sentence can be in training, and numbers are spoken as numbers are."""

import random

from training.vocabulary import LEXICON_GB, LEXICON_US, WORDS

from training import sentences, voices


def test_training_and_evaluation_share_no_sentence():
    rng = random.Random(0)
    train = {sentences.sentence(rng).replace(",", "") for _ in range(3000)}
    held = {
        sentences.sentence(rng, evaluation=True, mix=mix).replace(",", "")
        for mix in (sentences.NUMBER_MIX, sentences.MIXED_MIX)
        for _ in range(300)
    }
    assert not train & held
    assert all(sentences.is_eval(s) for s in held)
    assert not any(sentences.is_eval(s) for s in train)


def test_every_word_comes_up_and_can_be_pronounced():
    rng = random.Random(1)
    said = {w for _ in range(2000) for w in sentences.sentence(rng).replace(",", "").split()}
    assert said == set(WORDS) == set(LEXICON_US) == set(LEXICON_GB)


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
