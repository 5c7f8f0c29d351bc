"""An accent changes sounds all through an utterance, and never makes one known word of another."""

import random

from hypothesis import given
from hypothesis import strategies as st
from training.pronounce import stressless
from training.targets import PHONES
from training.vocabulary import LEXICON_GB, LEXICON_US, OUTSIDE_TRAINING, WORDS

from training import accents

# What the engines that take phonemes know for sure: what they are given without an accent too.
SIGNS = {*PHONES, *"ˈˌː", *(sign for way in LEXICON_GB.values() for sign in way)}
SOUNDS: dict[str, set[str]] = {}
for _word in WORDS:
    for _way in [*LEXICON_US[_word].split(" "), *LEXICON_GB[_word].split(" ")]:
        SOUNDS.setdefault(stressless(_way), set()).add(_word)


@given(st.integers(0, 10_000), st.sampled_from([*WORDS, *OUTSIDE_TRAINING[::17]]))
def test_no_word_becomes_a_known_other_one(seed: int, word: str) -> None:
    accent = accents.Accent(random.Random(seed), 5)
    for way in [*LEXICON_US[word].split(" "), *LEXICON_GB[word].split(" ")]:
        said = accent(word, way)
        assert stressless(said)
        if said != way:
            assert SOUNDS.get(stressless(said), {word}) >= {word}
        assert set(said) <= SIGNS


def test_it_is_one_accent_for_all_words() -> None:
    accent = accents.Accent(random.Random(0), len(accents.CHANGES))
    changed = [w for w in WORDS if accent(w, LEXICON_US[w].split(" ")[0]) != LEXICON_US[w].split(" ")[0]]
    assert len(changed) > len(WORDS) / 2
    assert accent("nine", "nˈaɪn") == accent("nine", "nˈaɪn")
