"""Other ways to say the same phonemes: accents made of sound changes, one choice for a whole utterance."""

import random
import re

from training.pronounce import stressless
from training.vocabulary import LEXICON_GB, LEXICON_US, WORDS

# What a sound may become; each row is one decision an accent makes. All results are phones that Kokoro knows.
CHANGES: list[tuple[str, list[str]]] = [
    (r"ʌ", ["ʊ", "ə", "a"]),
    (r"æ|a(?![ɪʊ])", ["a", "ɛ", "æ"]),
    (r"oʊ|əʊ", ["oʊ", "əʊ", "ɔ", "o"]),
    (r"eɪ", ["ɛ", "e"]),
    (r"aɪ", ["ɑɪ", "ɔɪ", "a"]),
    (r"aʊ", ["æʊ", "ʌʊ"]),
    (r"ɪ(?!ə)", ["i", "ə"]),
    (r"i(?!ə)", ["ɪ"]),
    (r"ɛ(?!ə)", ["e", "ɪ"]),
    (r"u", ["ʊ"]),
    (r"ɔ(?!ɪ)", ["ɑ", "ɒ", "o"]),
    (r"ɑ(?!ɪ)", ["ɒ", "a", "ɔ"]),
    (r"ɜɹ|ɜː", ["əɹ", "ɜ", "ɛɹ"]),
    (r"(?<=[aɑɔəɜɛɪʊ])ɹ(?![aɑɔəɜɛɪʊiuæ])", [""]),
    (r"ɹ", ["ɾ"]),
    (r"θ", ["t", "f", "s"]),
    (r"ð", ["d", "z", "v"]),
    (r"w(?!$)", ["v"]),
    (r"v", ["f", "w"]),
    (r"ɾ", ["t", "d"]),
    (r"t$", ["d", ""]),
    (r"z$", ["s"]),
    (r"d$", ["t"]),
    (r"^h", [""]),
    (r"ː", [""]),
]
SOUNDS: dict[str, set[str]] = {}
"""How the vocabulary's words sound, without stress, and which word it is."""
for _word in WORDS:
    for _way in [*LEXICON_US[_word].split(" "), *LEXICON_GB[_word].split(" ")]:
        SOUNDS.setdefault(stressless(_way), set()).add(_word)


class Accent:
    """A few of the changes, drawn once; words that would become another word of the vocabulary keep their sound."""

    def __init__(self, rng: random.Random, changes: int) -> None:
        self.rules = [(re.compile(old), rng.choice(new)) for old, new in rng.sample(CHANGES, changes)]

    def __call__(self, word: str, phonemes: str) -> str:
        changed = phonemes
        for old, new in self.rules:
            changed = old.sub(new, changed)
        taken = SOUNDS.get(stressless(changed), set())
        return phonemes if not stressless(changed) or (taken and word not in taken) else changed


def draw(rng: random.Random) -> Accent | None:
    """No accent more often than not."""
    return Accent(rng, rng.randint(1, 5)) if rng.random() < 0.4 else None
