"""The shape every synthesizer answers in: 24 kHz samples and the words with their times."""

import dataclasses
import os
from pathlib import Path

import numpy as np

SAMPLE_RATE = 24_000
ASSETS = Path(os.environ.get("TRAINING_ASSETS", "training/work/assets"))
"""Where the engines' models and the donors lie."""


@dataclasses.dataclass(frozen=True)
class SpokenWord:
    text: str
    start: float  # seconds from the first sample
    end: float


@dataclasses.dataclass(frozen=True)
class Speech:
    """One utterance: mono float32 samples at 24 kHz and its words in order."""

    samples: np.ndarray
    words: list[SpokenWord]


def resample(samples: np.ndarray, rate: float) -> np.ndarray:
    """Mono float32 samples from `rate` to 24 kHz."""
    import soxr

    if rate == SAMPLE_RATE:
        return samples.astype(np.float32)
    return np.asarray(soxr.resample(samples.astype(np.float32), rate, SAMPLE_RATE), dtype=np.float32)


def merge_words(sentence: str, spans: list[tuple[float, float]]) -> list[SpokenWord]:
    """Pair the sentence's words with their spans; a different count is an error of the synthesizer's reading."""
    words = sentence.replace(",", "").split()
    if len(words) != len(spans):
        raise ValueError(f"{len(spans)} spans for {len(words)} words: {sentence}")
    return [SpokenWord(w, s, e) for w, (s, e) in zip(words, spans, strict=True)]
