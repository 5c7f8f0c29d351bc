"""Precision and recall of turn ends on the embedded model: `python -m training.evaluate_turns --eval DIR`.

Utterances of one shard are joined with random gaps; a turn is to end when a gap has lasted as long as the head's pause.
Gaps within 0.3 s of that count neither way.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from moshi_server.speech.turns import TurnDetector, TurnSettings
from training import corpus
from training.evaluate import InProcess
from training.mixing import Located
from training.synth.speech import SAMPLE_RATE
from training.targets import PAUSES

TOLERANCE = 0.3


def joined(audio: np.ndarray, items: list[Located], rng: random.Random) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Samples of a talk, and each pause in it (start, end) in seconds, the last one at its end included."""
    parts = [np.zeros(int(0.4 * SAMPLE_RATE), np.float32)]
    at, spoken = 0.4, []
    for item in items:
        u = item.utterance
        spoken += [(at + w.start, at + w.end) for w in u.words]
        gap = rng.choice([0.15, 0.3, 0.7, 1.2, 1.6, 2.5, 3.6, 5.0]) + rng.uniform(0, 0.2)
        parts.append(audio[item.start : item.start + u.samples].astype(np.float32) / 32768)
        parts.append(np.zeros(int(gap * SAMPLE_RATE), np.float32))
        at += u.samples / SAMPLE_RATE + len(parts[-1]) / SAMPLE_RATE
    ends = [start for start, _ in spoken[1:]] + [at]
    return np.concatenate(parts), [(end, following) for (_, end), following in zip(spoken, ends, strict=True)]


def judge(found: list[float], pauses: list[tuple[float, float]], length: float) -> tuple[int, int, int, list[float]]:
    """Right ones, false ones, missed ones, and by how much the right ones were late."""
    wanted = [start + length for start, end in pauses if end - start > length + TOLERANCE]
    unsure = [start + length for start, end in pauses if abs(end - start - length) <= TOLERANCE]
    right, late, left = 0, [], list(found)
    for time in wanted:
        near = [t for t in left if abs(t - time) <= TOLERANCE]
        if near:
            right += 1
            late.append(near[0] - time)
            left.remove(near[0])
    false = sum(all(abs(t - time) > TOLERANCE for time in unsure) for t in left)
    return right, false, len(wanted) - right, late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eval", type=Path, default=Path("training/work/eval"))
    parser.add_argument("--demo", type=Path, default=Path("src/moshi_server/demo"))
    parser.add_argument("--talks", type=int, default=4, help="a shard")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recogniser = InProcess(args.demo)
    totals = {length: [0, 0, 0] for length in PAUSES}
    lateness: dict[float, list[float]] = {length: [] for length in PAUSES}
    frame = recogniser.model.frame_size
    for index in sorted(args.eval.glob("*seen*.jsonl")):
        rng = random.Random(index.stem)
        audio, items = corpus.load_one(index.with_suffix(""))
        if any(w.end - w.start <= 0 for w in items[0].utterance.words) or "pico" in index.stem:
            continue  # tells no times
        talks = [joined(audio, rng.sample(items, min(6, len(items))), rng) for _ in range(args.talks)]
        longest = max(len(samples) for samples, _ in talks) // frame + 8
        batch = np.zeros((len(talks), longest * frame), np.float32)
        for row, (samples, _) in zip(batch, talks, strict=True):
            row[: len(samples)] = samples
        state, slots = recogniser.model.init_state(len(talks)), torch.arange(len(talks))
        detectors = [[TurnDetector(TurnSettings(head=head)) for head in range(len(PAUSES))] for _ in talks]
        found: list[list[list[float]]] = [[[] for _ in PAUSES] for _ in talks]
        for step in range(longest):
            pcm = torch.from_numpy(batch[:, step * frame : (step + 1) * frame])
            _, prs = recogniser.model.step(pcm, state, slots)
            time = (step + 1) * frame / SAMPLE_RATE
            for row, values in enumerate(prs.tolist()):
                for head, detector in enumerate(detectors[row]):
                    if step == 4:
                        detector.word(time)
                    turn = detector.frame(values, time)
                    if turn is not None and turn.kind == "end":
                        found[row][head].append(time)
        for row, (samples, pauses) in enumerate(talks):
            for head, length in enumerate(PAUSES):
                heard = [t for t in found[row][head] if t <= len(samples) / SAMPLE_RATE]
                right, false, missed, late = judge(heard, pauses, length)
                for place, value in enumerate((right, false, missed)):
                    totals[length][place] += value
                lateness[length] += late
    for length, (right, false, missed) in totals.items():
        precision, recall = right / max(1, right + false), right / max(1, right + missed)
        print(
            f"pause of {length} s: precision {100 * precision:.1f} %, recall {100 * recall:.1f} % of {right + missed} "
            f"turn ends within {1000 * TOLERANCE:.0f} ms, late by {1000 * np.median(lateness[length]):.0f} ms (median)"
        )


if __name__ == "__main__":
    main()
