"""Diphones: pieces from the middle of one phone to the middle of the next, cut from aligned speech and joined anew.

A donor is a file of speech and where its phones are (`training.donors` writes both). Between its pieces nothing is
smoothed, as in the diphone engines of old; how long a phone is comes from rules with some chance in them or from
espeak-ng, and its pitch from rules.
"""

import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from training import vocoder
from training.synth.speech import SAMPLE_RATE, Speech, SpokenWord, merge_words
from training.voices import is_british

SIZE, HOP = 768, 120
"""Samples of a column, and from one to the next: 5 ms."""
COLUMNS = SAMPLE_RATE / HOP
SILENCE = "#"
LONG = {"iː", "uː", "ɑː", "ɔː", "ɜː", "eɪ", "aɪ", "ɔɪ", "oʊ", "əʊ", "aʊ", "ɜɹ", "ɪə", "eə", "ʊə"}
DOUBLE = sorted(LONG | {"tʃ", "dʒ"})
SHORT = set("iuaæɛeɪɑɒɔʊʌo")
VOWELS = LONG | SHORT | {"ə", "ɜ"}
"""With those that are never stressed, which are not among the short ones."""
# Seconds a phone takes at an easy pace.
SECONDS = (
    dict.fromkeys(LONG, 0.14)
    | dict.fromkeys(SHORT, 0.1)
    | {"ə": 0.055, "ɜ": 0.1, "tʃ": 0.12, "dʒ": 0.1, "ɾ": 0.035, "h": 0.06, "ð": 0.05, "v": 0.06, "l": 0.06, "ɹ": 0.06}
    | dict.fromkeys("ptkbdɡ", 0.08)
    | dict.fromkeys("sʃfθ", 0.1)
    | dict.fromkeys("zʒ", 0.075)
    | dict.fromkeys("mnŋ", 0.065)
    | dict.fromkeys("wj", 0.06)
)


_ALIKE = {"T": "θ", "D": "ð", "S": "ʃ", "Z": "ʒ", "N": "ŋ", "g": "ɡ", "dZ": "dʒ", "r": "ɹ", "r-": "ɹ", "t2": "t"} | {
    "I2": "ɪ", "I#": "ɪ", "E": "ɛ", "a#": "ə", "V": "ʌ", "U": "ʊ", "@": "ə", "@2": "ə", "@-": "ə", "@L": "əl",
    "I": "ɪ", "eI": "eɪ", "aI": "aɪ", "OI": "ɔɪ", "aU": "aʊ", "oU": "oʊ", "tS": "tʃ", "n-": "n",
}  # fmt: skip
ESPEAK_US = _ALIKE | {
    "t#": "ɾ", "a": "æ", "aa": "æ", "A:": "ɑ", "A@": "ɑɹ", "0": "ɑ", "O:": "ɔ", "O2": "ɔ", "O@": "ɔɹ", "o@": "ɔɹ",
    "i:": "i", "u:": "u", "3": "əɹ", "3:": "ɜɹ", "e@": "ɛɹ", "i@": "ɪɹ", "i@3": "ɪɹ", "U@": "ʊɹ", "aI@": "aɪə",
    "aI3": "aɪəɹ",
}  # fmt: skip
ESPEAK_GB = _ALIKE | {
    "t#": "t", "aa": "a", "A:": "ɑː", "A@": "ɑː", "0": "ɒ", "O:": "ɔː", "O2": "ɔː", "O@": "ɔː", "o@": "ɔː", "i:": "iː",
    "u:": "uː", "oU": "əʊ", "3": "ə", "3:": "ɜː", "e@": "ɛə", "i@": "ɪə", "i@3": "ɪə", "U@": "ʊə", "aI@": "aɪə",
    "aI3": "aɪə",
}  # fmt: skip
"""espeak-ng's phonemes that are written otherwise there, as the donors' phones."""


def unevenness(rng: random.Random) -> tuple[float, float]:
    """Lengths of vowels and of consonants, in times of what they would be; engines differ in that more than people."""
    if rng.random() < 0.35:
        return 1.0, 1.0
    return 2 ** rng.uniform(-1.3, 0.3), 2 ** rng.uniform(-0.3, 0.8)


def phones(way: str) -> list[tuple[str, bool]]:
    """A pronunciation's phones, and whether each follows a stress mark."""
    found: list[tuple[str, bool]] = []
    at, stressed = 0, False
    while at < len(way):
        if way[at] in "ˈˌ":
            stressed = True
            at += 1
            continue
        phone = next((p for p in DOUBLE if way.startswith(p, at)), way[at])
        at += len(phone)
        if phone != "ː":
            found.append((phone, stressed))
            stressed = stressed and phone not in LONG | SHORT
    return found


