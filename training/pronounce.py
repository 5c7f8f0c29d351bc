"""Writes `lexicon.tsv`, the second tier's pronunciations and other words': `python -m training.pronounce TEXT...`.

The words outside the vocabulary are those of the given texts, but for what sounds like a word of the vocabulary.
"""

import argparse
import re
import subprocess
from pathlib import Path

LEXICON = Path(__file__).parent / "lexicon.tsv"
# espeak's signs to the plain ones of `vocabulary.py`, which Kokoro and Piper both know.
_BOTH = [("ɜːɹ", "ɜɹ"), ("l̩", "əl"), ("n̩", "ən"), ("ɐ", "ə"), ("ᵻ", "ɪ"), ("ʔ", "t"), ("r", "ɹ"), ("\u0303", "")]
_AMERICAN = [("ɜː", "ɜɹ"), ("ɚ", "əɹ"), ("oː", "ɔ"), ("ː", "")]
_BRITISH = [("iə", "ɪə"), ("eə", "ɛə")]


def espeak(words: list[str], voice: str) -> list[str]:
    """The IPA of each word said alone."""
    said = subprocess.run(
        ["espeak-ng", "-q", "--ipa", "-v", voice], input="\n".join(words), capture_output=True, text=True, check=True
    )
    return [line.strip() for line in said.stdout.splitlines()]


def plain(ipa: str, british: bool) -> str:
    """Without what only espeak writes."""
    for old, new in [*_BOTH, *(_BRITISH if british else _AMERICAN)]:
        ipa = ipa.replace(old, new)
    return ipa


def stressless(ipa: str) -> str:
    """For comparing how words sound."""
    return re.sub("[ˈˌː]", "", ipa)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", type=Path)
    args = parser.parse_args()
    if not LEXICON.exists():
        LEXICON.write_text("")
    from training import vocabulary

    texts = " ".join(path.read_text() for path in args.texts).lower()
    inside = set(vocabulary.WORDS)
    # A word in camel case or with digits beside it is no word; one that occurs in prose stands between spaces.
    outside = sorted(set(re.findall(r"(?<=\s)[a-z]{2,14}(?=[\s.,;:])", texts)) - inside)
    second = [w for w in vocabulary.SECOND_TIER if w not in vocabulary.FIRST_TIER]
    words = [*second, *outside]
    american, british = espeak(words, "en-us"), espeak(words, "en-gb")
    assert len(american) == len(british) == len(words), "espeak-ng has read a word as several"
    pairs = {w: (plain(a, False), plain(b, True)) for w, a, b in zip(words, american, british, strict=True)}
    sounds = {stressless(p) for w in inside for p in pairs.get(w, (vocabulary.LEXICON_US.get(w, ""), ""))[0].split(" ")}
    sounds |= {stressless(pairs[w][1]) for w in second}
    known = set("abdfhijklmnopstuvwxzæðŋɑɒɔəɛɜɡɪɹɾʃʊʌʒθˈˌːeʧʤ")
    lines = []
    for word, (us, gb) in pairs.items():
        if not us or set(us + gb) - known:
            assert word in outside, f"{word} is {us} or {gb}"
            continue
        if word in outside and (stressless(us) in sounds or stressless(gb) in sounds or len(stressless(us)) < 2):
            continue
        lines.append(f"{word}\t{us}\t{gb}\n")
    LEXICON.write_text("".join(lines))
    print(f"{len(second)} words of the second tier, {len(lines) - len(second)} outside")


if __name__ == "__main__":
    main()
