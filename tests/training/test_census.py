"""Examples, voices and hours are counted over all shards."""

import json
from pathlib import Path

from training.census import census


def test_words_voices_and_hours_add_up(tmp_path: Path):
    rows = [("espeak", "a", ["one", "two"]), ("espeak", "b", ["two"]), ("flite", "a", ["two", "two"])]
    for i, (engine, voice, words) in enumerate(rows):
        line = {"engine": engine, "voice": voice, "samples": 24_000 * 36, "words": [[w, 0, 1] for w in words]}
        with open(tmp_path / f"{i % 2}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    said, voices, hours = census([tmp_path])
    assert said == {"one": 1, "two": 4}
    assert voices["two"] == {"espeak a", "espeak b", "flite a"}
    assert hours == {"espeak": 0.02, "flite": 0.01}
