"""Recipes for training rows: which utterances, where, how fast, with what gaps; audio itself is rendered elsewhere."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset

from training import targets
from training.shard import Utterance
from training.synth.speech import SAMPLE_RATE, SpokenWord
from training.vocabulary import AMBIGUOUS

FRAME = 1920
MAX_SEGMENTS = 24
VARIED = {"speeds": (0.78, 1.28), "excerpts": 0.3, "mute": 0.03}
"""How rows are made for a model that has learnt to listen."""
# Sampling weight of each engine; rare voices count for more than their share of hours.
ENGINE_WEIGHT = {
    "espeak": 0.13,
    "flite": 0.06,
    "festival": 0.06,
    "rhvoice": 0.1,
    "piper": 0.05,
    "hibari": 0.06,
    "kokoro": 0.21,
    "joined": 0.3,
    "music": 0.03,
}


@dataclasses.dataclass(frozen=True)
class Located:
    """An utterance and where its first sample lies in the one long array of all the audio."""

    start: int
    utterance: Utterance


def _excerpt(item: Located, rng: random.Random, share: float) -> tuple[int, int, list[SpokenWord]]:
    """An utterance, or a few of its words cut out: first sample, samples, and the words from there."""
    words = item.utterance.words
    # Cut out of its sentence, `for` would be `four`.
    if rng.random() >= share or len(words) < 2 or any(w.text in AMBIGUOUS for w in words):
        return item.start, item.utterance.samples, words
    first = rng.randrange(len(words))
    last = min(len(words) - 1, first + rng.choice([0, 0, 1, 2, 3]))
    begin = max(0, int((words[first].start - 0.01) * SAMPLE_RATE))
    end = min(item.utterance.samples, int((words[last].end + 0.03) * SAMPLE_RATE))
    shift = begin / SAMPLE_RATE
    moved = [SpokenWord(w.text, w.start - shift, w.end - shift) for w in words[first : last + 1]]
    return item.start + begin, end - begin, moved


class Rows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows: segments (source start, row start, row end, speed, gain) in float64 and the rows' labels."""

    def __init__(
        self,
        corpus: list[Located],
        frames: int,
        seed: int,
        *,
        speeds: tuple[float, float] = (0.85, 1.18),
        excerpts: float = 0.0,
        mute: float = 0.01,
        more: Callable[[], Iterable[Located]] = tuple,
    ) -> None:
        self.by_engine: dict[str, list[Located]] = {}
        self.take(corpus)
        self.more = more  # what has come since it was last asked
        self.frames = frames
        self.speeds = speeds
        self.excerpts = excerpts  # share of utterances cut short at word borders
        self.mute = mute  # share of rows where nobody speaks
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            self.take(self.more())
            for _ in range(64):
                yield self.row(rng)

    def take(self, items: Iterable[Located]) -> None:
        """Make rows of these too."""
        for item in items:
            if item.utterance.engine not in ENGINE_WEIGHT:
                raise ValueError(f"{item.utterance.engine} is no engine to train on")
            self.by_engine.setdefault(item.utterance.engine, []).append(item)
        self.engines = list(self.by_engine)
        self.weights = [ENGINE_WEIGHT[e] for e in self.engines]

    def row(self, rng: random.Random) -> dict[str, torch.Tensor]:
        length = self.frames * FRAME
        segments = np.zeros((MAX_SEGMENTS, 5))
        segments[:, 1:3] = length
        words: list[SpokenWord] = []
        at = rng.choice([0.0, rng.uniform(0, 0.5), rng.uniform(0, 2.5)]) * SAMPLE_RATE
        # A row is one voice's more often than not; then its level and speed stay too.
        engine = rng.choices(self.engines, self.weights)[0]
        level = 1.0
        for i in range(MAX_SEGMENTS if rng.random() > self.mute else 0):
            if rng.random() < 0.3:
                level = 10 ** (rng.uniform(-12, 0) / 20)
                engine = rng.choices(self.engines, self.weights)[0]
            source, samples, said = _excerpt(rng.choice(self.by_engine[engine]), rng, self.excerpts)
            speed = 1.0 if rng.random() < 0.4 else rng.uniform(*self.speeds)
            at = float(int(at))
            end = at + (samples - 4) / speed
            segments[i] = (source, at, min(end, length), speed, level * 10 ** (rng.uniform(-2, 2) / 20))
            for w in said:
                start = at / SAMPLE_RATE + w.start / speed
                words.append(SpokenWord(w.text, start, at / SAMPLE_RATE + w.end / speed))
            gaps = [(0.0, 0.15), (0.1, 0.5), (0.4, 1.5), (1.5, 4.5), (4.5, 14.0)]
            gap = rng.uniform(*rng.choices(gaps, [0.15, 0.3, 0.33, 0.16, 0.06])[0])
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
