"""Both tiers' words, words outside them, and how they are pronounced; knows nothing of audio or of tokens."""

import hashlib
import os
from pathlib import Path

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = "hundred thousand".split()
JOINTS = "and point minus oh".split()
NUMBER_WORDS = [*DIGITS, *TEENS, *TENS, *SCALES, *JOINTS]
CONTROL_WORDS = "yes no stop go start cancel help hello goodbye please thanks".split()
FIRST_TIER = [*NUMBER_WORDS, *CONTROL_WORDS]

COLOURS = "red orange yellow green blue purple pink brown black white gray gold silver".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey yankee zulu"
).split()
FUNCTION_WORDS = "the a in at for on off up down is it my me what all".split()
ROOMS = "kitchen bedroom bathroom garage garden office house upstairs".split()
DEVICES = "light lights lamp fan heater door window music radio alarm timer".split()
UNITS = "seconds second minutes minute hours hour".split()
DAYS = "today tomorrow yesterday tonight morning afternoon evening night noon midnight".split()
SPANS = "day week month year".split()
COMMANDS = "turn switch set open close lock play pause resume skip repeat call wake remind message add remove".split()
LEVELS = "bright dim warm warmer cold hot louder quieter more less next last again now later".split()
THINGS = "time date weather volume temperature degrees percent song list coffee water dinner lunch home".split()
MANNERS = "good okay sorry welcome right left wait".split()
SECOND_TIER = sorted(
    {
        *COLOURS, *WEEKDAYS, *MONTHS, *SPELLING, *FUNCTION_WORDS, *ROOMS, *DEVICES, *UNITS, *DAYS, *SPANS, *COMMANDS,
        *LEVELS, *THINGS, *MANNERS,
    }
)  # fmt: skip
WORDS = [*FIRST_TIER, *SECOND_TIER]
AMBIGUOUS = {"for", "a"}
"""Words that are told from others by what stands beside them only (`four`), so that they are never said at random."""

# Pronunciations in plain IPA (espeak's conventions, no length marks in American ones). Several ways to say a word are
# separated by a space. The engines that take phonemes (Kokoro, Piper) are given one of them at random.
LEXICON_US: dict[str, str] = {
    "zero": "zˈɪɹoʊ zˈiɹoʊ",
    "one": "wˈʌn",
    "two": "tˈu",
    "three": "θɹˈi",
    "four": "fˈɔɹ",
    "five": "fˈaɪv",
    "six": "sˈɪks",
    "seven": "sˈɛvən",
    "eight": "ˈeɪt",
    "nine": "nˈaɪn",
    "ten": "tˈɛn",
    "eleven": "ɪlˈɛvən əlˈɛvən",
    "twelve": "twˈɛlv",
    "thirteen": "θɜɹtˈin θˈɜɹtin",
    "fourteen": "fɔɹtˈin fˈɔɹtin",
    "fifteen": "fɪftˈin fˈɪftin",
    "sixteen": "sɪkstˈin sˈɪkstin",
    "seventeen": "sˌɛvəntˈin sˈɛvəntin",
    "eighteen": "eɪtˈin ˈeɪtin",
    "nineteen": "naɪntˈin nˈaɪntin",
    "twenty": "twˈɛnti twˈɛni",
    "thirty": "θˈɜɹɾi θˈɜɹti",
    "forty": "fˈɔɹɾi fˈɔɹti",
    "fifty": "fˈɪfti",
    "sixty": "sˈɪksti",
    "seventy": "sˈɛvənti sˈɛvəni",
    "eighty": "ˈeɪɾi ˈeɪti",
    "ninety": "nˈaɪnti nˈaɪni",
    "hundred": "hˈʌndɹəd hˈʌndɹɪd",
    "thousand": "θˈaʊzənd",
    "and": "ænd ənd ənd",
    "point": "pˈɔɪnt",
    "minus": "mˈaɪnəs",
    "oh": "ˈoʊ",
    "yes": "jˈɛs",
    "no": "nˈoʊ",
    "stop": "stˈɑp",
    "go": "ɡˈoʊ",
    "start": "stˈɑɹt",
    "cancel": "kˈænsəl",
    "help": "hˈɛlp",
    "hello": "həlˈoʊ hɛlˈoʊ",
    "goodbye": "ɡʊdbˈaɪ ɡˈʊdbaɪ",
    "please": "plˈiz",
    "thanks": "θˈæŋks",
}

