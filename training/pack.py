"""Shrink shards to Ogg/Opus with ffmpeg for the way to a training machine: `python -m training.pack IN OUT`."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from training.synth.speech import SAMPLE_RATE


def pack(stem: Path, target: Path, minutes: float, bitrate: int) -> None:
    """Cut one shard into files of about `minutes` at utterance borders, each with its own index."""
    rows = [json.loads(line) for line in stem.with_suffix(".jsonl").read_text().splitlines()]
    part = 0
    while rows:
        start = rows[0]["offset"]
        count = sum(r["offset"] - start < minutes * 60 * SAMPLE_RATE for r in rows)
        chosen, rows = rows[:count], rows[count:]
        end = chosen[-1]["offset"] + chosen[-1]["samples"]
        name = target / f"{stem.name}-{part:02d}"
        part += 1
        with open(stem.with_suffix(".pcm"), "rb") as file:
            file.seek(start * 2)
            pcm = file.read((end - start) * 2)
        source = ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "-"]
        codec = ["-c:a", "libopus", "-b:a", f"{bitrate}k", "-compression_level", "2"]
        subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *codec, f"{name}.opus"], input=pcm, check=True)
        Path(f"{name}.jsonl").write_text(
            "".join(json.dumps(r | {"offset": r["offset"] - start}) + "\n" for r in chosen)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--bitrate", type=int, default=20, help="kbit/s")
    args = parser.parse_args()
    shutil.rmtree(args.target, ignore_errors=True)
    args.target.mkdir(parents=True)
    for index in sorted(args.source.glob("*.jsonl")):
        pack(index.with_suffix(""), args.target, args.minutes, args.bitrate)


if __name__ == "__main__":
    main()
