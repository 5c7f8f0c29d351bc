"""Random sentences over the vocabulary, split by their own text so that no evaluation sentence is ever in training."""

import hashlib
import random
from collections.abc import Callable

from training.vocabulary import (
    AMBIGUOUS,
    COLOURS,
    CONTROL_WORDS,
    DAYS,
    DIGITS,
    FIRST_TIER,
    JOINTS,
    MONTHS,
    NUMBER_WORDS,
    OUTSIDE_DEV,
    OUTSIDE_EVALUATION,
    OUTSIDE_HOLDING,
    OUTSIDE_NEAR,
    OUTSIDE_RARE,
    OUTSIDE_TRAINING,
    ROOMS,
    SECOND_TIER,
    SPANS,
    SPELLING,
    TEENS,
    TENS,
    THINGS,
    WEEKDAYS,
    WORDS,
)

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
        words.append(rng.choice(FIRST_TIER))
    return words


def _hard(rng: random.Random) -> list[str]:
    """Words that are easily taken for each other, side by side."""
    families = [TEENS[3:], TENS, ["oh", "four", "no", "go", "zero"], ["nine", "five", "one"], ["and", "ten", "eight"]]
    pool = [*rng.choice(families), *rng.choice(families), *JOINTS[:2]]
    return rng.choices(pool, k=rng.randint(2, 6))


def _small(rng: random.Random) -> list[str]:
    return number_words(rng.randint(1, 60), rng)


def _clock(rng: random.Random) -> list[str]:
    hour = number_words(rng.randint(1, 12), rng)
    if rng.random() < 0.3:
        return hour
    minutes = rng.randint(1, 59)
    return hour + (["oh", DIGITS[minutes]] if minutes < 10 else number_words(minutes, rng))


def _timer(rng: random.Random) -> list[str]:
    span = [*_small(rng), rng.choice(["seconds", "minutes", "minutes", "hours", "minute", "second", "hour"])]
    heads = [
        ["set", "a", "timer", "for"], ["start", "a", "timer", "for"], ["set", "the", "timer", "for"], ["wait"],
        ["add"], ["remind", "me", "in"], ["pause", "for"], ["wake", "me", "up", "in"],
    ]  # fmt: skip
    return rng.choice(heads) + span


def _alarm(rng: random.Random) -> list[str]:
    heads = [
        ["wake", "me", "up", "at"],
        ["set", "the", "alarm", "for"],
        ["set", "the", "alarm", "at"],
        ["call", "me", "at"],
    ]
    return rng.choice(heads) + _clock(rng) + ([rng.choice(DAYS + WEEKDAYS)] if rng.random() < 0.5 else [])


def _switch(rng: random.Random) -> list[str]:
    thing = rng.choice(["light", "lights", "lamp", "fan", "heater", "radio", "music", "alarm"])
    place = [rng.choice(ROOMS)]
    where = rng.choice([["the", *place, thing], ["the", thing, "in", "the", *place], ["the", thing], ["all", "lights"]])
    verb, way = rng.choice(["turn", "turn", "switch"]), rng.choice(["on", "off", "on", "off", "up", "down"])
    return [verb, way, *where] if rng.random() < 0.7 else [verb, *where, way]


def _adjust(rng: random.Random) -> list[str]:
    return rng.choice(
        [
            lambda: ["set", "the", "temperature", "at", *_small(rng), "degrees"],
            lambda: ["set", "the", rng.choice(["volume", "light", "lights", "lamp"]), "at", *_small(rng), "percent"],
            lambda: ["set", "the", rng.choice(ROOMS), rng.choice(["light", "lights"]), rng.choice(COLOURS)],
            lambda: ["turn", "the", rng.choice(["volume", "music", "radio", "heater"]), rng.choice(["up", "down"])],
            lambda: [*rng.choice([["a"], []]), rng.choice(["warmer", "louder", "quieter", "more", "less"]), "please"],
            lambda: [rng.choice(["it", "office"]), "is", rng.choice(["hot", "cold", "warm", "dim", "bright", "red"])],
            lambda: [rng.choice(["open", "close", "lock"]), "the", rng.choice(ROOMS), rng.choice(["door", "window"])],
            lambda: [rng.choice(["open", "close", "lock"]), "the", rng.choice(["door", "window", "garage", "house"])],
        ]
    )()


