"""A shard: one raw 16-bit 24 kHz file of utterances end to end and a JSON line each with voice, text and word times."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.synth.speech import SAMPLE_RATE, Speech, SpokenWord


@dataclasses.dataclass(frozen=True)
class Utterance:
    engine: str
    voice: str
    text: str
    offset: int  # samples into the shard
    samples: int
    words: list[SpokenWord]


def tighten(speech: Speech, floor_db: float = -38.0, edge: float = 0.02) -> Speech:
    """Cut silence off words and utterance: engines count the pause after a word as its last phone."""
    hop = SAMPLE_RATE // 100
    frames = len(speech.samples) // hop
    power = np.square(speech.samples[: frames * hop].reshape(frames, hop)).mean(1) + 1e-12
    loud = 10 * np.log10(power / power.max()) > floor_db
    words = []
    for w in speech.words:
        a, b = int(w.start * 100), min(frames, int(np.ceil(w.end * 100)))
        on = np.flatnonzero(loud[a:b])
        if len(on) == 0:
            raise ValueError(f"no sound in {w.text}")
        words.append(
            SpokenWord(w.text, max(w.start, (a + on[0]) / 100 - edge), min(w.end, (a + on[-1] + 1) / 100 + edge))
        )
    first = max(0, int((words[0].start - 0.05) * SAMPLE_RATE))
    last = min(len(speech.samples), int((words[-1].end + 0.1) * SAMPLE_RATE))
    shift = first / SAMPLE_RATE
    moved = [SpokenWord(w.text, round(w.start - shift, 4), round(w.end - shift, 4)) for w in words]
    return Speech(speech.samples[first:last], moved)


class ShardWriter:
    """Appends utterances to `<stem>.pcm` and `<stem>.jsonl`; an interrupted shard is resumed at its last whole line."""

    def __init__(self, stem: Path) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        known = list(read_index(stem)) if stem.with_suffix(".jsonl").exists() else []
        self.offset = known[-1].offset + known[-1].samples if known else 0
        self.count = len(known)
        self.pcm = open(stem.with_suffix(".pcm"), "r+b" if known else "wb")  # noqa: SIM115
        self.pcm.seek(self.offset * 2)
        self.pcm.truncate()
        self.index = open(stem.with_suffix(".jsonl"), "a")  # noqa: SIM115

    @property
    def seconds(self) -> float:
        return self.offset / SAMPLE_RATE

    def add(self, engine: str, voice: str, text: str, speech: Speech) -> None:
        peak = float(np.abs(speech.samples).max())
        pcm = np.round(speech.samples * (0.7 / max(peak, 1e-3)) * 32767).astype("<i2")
        self.pcm.write(pcm.tobytes())
        self.pcm.flush()
        words = [[w.text, w.start, w.end] for w in speech.words]
        line = {
            "engine": engine,
            "voice": voice,
            "text": text,
            "offset": self.offset,
            "samples": len(pcm),
            "words": words,
        }
        self.index.write(json.dumps(line) + "\n")
        self.index.flush()
        self.offset += len(pcm)
        self.count += 1

    def close(self) -> None:
        self.pcm.close()
        self.index.close()


def read_index(stem: Path) -> Iterator[Utterance]:
    """The utterances of a shard, without their audio."""
    for line in stem.with_suffix(".jsonl").read_text().splitlines():
        row = json.loads(line)
        words = [SpokenWord(*w) for w in row.pop("words")]
        yield Utterance(words=words, **row)


def read_audio(stem: Path) -> np.ndarray:
    """All the samples of a shard, int16; from the raw file, or from the Opus one that travels."""
    raw = stem.with_suffix(".pcm")
    if raw.exists():
        return np.fromfile(raw, "<i2")
    import soundfile

    samples, rate = soundfile.read(stem.with_suffix(".opus"), dtype="int16")
    if rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.asarray(samples)
