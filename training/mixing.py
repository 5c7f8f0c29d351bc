"""Recipes for training rows: which utterances, where, how fast, with what gaps; audio itself is rendered elsewhere."""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset

from training import targets
from training.shard import Utterance
from training.synth.speech import SAMPLE_RATE, SpokenWord

FRAME = 1920
MAX_SEGMENTS = 24
# Sampling weight of each engine; rare voices count for more than their share of hours.
ENGINE_WEIGHT = {"espeak": 0.3, "flite": 0.13, "festival": 0.13, "piper": 0.14, "kokoro": 0.3}


@dataclasses.dataclass(frozen=True)
class Located:
    """An utterance and where its first sample lies in the one long array of all the audio."""

    start: int
    utterance: Utterance


class Rows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows: segments (source start, row start, row end, speed, gain) in float64 and the rows' labels."""

    def __init__(self, corpus: list[Located], frames: int, seed: int) -> None:
        self.by_engine: dict[str, list[Located]] = {}
        for item in corpus:
            if item.utterance.engine not in ENGINE_WEIGHT:
                raise ValueError(f"{item.utterance.engine} is no engine to train on")
            self.by_engine.setdefault(item.utterance.engine, []).append(item)
        self.engines = list(self.by_engine)
        self.weights = [ENGINE_WEIGHT[e] for e in self.engines]
        self.frames = frames
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            yield self.row(rng)

    def row(self, rng: random.Random) -> dict[str, torch.Tensor]:
        length = self.frames * FRAME
        segments = np.zeros((MAX_SEGMENTS, 5))
        segments[:, 1:3] = length
        words: list[SpokenWord] = []
        at = rng.choice([0.0, rng.uniform(0, 0.5), rng.uniform(0, 2.5)]) * SAMPLE_RATE
        # A row is one voice's more often than not; then its level and speed stay too.
        engine = rng.choices(self.engines, self.weights)[0]
        level = 1.0
        for i in range(MAX_SEGMENTS):
            if rng.random() < 0.3:
                level = 10 ** (rng.uniform(-12, 0) / 20)
                engine = rng.choices(self.engines, self.weights)[0]
            item = rng.choice(self.by_engine[engine])
            speed = 1.0 if rng.random() < 0.4 else rng.uniform(0.85, 1.18)
            at = float(int(at))
            end = at + (item.utterance.samples - 4) / speed
            segments[i] = (item.start, at, min(end, length), speed, level * 10 ** (rng.uniform(-2, 2) / 20))
            for w in item.utterance.words:
                start = at / SAMPLE_RATE + w.start / speed
                words.append(SpokenWord(w.text, start, at / SAMPLE_RATE + w.end / speed))
            gap = rng.choices(
                [rng.uniform(0, 0.15), rng.uniform(0.1, 0.5), rng.uniform(0.4, 1.5), rng.uniform(1.5, 4.5)], [0.15, 0.3, 0.35, 0.2]
            )[0]
            at = end + gap * SAMPLE_RATE
            if at >= length:
                break
        words = [w for w in words if w.start < length / SAMPLE_RATE]
        spans = targets.frame_spans(words, self.frames)
        return {
            "segments": torch.from_numpy(segments),
            "text": torch.from_numpy(targets.text_tokens(spans, self.frames)),
            "pauses": torch.from_numpy(targets.pause_labels(spans, self.frames)),
            "phones": torch.from_numpy(targets.phone_labels(words, self.frames)),
        }
