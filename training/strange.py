"""Writes the words that nothing may come of, all a lexicon has: `python -m training.strange ASSETS OUT`.

ASSETS holds misaki's lexicons (`lexicon_us_gold.json.gz` and `lexicon_gb_gold.json.gz`), as the package hibari-tts
carries them. A line is a word, its American and its British pronunciation, and 1 if it is one sound away from a word
of the vocabulary, 2 if one can be heard in it (`no` in `piano`), else 0. What sounds like one is left out.
"""

import argparse
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from training import vocabulary
from training.accents import SOUNDS
from training.pronounce import stressless
from training.synth.neural import letters
from training.targets import PHONES

_LONG = {"O": "oʊ", "Q": "əʊ", "A": "eɪ", "I": "aɪ", "Y": "ɔɪ", "W": "aʊ", "ᵊ": "ə", "ᵻ": "ɪ", "T": "ɾ"}


def plain(phonemes: str) -> str:
    """Misaki's signs to the plain ones of `vocabulary.py`."""
    return "".join(_LONG.get(p, p) for p in phonemes)


def one_away(sounds: set[str]) -> set[str]:
    """Everything that becomes one of the sounds when one phone is put in, taken out or changed, with `?` for any."""
    near: set[str] = set()
    for s in sounds:
        near |= {s[:i] + s[i + 1 :] for i in range(len(s))}
        near |= {s[:i] + "?" + s[i + 1 :] for i in range(len(s))}
        near |= {s[:i] + "?" + s[i:] for i in range(len(s) + 1)}
    return near


def is_near(sound: str, near: set[str]) -> bool:
    return sound in near or any(sound[:i] + "?" + sound[i + 1 :] in near for i in range(len(sound)))


def parts(sounds: set[str]) -> re.Pattern[str]:
    """Finds one of the sounds in the `letters` of a word: anywhere if of three phones or more, at an end if of two."""
    known = sorted(set(map(letters, sounds)))
    anywhere = [sound for sound in known if len(sound) > 2]
    return re.compile("|".join(anywhere + [f"^{sound}|{sound}$" for sound in known if len(sound) == 2]))


def lexicon(path: Path) -> dict[str, str]:
    with gzip.open(path, "rt") as file:
        read: dict[str, Any] = json.load(file)
    # Where a word's sound depends on its part of speech, the usual one.
    return {word: plain(said["DEFAULT"] if isinstance(said, dict) else said) for word, said in read.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    american, british = (lexicon(args.assets / f"lexicon_{place}_gold.json.gz") for place in ("us", "gb"))
    inside = set(vocabulary.WORDS)
    sounds = set(SOUNDS)
    near, inner = one_away(sounds), parts(sounds)
    known = {*PHONES, *"ˈˌː"} | {p for way in vocabulary.LEXICON_GB.values() for p in way}
    lines = []
    for word in sorted(american.keys() & british.keys() - inside):
        us, gb = american[word], british[word]
        if not re.fullmatch("[a-z]{2,14}", word) or set(us + gb) - known:
            continue
        said = {stressless(us), stressless(gb)}
        if said & sounds or min(map(len, said)) < 2:
            continue
        kind = 1 if any(is_near(s, near) for s in said) else 2 if any(inner.search(letters(s)) for s in said) else 0
        lines.append(f"{word}\t{us}\t{gb}\t{kind}\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(lines))
    kinds = Counter(line[-2] for line in lines)
    print(f"{len(lines)} words, {kinds['1']} one sound away from a known one, {kinds['2']} with a known one in them")


if __name__ == "__main__":
    main()