def _ask(rng: random.Random) -> list[str]:
    when = rng.choice([[], [rng.choice(DAYS)], [rng.choice(WEEKDAYS)], ["next", rng.choice(SPANS + WEEKDAYS)]])
    return rng.choice(
        [
            lambda: ["what", "time", "is", "it", *rng.choice([[], ["now"]])],
            lambda: ["what", "is", "the", rng.choice(["weather", "temperature", "date", "time"]), *when],
            lambda: ["is", "it", rng.choice(["cold", "hot", "warm", "monday", "noon", "later"]), *when],
            lambda: ["what", "is", rng.choice(["on", "in"]), "my", "list", *when],
            lambda: ["call", rng.choice(["home", "mike", "oscar", "charlie", "victor", "romeo", "juliet"]), *when],
            lambda: ["play", *rng.choice([["the", "radio"], ["music"], ["the", "next", "song"], ["it", "again"]])],
            lambda: [rng.choice(["pause", "resume", "skip", "repeat", "stop"]), "the", rng.choice(["song", "music"])],
            lambda: [rng.choice(["add", "remove"]), rng.choice(["coffee", "water", "lunch", "dinner"]), "please"],
            lambda: ["good", rng.choice(["morning", "evening", "night", "afternoon"])],
            lambda: ["remind", "me", *(when or ["later"]), "at", *_clock(rng)],
            lambda: ["message", "charlie", *rng.choice([["sorry"], ["welcome", "home"], ["yes", "okay"]])],
        ]
    )()


def _day(rng: random.Random) -> list[str]:
    date = [rng.choice(MONTHS), *number_words(rng.randint(1, 31), rng)]
    before = [rng.choice(WEEKDAYS)] if rng.random() < 0.5 else []
    after = ["at", *_clock(rng)] if rng.random() < 0.3 else []
    return [*before, *date, *after]


def _spell(rng: random.Random) -> list[str]:
    words = rng.choices(SPELLING, k=rng.randint(2, 6))
    return words + (_digits(rng, rng.randint(1, 3)) if rng.random() < 0.4 else [])


def _everyday(rng: random.Random) -> list[str]:
    kind = rng.choice([_timer, _alarm, _switch, _switch, _adjust, _adjust, _ask, _ask, _day, _spell])
    words = kind(rng)
    return ["please", *words] if rng.random() < 0.07 else words


_SAID_AT_RANDOM = [w for w in SECOND_TIER if w not in AMBIGUOUS]
_LISTS = [COLOURS, WEEKDAYS, MONTHS, SPELLING, THINGS, DAYS]


def _everyday_salad(rng: random.Random) -> list[str]:
    """Words of both tiers with no grammar, the second's more often."""
    pool = rng.choice([_SAID_AT_RANDOM, _SAID_AT_RANDOM, _SAID_AT_RANDOM, WORDS, rng.choice(_LISTS)])
    words: list[str] = []
    for i in range(rng.randint(1, 8)):
        words += [PAUSE] if i and rng.random() < 0.1 else []
        words.append(rng.choice([w for w in pool if w not in AMBIGUOUS]))
    return words


def _strange_word(rng: random.Random) -> str:
    """A word that nothing may come of."""
    lists = [words for words in (OUTSIDE_TRAINING, OUTSIDE_NEAR, OUTSIDE_HOLDING, OUTSIDE_RARE) if words]
    return rng.choice(rng.choice(lists))


def _outside(rng: random.Random) -> list[str]:
    return [_strange_word(rng) for _ in range(rng.randint(1, 9))]


def _strewn(rng: random.Random) -> list[str]:
    """A sentence with strange words before, in and behind it."""
    words = [w for w in rng.choice([_everyday, _everyday_salad, _numbers, _control])(rng) if w != PAUSE]
    for _ in range(rng.randint(1, 4)):
        words.insert(rng.randint(0, len(words)), _strange_word(rng))
    return words


def _outside_held_out(rng: random.Random) -> list[str]:
    return rng.choices(OUTSIDE_EVALUATION, k=rng.randint(3, 9))


def _outside_dev(rng: random.Random) -> list[str]:
    return rng.choices(OUTSIDE_DEV, k=rng.randint(3, 9))


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
SECOND_MIX: list[tuple[Kind, float]] = [
    (_everyday, 0.24),
    (_everyday_salad, 0.48),
    (_spell, 0.04),
    (_outside, 0.06),
    (_strewn, 0.1),
    (_number, 0.03),
    (_digit_string, 0.03),
    (_hard, 0.02),
]
"""Of the second tier's shards, which are added to those of the first."""
STRANGE_MIX: list[tuple[Kind, float]] = [(_outside, 0.6), (_strewn, 0.4)]
"""Of more shards with words outside the vocabulary, so that they are not taken for the nearest word inside."""
EVERYDAY_MIX: list[tuple[Kind, float]] = [(_everyday, 1.0)]
OUTSIDE_MIX: list[tuple[Kind, float]] = [(_outside_held_out, 1.0)]
OUTSIDE_DEV_MIX: list[tuple[Kind, float]] = [(_outside_dev, 1.0)]
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


__all__ = [
    "EVAL_SHARE",
    "EVERYDAY_MIX",
    "MIXED_MIX",
    "NUMBER_MIX",
    "NUMBER_WORDS",
    "OUTSIDE_DEV_MIX",
    "OUTSIDE_MIX",
    "SECOND_MIX",
    "STRANGE_MIX",
    "TRAIN_MIX",
    "is_eval",
    "number_words",
    "sentence",
]
