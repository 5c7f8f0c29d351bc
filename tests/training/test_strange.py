"""Words outside come from a lexicon: none that sounds like a known word, and those near one are marked."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

from training.synth.neural import letters

from training import strange


def test_near_is_one_sound_put_in_taken_out_or_changed() -> None:
    near = strange.one_away({"sɛt"})
    assert all(strange.is_near(sound, near) for sound in ("sɪt", "sɛ", "sɛts", "ɛt", "sɛt"))
    assert not any(strange.is_near(sound, near) for sound in ("sɪd", "tɛs", "s", "sɛtsz"))


def test_a_known_word_is_heard_in_a_longer_one() -> None:
    inner = strange.parts({"noʊ", "sɛvən", "ɪn", "eɪ"})
    assert all(inner.search(letters(s)) for s in ("piænoʊ", "noʊbəl", "sɛvənθ", "ənsɛvəni", "ɪnsɛkt"))
    # Two phones in the middle are no word, nor is a single one.
    assert not any(inner.search(letters(s)) for s in ("ənoʊn", "sɪnt", "deɪ", "sɛvɪnt"))


def test_words_are_written_and_read(tmp_path: Path) -> None:
    said = {
        "sat": "sˈæt",
        "piano": "piˈænO",
        "sette": "sˈɛt",  # sounds like `set`
        "settler": {"DEFAULT": "sˈɛtləɹ", "VERB": "?"},
        "nine": "nˈIn",  # is known
        "Oslo": "ˈɑzlO",  # a name
        "disdains": "dɪsdˈAnz",
        "odd": "ˈ£d",  # a sign nobody can say
    }
    for place in ("us", "gb"):
        with gzip.open(tmp_path / f"lexicon_{place}_gold.json.gz", "wt") as file:
            json.dump(said, file)
    out = tmp_path / "strange.tsv"
    run = [sys.executable, "-m", "training.strange", str(tmp_path), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TRAINING_STRANGE": str(out)}
    subprocess.run(run, check=True, env=environment)
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert lines == [
        ["disdains", "dɪsdˈeɪnz", "dɪsdˈeɪnz", "0"],
        ["piano", "piˈænoʊ", "piˈænoʊ", "2"],
        ["sat", "sˈæt", "sˈæt", "1"],
        ["settler", "sˈɛtləɹ", "sˈɛtləɹ", "2"],
    ]
    code = """
from training import sentences, vocabulary
import random
said = [w for w in ("disdains", "piano", "sat", "settler") if not vocabulary.is_held_out(w)]
assert set(vocabulary.OUTSIDE_RARE) == set(said)
assert set(vocabulary.OUTSIDE_HOLDING) == {w for w in said if w in ("piano", "settler")}
assert set(vocabulary.OUTSIDE_NEAR) == {w for w in ("sat",) if not vocabulary.is_held_out(w)}
words = {w for seed in range(300) for w in sentences._outside(random.Random(seed))}
assert not any(map(vocabulary.is_held_out, words)) and not words & set(vocabulary.WORDS)
assert {w for w in vocabulary.OUTSIDE_RARE} <= words
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
