"""Writes a shard in which nobody speaks from recordings of music: `python -m training.music FILE... --out DIR`."""

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

from training.shard import ShardWriter
from training.synth.speech import Speech, resample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    writer = ShardWriter(args.out / f"train-music-{args.seed}")
    while writer.seconds < args.minutes * 60:
        path = rng.choice(args.files)
        info = soundfile.info(path)
        seconds = min(rng.uniform(6, 15), info.duration)
        first = int(rng.uniform(0, info.duration - seconds) * info.samplerate)
        samples, rate = soundfile.read(path, int(seconds * info.samplerate), first, dtype="float32", always_2d=True)
        mono = samples.mean(1)
        if np.abs(mono).max() > 0.02:
            writer.add("music", path.stem, "", Speech(resample(mono, rate), []))
    writer.close()
    print(f"{writer.count} excerpts of {len(args.files)} recordings, {writer.seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
