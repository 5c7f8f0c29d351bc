"""Random sentences over the vocabulary, split by their own text so that no evaluation sentence is ever in training."""

import hashlib
import random
from collections.abc import Callable

from training.vocabulary import CONTROL_WORDS, DIGITS, JOINTS, NUMBER_WORDS, TEENS, TENS, WORDS

PAUSE = ","
EVAL_SHARE = 0.1


def is_eval(sentence: str) -> bool:
    """Whether the sentence belongs to evaluation: a tenth of all sentences of three words or more, by hash."""
    words = sentence.replace(PAUSE, "").split()
    if len(words) < 3:
        return False
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big") < EVAL_SHARE * 2**32


def number_words(n: int, rng: random.Random) -> list[str]:
    """`n` (0 to 999 999) as it is spoken, with `and` where the dice say so."""
    if n < 10:
        return [DIGITS[n]]
    if n < 20:
        return [TEENS[n - 10]]
    if n < 100:
        return [TENS[n // 10 - 2], *([DIGITS[n % 10]] if n % 10 else [])]
    if n < 1000:
        rest = n % 100
        joint = ["and"] if rest and rng.random() < 0.5 else []
        return [DIGITS[n // 100], "hundred", *joint, *(number_words(rest, rng) if rest else [])]
    rest = n % 1000
    joint = ["and"] if 0 < rest < 100 and rng.random() < 0.5 else []
    return [*number_words(n // 1000, rng), "thousand", *joint, *(number_words(rest, rng) if rest else [])]


def _digits(rng: random.Random, count: int) -> list[str]:
    zero = "oh" if rng.random() < 0.35 else "zero"
    return [zero if d == "zero" else d for d in rng.choices(DIGITS, k=count)]


def _digit_string(rng: random.Random) -> list[str]:
    return _digits(rng, rng.randint(3, 9))


def _phone(rng: random.Random) -> list[str]:
    groups = rng.choice([(3, 3, 4), (3, 4), (4, 4), (2, 3, 3), (5, 3)])
    words: list[str] = []
    for i, size in enumerate(groups):
        words += [PAUSE] if i else []
        words += _digits(rng, size)
    return words


def _number(rng: random.Random) -> list[str]:
    n = rng.randrange(10 ** rng.randint(2, 6))
    words = number_words(n, rng)
    if rng.random() < 0.3:
        words += ["point", *_digits(rng, rng.randint(1, 3))]
    return ["minus", *words] if rng.random() < 0.25 else words


def _pairs(rng: random.Random) -> list[str]:
    """A year or a time: `nineteen eighty four`, `twelve oh five`."""
    words = [rng.choice(TEENS + TENS)]
    if rng.random() < 0.3:
        return [*words, "oh", rng.choice(DIGITS[1:])]
    return words + number_words(rng.randint(10, 99), rng)


def _numbers(rng: random.Random) -> list[str]:
    words: list[str] = []
    for i in range(rng.randint(2, 3)):
        words += [PAUSE] if i and rng.random() < 0.5 else []
        words += rng.choice([_number, _pairs])(rng)
    return words


def _control(rng: random.Random) -> list[str]:
    words: list[str] = []
    for i in range(rng.randint(1, 4)):
        words += [PAUSE] if i and rng.random() < 0.4 else []
        words.append(rng.choice(CONTROL_WORDS))
    return words


def _mixed(rng: random.Random) -> list[str]:
    parts = [[rng.choice(CONTROL_WORDS)], rng.choice([_number, _digit_string, _pairs])(rng)]
    if rng.random() < 0.4:
        parts.append([rng.choice(CONTROL_WORDS)])
    words: list[str] = []
    for i, part in enumerate(parts):
        words += [PAUSE] if i and rng.random() < 0.5 else []
        words += part
    return words


def _salad(rng: random.Random) -> list[str]:
    """Words with no grammar at all, so that the model has to listen."""
    words: list[str] = []
    for i in range(rng.randint(1, 8)):
        words += [PAUSE] if i and rng.random() < 0.1 else []
        words.append(rng.choice(WORDS))
    return words


def _hard(rng: random.Random) -> list[str]:
    """Words that are easily taken for each other, side by side."""
    families = [TEENS[3:], TENS, ["oh", "four", "no", "go", "zero"], ["nine", "five", "one"], ["and", "ten", "eight"]]
    pool = [*rng.choice(families), *rng.choice(families), *JOINTS[:2]]
    return rng.choices(pool, k=rng.randint(2, 6))


Kind = Callable[[random.Random], list[str]]
TRAIN_MIX: list[tuple[Kind, float]] = [
    (_digit_string, 0.17),
    (_phone, 0.1),
    (_number, 0.14),
    (_pairs, 0.05),
    (_numbers, 0.08),
    (_control, 0.1),
    (_mixed, 0.1),
    (_salad, 0.18),
    (_hard, 0.08),
]
NUMBER_MIX: list[tuple[Kind, float]] = [(_digit_string, 0.3), (_phone, 0.2), (_number, 0.3), (_numbers, 0.2)]
MIXED_MIX: list[tuple[Kind, float]] = [(_control, 0.3), (_mixed, 0.7)]


def sentence(rng: random.Random, *, evaluation: bool = False, mix: list[tuple[Kind, float]] = TRAIN_MIX) -> str:
    """One sentence: words separated by spaces, `,` standing alone for a short pause."""
    kinds, weights = zip(*mix, strict=True)
    while True:
        words = rng.choices(kinds, weights)[0](rng)
        text = " ".join(words).replace(" " + PAUSE, PAUSE)
        if evaluation and (len(words) < 3 or not is_eval(text)):
            continue
        if not evaluation and is_eval(text):
            continue
        return text


__all__ = ["EVAL_SHARE", "MIXED_MIX", "NUMBER_MIX", "NUMBER_WORDS", "TRAIN_MIX", "is_eval", "number_words", "sentence"]
