"""Cut the sample recordings that ship with the package out of the evaluation shards (never trained on)."""

import argparse
from pathlib import Path

import numpy as np
import soundfile

from training.corpus import load_one, utterance_batch

# shard, utterance, file. Kokoro's and flite's voices here are held-out ones; Piper's is a training voice.
CHOSEN = [
    ("unseen-mixed-kokoro-7", 14, "alice.flac"),
    ("unseen-everyday-kokoro-7", 21, "fenrir.ogg"),
    ("seen-everyday-piper-7", 24, "joe.wav"),
    ("unseen-everyday-flite-7", 8, "awb.flac"),
]


def write(path: Path, samples: np.ndarray) -> None:
    if path.suffix == ".ogg":
        with soundfile.SoundFile(path, "w", 24000, 1, format="OGG", subtype="OPUS", compression_level=0.8) as file:
            file.write(samples)
    else:
        soundfile.write(path, samples, 24000, subtype="PCM_16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eval", type=Path, default=Path("training/work/eval"))
    parser.add_argument("--out", type=Path, default=Path("src/moshi_server/demo/samples"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for shard, index, name in CHOSEN:
        audio, items = load_one(args.eval / shard)
        item = items[index]
        write(args.out / name, utterance_batch(audio, [item], 0.4, 0.6)[0].numpy())
        (args.out / name).with_suffix(".txt").write_text(item.utterance.text.replace(",", "") + "\n")
        print(name, item.utterance.voice, item.utterance.text)


if __name__ == "__main__":
    main()
