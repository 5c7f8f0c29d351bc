"""Counts how often each word of the vocabulary is said, and by how many voices: `python -m training.census DIR...`."""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from training.vocabulary import WORDS


def census(folders: list[Path]) -> tuple[Counter[str], dict[str, set[str]], Counter[str]]:
    """Examples and voices of each word, the voices with their engine before them, and hours by engine."""
    said: Counter[str] = Counter()
    voices: dict[str, set[str]] = defaultdict(set)
    hours: Counter[str] = Counter()
    for index in (path for folder in folders for path in folder.glob("*.jsonl")):
        for line in index.read_text().splitlines():
            row = json.loads(line)
            hours[row["engine"]] += row["samples"] / 24_000 / 3600
            for word, _, _ in row["words"]:
                said[word] += 1
                voices[word].add(f"{row['engine']} {row['voice']}")
    return said, voices, hours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    said, voices, hours = census(args.folders)
    print("hours", {engine: round(spent, 2) for engine, spent in sorted(hours.items())}, round(hours.total(), 1))
    inside = sorted(WORDS, key=lambda word: said[word])
    for word in inside[:12]:
        print(f"{word}: {said[word]} times, {len(voices[word])} voices")
    print(f"{sum(said[word] < 500 for word in inside)} of {len(inside)} words fewer than 500 times")
    print(f"at least {min(len(voices[word]) for word in inside)} voices a word")
    outside = [count for word, count in said.items() if word not in set(inside)]
    print(f"{len(outside)} words outside, said {sum(outside)} times")


if __name__ == "__main__":
    main()