def uneven(
    timeline: list[tuple[str, float]], words: list[SpokenWord], vowels: float, others: float
) -> tuple[list[tuple[str, float]], list[SpokenWord]]:
    """The same phonemes, vowels and consonants so many times as long, and the words' new times; pauses stay."""
    before = [start for _, start in timeline] + [timeline[-1][1] + 0.1]
    after = [before[0]]
    for (name, start), end in zip(timeline, before[1:], strict=True):
        said = phones(ESPEAK_US.get(name, name)) if name[0] not in "_;?" else []
        factor = 1.0 if not said else vowels if said[0][0] in VOWELS else others
        after.append(after[-1] + factor * (end - start))
    moved = lambda t: float(np.interp(t, before, after))  # noqa: E731
    return (
        [(name, at) for (name, _), at in zip(timeline, after, strict=False)],
        [SpokenWord(w.text, moved(w.start), moved(w.end)) for w in words],
    )


class Donor:
    """The columns of a donor's speech, and every half phone in them by its neighbour."""

    def __init__(self, stem: Path) -> None:
        samples = torch.from_numpy(np.fromfile(stem.with_suffix(".pcm"), "<i2").astype(np.float32) / 32768)
        window = torch.hann_window(SIZE)
        blocks = [samples[i : i + 60 * SAMPLE_RATE] for i in range(0, len(samples), 60 * SAMPLE_RATE)]
        parts = []
        for block in blocks:
            columns = torch.stft(block, SIZE, HOP, window=window, return_complex=True, pad_mode="constant")
            power = columns.abs().square().t()[None]
            cepstra = vocoder.cepstrum(vocoder.log_magnitude(power), SIZE)
            voiced = vocoder.voicing(power, vocoder.envelope(cepstra, SIZE), window)
            keep = len(block) // HOP
            parts.append((cepstra[0, :keep], voiced[0, :keep], power.mean(-1)[0, :keep]))
        self.cepstra, self.voiced, self.power = (torch.cat(part) for part in zip(*parts, strict=True))
        self.firsts: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self.lasts: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for line in stem.with_suffix(".align").read_text().splitlines():
            row = json.loads(line)
            start = row["offset"] / SAMPLE_RATE
            for word in row["words"]:
                said = [SILENCE, *word["phones"], SILENCE]
                for i, (a, b) in enumerate(word["times"], 1):
                    middle = start + (a + b) / 2
                    # The first half of a phone by what comes before it, the second by what comes after.
                    self.firsts[said[i - 1], said[i]].append((start + a, middle))
                    self.lasts[said[i], said[i + 1]].append((middle, start + b))
        for halves, place in ((self.firsts, 1), (self.lasts, 0)):
            for pair, found in list(halves.items()):
                halves["", pair[place]].extend(found)

    def half(self, pair: tuple[str, str], first: bool, rng: random.Random) -> tuple[float, float] | None:
        """Where a half phone is, in seconds, beside that neighbour or else beside any."""
        halves = self.firsts if first else self.lasts
        found = halves.get(pair) or halves.get(("", pair[1] if first else pair[0]))
        return rng.choice(found) if found else None


