"""Speech to cut diphones from, and where its phones are: `python -m training.donors --engine hibari --out DIR`.

Words of the lexicon are said, four at a time, until every pair of phones that occurs three times has been; pocketsphinx
aligns them (columns of 10 ms). Words that are held out are not said.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from training import vocabulary
from training.synth import neural
from training.synth.joined import SILENCE, phones
from training.synth.speech import ASSETS, SAMPLE_RATE, Speech

ARPABET = {
    "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "ɡ": "G", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S",
    "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH", "m": "M", "n": "N", "ŋ": "NG", "l": "L", "ɹ": "R", "j": "Y", "w": "W",
    "tʃ": "CH", "dʒ": "JH", "ɾ": "D", "iː": "IY", "i": "IY", "ɪ": "IH", "ɛ": "EH", "e": "EH", "æ": "AE", "a": "AE",
    "ɑ": "AA", "ɑː": "AA", "ɒ": "AA", "ɔ": "AO", "ɔː": "AO", "ʊ": "UH", "u": "UW", "uː": "UW", "ʌ": "AH", "ə": "AH",
    "ɜ": "ER", "ɜː": "ER", "ɜɹ": "ER", "eɪ": "EY", "aɪ": "AY", "ɔɪ": "OY", "oʊ": "OW", "əʊ": "OW", "o": "AO",
    "aʊ": "AW", "ɪə": "IH", "eə": "EH", "ʊə": "UH",
}  # fmt: skip
"""The phone of pocketsphinx's American model that is nearest."""


def pairs(said: list[str]) -> set[tuple[str, str]]:
    whole = [SILENCE, *said, SILENCE]
    return set(pairwise(whole))


def covering(spoken: dict[str, list[str]], first: list[str], rng: random.Random) -> list[str]:
    """Words in which every pair of phones occurs that three words have: those given, then few more."""
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for word, said in spoken.items():
        for pair in pairs(said):
            where[pair].append(word)
    chosen = list(first)
    have = {pair for word in chosen for pair in pairs(spoken[word])}
    for pair, words in sorted(where.items(), key=lambda found: len(found[1])):
        if pair in have or len(words) < 3:
            continue
        some = rng.sample(words, min(60, len(words)))
        best = max(some, key=lambda word: len(pairs(spoken[word]) - have) - 0.1 * len(spoken[word]))
        chosen.append(best)
        have |= pairs(spoken[best])
    rng.shuffle(chosen)
    return chosen


class Aligner:
    """pocketsphinx with its American model."""

    def __init__(self) -> None:
        from pocketsphinx import Config, Decoder

        self.decoder = Decoder(Config(samprate=16000, loglevel="FATAL", lm=None))
        self.names: set[str] = set()

    def __call__(self, speech: Speech, said: list[list[str]]) -> list[list[tuple[float, float]]]:
        """Start and end in seconds of each word's phones."""
        import soxr

        lead = 1600
        samples = np.pad(soxr.resample(speech.samples, SAMPLE_RATE, 16000), lead)
        pcm = (np.clip(samples / max(1e-3, np.abs(samples).max()), -1, 1) * 23000).astype("<i2").tobytes()
        names = [self._name([ARPABET[p] for p in word]) for word in said]
        self.decoder.set_align_text(" ".join(names))
        self._hear(pcm)
        self.decoder.set_alignment()
        self._hear(pcm)
        found = [
            [(p.start / 100 - lead / 16000, (p.start + p.duration) / 100 - lead / 16000) for p in word]
            for word in self.decoder.get_alignment()
            if word.name in self.names
        ]
        if [len(word) for word in found] != [len(word) for word in said]:
            raise ValueError("not aligned")
        return found

    def _name(self, sounds: list[str]) -> str:
        name = "x" + "_".join(sounds).lower()
        if name not in self.names:
            self.decoder.add_word(name, " ".join(sounds), True)
            self.names.add(name)
        return name

    def _hear(self, pcm: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(pcm, full_utt=True)
        self.decoder.end_utt()


def _speaker(engine: str, voice: str, british: bool, rng: random.Random) -> Callable[[str], Speech]:
    if engine == "kokoro":
        kokoro = neural.Kokoro.of(ASSETS)
        return lambda text: kokoro.say(text, voice, 0.95, rng, british=british)
    if engine == "piper":
        piper = neural.Piper.of(ASSETS)
        return lambda text: piper.say(text, 0.95, 0.5, rng, british=british)
    if engine == "rhvoice":
        from training.synth.rhvoice import RHVoice

        rhvoice = RHVoice()
        return lambda text: rhvoice.say(text, voice, pitch=1.0)
    hibari = neural.Hibari.installed()
    return lambda text: hibari.say(text, 0.95, rng, british=british, accent=None, pitch=1.0, lively=1.0)


def _fours(words: list[str]) -> Iterator[list[str]]:
    for i in range(0, len(words), 4):
        yield words[i : i + 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["kokoro", "hibari", "piper", "rhvoice"], required=True)
    parser.add_argument("--voice", default="", help="of Kokoro's or RHVoice's")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(1)
    british = args.engine == "kokoro" and args.voice.startswith("b")
    # One pronunciation a word, that what is aligned is what was said.
    for lexicon in (vocabulary.LEXICON_US, vocabulary.LEXICON_GB):
        lexicon.update({word: ways.split(" ")[0] for word, ways in lexicon.items()})
    lexicon = vocabulary.LEXICON_GB if british else vocabulary.LEXICON_US
    inside = list(vocabulary.WORDS)
    # RHVoice reads for itself, and rare words otherwise than the lexicon has them.
    pool = vocabulary.COMMON if args.engine == "rhvoice" else list(lexicon)
    said = [*inside, *(w for w in pool if w not in set(inside) and not vocabulary.is_held_out(w))]
    spoken = {word: [phone for phone, _ in phones(lexicon[word])] for word in said}
    speak = _speaker(args.engine, args.voice, british, rng)
    align = Aligner()
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / (args.voice or args.engine)
    offset, lost = 0, 0
    with open(stem.with_suffix(".pcm"), "wb") as pcm, open(stem.with_suffix(".align"), "w") as index:
        for words in _fours(covering(spoken, inside, rng)):
            speech = speak(", ".join(words))
            try:
                times = align(speech, [spoken[word] for word in words])
            except (ValueError, RuntimeError):
                lost += 1
                continue
            samples = speech.samples * (0.7 / max(1e-3, float(np.abs(speech.samples).max())))
            pcm.write(np.round(samples * 32767).astype("<i2").tobytes())
            rows = [{"phones": spoken[word], "times": found} for word, found in zip(words, times, strict=True)]
            index.write(json.dumps({"offset": offset, "words": rows}) + "\n")
            offset += len(samples)
    print(f"{stem.name}: {offset / SAMPLE_RATE / 60:.1f} minutes, {lost} times four words not aligned")


if __name__ == "__main__":
    main()
