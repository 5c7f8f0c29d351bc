"""Diphones are cut where the phones are said to be, and joined as long and as high as is asked for."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from training.donors import covering, pairs
from training.synth.joined import Donor, Joined, phones, uneven, unevenness
from training.synth.speech import SAMPLE_RATE, SpokenWord

# One "word" of three phones, each a buzz with a resonance of its own, Hz.
RESONANCES = {"m": 400, "ɑ": 1200, "s": 3000}
EACH = 0.3


def resonant(samples: np.ndarray) -> float:
    """The frequency around which the power lies."""
    power = np.square(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))))
    return float((power * np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)).sum() / power.sum())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    t = np.arange(int(0.05 * SAMPLE_RATE)) / SAMPLE_RATE
    pulses = np.zeros(int(EACH * SAMPLE_RATE))
    pulses[:: SAMPLE_RATE // 120] = 1
    rings = [np.exp(-t * 300) * np.sin(2 * math.pi * f * t) for f in RESONANCES.values()]
    samples = np.concatenate([np.convolve(pulses, ring)[: len(pulses)] for ring in rings])
    (0.5 * samples / np.abs(samples).max() * 32767).astype("<i2").tofile(tmp_path / "buzz.pcm")
    times = [[i * EACH, (i + 1) * EACH] for i in range(3)]
    word = {"phones": list(RESONANCES), "times": times}
    (tmp_path / "buzz.align").write_text(json.dumps({"offset": 0, "words": [word]}) + "\n")
    return tmp_path


def test_a_pronunciation_comes_apart_into_phones_and_stress():
    assert phones("tʃˈɑːtəɹˌaɪz") == [
        ("tʃ", False), ("ɑː", True), ("t", False), ("ə", False), ("ɹ", False), ("aɪ", True), ("z", False)
    ]  # fmt: skip
    assert phones("ˈstɹiːt")[:4] == [("s", True), ("t", True), ("ɹ", True), ("iː", True)]


def test_halves_are_found_beside_their_neighbour_or_else_beside_any(folder: Path):
    donor = Donor(folder / "buzz")
    rng = random.Random(0)
    assert donor.half(("m", "ɑ"), True, rng) == pytest.approx((0.3, 0.45)), "the first half of what comes after"
    assert donor.half(("m", "ɑ"), False, rng) == pytest.approx((0.15, 0.3)), "the second half of what comes before"
    assert donor.half(("s", "ɑ"), True, rng) == pytest.approx((0.3, 0.45)), "never said, so that of another neighbour"
    assert donor.half(("s", "k"), True, rng) is None


def test_words_are_joined_where_they_are_said_to_be(folder: Path):
    said = Joined(folder).say("alpha, bravo", "buzz", ["sɑm", "mɑs"], 1.5, 150.0, random.Random(0))
    assert [w.text for w in said.words] == ["alpha", "bravo"]
    first, second = said.words
    assert 0.05 < first.start < first.end < second.start < second.end < len(said.samples) / SAMPLE_RATE
    assert second.start - first.end > 0.09, "the comma is a pause"
    quiet = said.samples[int((first.end + 0.04) * SAMPLE_RATE) : int((second.start - 0.04) * SAMPLE_RATE)]
    assert np.abs(quiet).max() < 0.01 * np.abs(said.samples).max()
    for word, ends in ((first, ("s", "m")), (second, ("m", "s"))):
        for phone, middle in zip(ends, (word.start + 0.06, word.end - 0.06), strict=True):
            piece = said.samples[int((middle - 0.02) * SAMPLE_RATE) : int((middle + 0.02) * SAMPLE_RATE)]
            assert resonant(piece) == pytest.approx(RESONANCES[phone], rel=0.35), (word.text, phone)


def test_espeaks_phonemes_sound_when_it_says_them(folder: Path):
    timeline = [("m", 0.1), ("A:", 0.35), (";", 0.5), ("s", 0.6), ("_:", 0.85), ("_", 0.86)]
    words = [SpokenWord("alpha", 0.1, 0.85)]
    said = Joined(folder).say_timed(timeline, words, "buzz", 150.0, random.Random(0))
    assert said.words == words
    assert len(said.samples) / SAMPLE_RATE == pytest.approx(0.96, abs=0.01)
    loudest = np.abs(said.samples).max()
    for silence in (slice(0, int(0.06 * SAMPLE_RATE)), slice(int(0.9 * SAMPLE_RATE), None)):
        assert np.abs(said.samples[silence]).max() < 0.01 * loudest
    for phone, middle in (("m", 0.22), ("ɑ", 0.46), ("s", 0.73)):
        piece = said.samples[int((middle - 0.02) * SAMPLE_RATE) : int((middle + 0.02) * SAMPLE_RATE)]
        assert resonant(piece) == pytest.approx(RESONANCES[phone], rel=0.35), phone
    with pytest.raises(ValueError, match="never says aɪ"):
        Joined(folder).say_timed([("aI", 0.1), ("_", 0.3)], words, "buzz", 150.0, random.Random(0))


def test_vowels_and_consonants_take_as_long_as_asked_for_and_words_stay_on_theirs(folder: Path):
    timeline = [("_", 0.0), ("m", 0.1), ("A:", 0.2), ("s", 0.4), ("_:", 0.5), ("s", 0.6), ("A:", 0.7), ("_", 0.9)]
    words = [SpokenWord("alpha", 0.1, 0.5), SpokenWord("bravo", 0.6, 0.9)]
    said, moved = uneven(timeline, words, 0.5, 2.0)
    assert [name for name, _ in said] == [name for name, _ in timeline]
    assert [at for _, at in said] == pytest.approx([0.0, 0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0]), "pauses stay as long"
    assert [(w.text, round(w.start, 3), round(w.end, 3)) for w in moved] == [
        ("alpha", 0.1, 0.6), ("bravo", 0.7, 1.0)
    ]  # fmt: skip
    assert uneven(timeline, words, 1.0, 1.0) == (timeline, words)
    weak = [("D", 0.0), ("@", 0.1), ("3", 0.3), ("_", 0.5)]
    assert [at for _, at in uneven(weak, [], 0.5, 2.0)[0]] == pytest.approx([0.0, 0.2, 0.3, 0.4]), "weak vowels too"

    joined = Joined(folder)
    spans = {}
    for lengths in ((1, 1), (2, 1), (1, 2)):
        (word,) = joined.say("alpha", "buzz", ["mɑs"], 1.0, 120.0, random.Random(5), lengths).words
        spans[lengths] = word.end - word.start
    vowel, rest = spans[2, 1] - spans[1, 1], spans[1, 2] - spans[1, 1]
    assert vowel > 0.08
    assert rest > 0.12
    assert vowel + rest == pytest.approx(spans[1, 1], abs=0.03), "the one or the other, so both together double it"
    timed = joined.say_timed(timeline, words, "buzz", 120.0, random.Random(0), (0.5, 2.0))
    assert timed.words == moved


def test_a_third_of_what_is_joined_keeps_its_lengths():
    drawn = [unevenness(random.Random(i)) for i in range(400)]
    assert 100 < drawn.count((1.0, 1.0)) < 180
    assert min(v for v, _ in drawn) > 0.4
    assert max(v for v, _ in drawn) < 1.24
    assert min(c for _, c in drawn) > 0.8
    assert max(c for _, c in drawn) < 1.75


def test_pace_and_pitch_are_those_asked_for(folder: Path):
    joined = Joined(folder)
    quick, slow = (joined.say("alpha", "buzz", ["mɑm"], pace, 100.0, random.Random(3)) for pace in (0.7, 1.4))
    assert slow.words[0].end - slow.words[0].start == pytest.approx(
        2 * (quick.words[0].end - quick.words[0].start), 0.1
    )
    monotone = joined.say("alpha", "buzz", ["mɑɑmɑ"], 3.0, 200.0, random.Random(4))
    voiced = monotone.samples[int((monotone.words[0].start + 0.1) * SAMPLE_RATE) :][: SAMPLE_RATE // 4]
    found = np.correlate(voiced, voiced, "full")[len(voiced) :]
    lags = slice(SAMPLE_RATE // 300, SAMPLE_RATE // 120)
    pitch = SAMPLE_RATE / (lags.start + 1 + int(np.argmax(found[lags])))
    assert 150 < pitch < 215, "it glides down from 200 by a quarter of an octave at most"


def test_a_phone_that_nobody_said_is_an_error(folder: Path):
    with pytest.raises(ValueError, match="never says k"):
        Joined(folder).say("alpha", "buzz", ["kɑ"], 1.0, 100.0, random.Random(0))


def test_the_words_a_donor_says_hold_every_common_pair():
    spoken = {f"w{a}{b}{i}": [a, b] for a in "ptkmn" for b in "aeiou" for i in range(3)}
    chosen = covering(spoken, ["wpa0"], random.Random(1))
    assert {p for w in chosen for p in pairs(spoken[w])} == {p for said in spoken.values() for p in pairs(said)}
    assert len(chosen) == len(set(chosen)) == 25, "each pair once"