LEXICON_GB: dict[str, str] = LEXICON_US | {
    "zero": "zˈɪəɹəʊ",
    "two": "tˈuː",
    "three": "θɹˈiː",
    "four": "fˈɔː",
    "thirteen": "θɜːtˈiːn θˈɜːtiːn",
    "fourteen": "fɔːtˈiːn fˈɔːtiːn",
    "fifteen": "fɪftˈiːn fˈɪftiːn",
    "sixteen": "sɪkstˈiːn sˈɪkstiːn",
    "seventeen": "sˌɛvəntˈiːn sˈɛvəntiːn",
    "eighteen": "eɪtˈiːn ˈeɪtiːn",
    "nineteen": "naɪntˈiːn nˈaɪntiːn",
    "twenty": "twˈɛnti",
    "thirty": "θˈɜːti",
    "forty": "fˈɔːti",
    "seventy": "sˈɛvənti",
    "eighty": "ˈeɪti",
    "ninety": "nˈaɪnti",
    "hundred": "hˈʌndɹɪd hˈʌndɹəd",
    "oh": "ˈəʊ",
    "no": "nˈəʊ",
    "stop": "stˈɒp",
    "go": "ɡˈəʊ",
    "start": "stˈɑːt",
    "hello": "həlˈəʊ hɛlˈəʊ",
    "please": "plˈiːz",
}


def _read(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Pronunciations as `training.pronounce` wrote them."""
    american: dict[str, str] = {}
    british: dict[str, str] = {}
    for line in (Path(__file__).parent / name).read_text().splitlines():
        word, american[word], british[word] = line.split("\t")
    return american, british


_AMERICAN, _BRITISH = _read("lexicon.tsv")  # the second tier and words outside
COMMON = list(_AMERICAN)
"""Words whose pronunciations every engine reads alike."""
_MORE_AMERICAN, _MORE_BRITISH = _read("more_words.tsv")  # words outside, for training and choosing
LEXICON_US = _MORE_AMERICAN | _AMERICAN | LEXICON_US
LEXICON_GB = _MORE_BRITISH | _BRITISH | LEXICON_GB


def is_held_out(word: str) -> bool:
    """Whether a word outside the vocabulary is never said in training: a fifth of them, by hash."""
    return hashlib.sha256(word.encode()).digest()[0] < 51


OUTSIDE = sorted(set(LEXICON_US) - set(WORDS))
"""Words that must come out as nothing, the common ones."""
OUTSIDE_TRAINING = [word for word in OUTSIDE if not is_held_out(word)]
OUTSIDE_EVALUATION = [word for word in OUTSIDE if is_held_out(word) and word in _AMERICAN]
OUTSIDE_DEV = [word for word in OUTSIDE if is_held_out(word) and word not in _AMERICAN]
"""For choosing what is shipped; what is reported was measured with other words."""


def _read_strange() -> tuple[list[str], list[str], list[str]]:
    """All of them, the near ones, and those with a known word in them, if `training.strange` has written them.

    Their pronunciations join the lexicons.
    """
    path = Path(os.environ.get("TRAINING_STRANGE", Path(__file__).parent / "work" / "strange.tsv"))
    rare: list[str] = []
    near: list[str] = []
    holding: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        word, american, british, kind = line.split("\t")
        if is_held_out(word):
            continue
        LEXICON_US.setdefault(word, american)
        LEXICON_GB.setdefault(word, british)
        rare.append(word)
        if kind == "1":
            near.append(word)
        elif kind == "2":
            holding.append(word)
    return rare, near, holding


OUTSIDE_RARE, OUTSIDE_NEAR, OUTSIDE_HOLDING = _read_strange()
"""More words for training alone: any, those one sound away from a known word, and those in which one can be heard."""