class Joined:
    """All donors of a folder."""

    def __init__(self, folder: Path) -> None:
        self.donors = {path.stem: Donor(path.with_suffix("")) for path in sorted(folder.glob("*.align"))}
        self.window = torch.hann_window(SIZE)

    def say(
        self,
        sentence: str,
        voice: str,
        ways: list[str],
        pace: float,
        pitch: float,
        rng: random.Random,
        lengths: tuple[float, float] = (1, 1),
    ) -> Speech:
        """``ways``: each word's pronunciation; ``pace`` 1 is easy, 0.7 quick; ``pitch`` in Hz; ``lengths`` of vowels
        and consonants, in times of what they would be.
        """
        words = sentence.split()
        said: list[tuple[str, bool, int]] = [(SILENCE, False, -1)]
        for i, (word, way) in enumerate(zip(words, ways, strict=True)):
            said += [(p, stressed, i) for p, stressed in phones(way)]
            if word.endswith(",") or i + 1 == len(words):
                said.append((SILENCE, False, -1))
        pieces: list[tuple[str, int]] = []
        spans: dict[int, tuple[float, float]] = {}
        accents: list[float] = []
        columns = 0
        for k, (phone, stressed, word) in enumerate(said):
            if word < 0:
                pieces.append((SILENCE, int(rng.uniform(0.1, 0.35) * COLUMNS)))
                columns += pieces[-1][1]
                continue
            last = said[k + 1][0] == SILENCE
            seconds = SECONDS.get(phone, 0.08) * pace * rng.uniform(0.85, 1.2) * (1.15 if stressed else 1.0)
            seconds *= lengths[phone not in VOWELS]
            if last or (said[k + 2][0] == SILENCE and phone in LONG | SHORT):
                seconds *= 1.35
            if stressed and phone in LONG | SHORT:
                accents.append(columns / COLUMNS)
            begin = columns / COLUMNS
            pieces.append((phone, max(4, round(seconds * COLUMNS))))
            columns += pieces[-1][1]
            spans[word] = (spans[word][0] if word in spans else begin, columns / COLUMNS)
        samples = self._join(voice, pieces, accents, pitch, rng)
        return Speech(samples, merge_words(sentence, [spans[i] for i in range(len(words))]))

    def say_timed(
        self,
        timeline: list[tuple[str, float]],
        words: list[SpokenWord],
        voice: str,
        pitch: float,
        rng: random.Random,
        lengths: tuple[float, float] = (1, 1),
    ) -> Speech:
        """Phonemes when espeak-ng says them (`Espeak.timeline`), but for their ``lengths``, by this donor."""
        timeline, words = uneven(timeline, words, *lengths)
        names = ESPEAK_GB if is_british(voice) else ESPEAK_US
        pieces: list[tuple[str, int]] = []
        accents: list[float] = []
        columns = 0
        ends = [start for _, start in timeline[1:]] + [timeline[-1][1] + 0.1]
        for (name, start), end in zip(timeline, ends, strict=True):
            count = round(end * COLUMNS) - columns
            columns += count
            said = [p for p, _ in phones(names.get(name, name))] if name[0] not in "_;?" else []
            if name[0] == "_" or not pieces:
                pieces.append((SILENCE, round(start * COLUMNS) if said else count))
                count -= pieces[-1][1]
            if not said:  # a glide or a stop of the throat, which no donor has
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + count)
            elif said[0] in LONG | SHORT and rng.random() < 0.35:
                accents.append(start)
            for i, phone in enumerate(said):
                pieces.append((phone, count * (i + 1) // len(said) - count * i // len(said)))
        return Speech(self._join(voice, pieces, accents, pitch, rng), words)

    def _join(
        self, voice: str, pieces: list[tuple[str, int]], accents: list[float], pitch: float, rng: random.Random
    ) -> np.ndarray:
        """Phones with their columns -> samples; ``accents`` in s, where the pitch rises a little."""
        donor = self.donors[voice]
        places: list[float] = []
        loud: list[float] = []
        lively = rng.choice([0.0, 0.15, 0.3]) * rng.random()
        for k, (phone, count) in enumerate(pieces):
            if phone == SILENCE:
                places += [0.0] * count
                loud += [0.0] * count
                continue
            before = pieces[k - 1][0] if k else SILENCE
            after = pieces[k + 1][0] if k + 1 < len(pieces) else SILENCE
            halves = [donor.half((before, phone), True, rng), donor.half((phone, after), False, rng)]
            for half, columns in zip(halves, (count // 2, count - count // 2), strict=True):
                if half is None:
                    raise ValueError(f"{voice} never says {phone}")
                places += list(np.linspace(half[0], half[1], columns, endpoint=False) * COLUMNS)
                loud += [1.0] * columns
        at = torch.tensor(places).round().long().clamp(max=len(donor.power) - 1)
        level = torch.tensor(loud)
        length = len(places) * HOP
        t = torch.arange(length) / SAMPLE_RATE
        contour = torch.full((length,), float(np.log2(pitch))) - rng.uniform(0, 0.25) * t / t[-1]
        for when in accents:
            contour += rng.uniform(0.5, 1) * lively * torch.exp(-(((t - when - 0.05) / 0.12) ** 2))
        columns = length // HOP + 1
        at, level = torch.cat([at, at[-1:]])[:columns], torch.cat([level, level[-1:]])[:columns]
        samples = vocoder.speak(
            donor.cepstra[at][None],
            donor.voiced[at][None],
            (donor.power[at] * level)[None],
            (2**contour)[None],
            torch.tensor([[rng.uniform(2500, 8000)]]),
            self.window,
            HOP,
        )[0]
        return samples.numpy().astype(np.float32)
