"""Score the embedded model on the evaluation shards: in this process frame by frame, or through a running server.

`python -m training.evaluate --eval DIR` runs the streaming step itself; with `--url ws://127.0.0.1:8080` every
utterance goes over the WebSocket protocol as a client would send it. Prints a table and, with `--json FILE`, writes all
figures.
"""

import argparse
import asyncio
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from moshi_server.audio import read_audio
from moshi_server.events import Word
from moshi_server.speech.asr import WordAssembler
from moshi_server.speech.tokenizer import TextTokenizer
from training import corpus
from training.augment import music
from training.mixing import Located
from training.noise import with_noise
from training.scoring import Score
from training.synth.speech import SAMPLE_RATE, SpokenWord
from training.targets import DELAY, known

LEAD, TAIL = 0.4, 1.0


def cases(folder: Path, limit: int) -> Iterable[tuple[str, np.ndarray, list[Located]]]:
    """(set name, audio, utterances) of each shard: `seen/espeak`, `unseen-mixed/kokoro` and so on."""
    for index in sorted(folder.glob("*.jsonl")):
        split, engine, _ = index.stem.rsplit("-", 2)
        audio, items = corpus.load_one(index.with_suffix(""))
        yield f"{split}/{engine}", audio, items[:limit]


def padded(audio: np.ndarray, item: Located, noise_db: float | None, seed: int) -> np.ndarray:
    """What the recogniser hears: a little silence, the utterance, a little silence; noise over all of it."""
    pcm = corpus.utterance_batch(audio, [item], LEAD, TAIL)[0]
    return (pcm if noise_db is None else with_noise(pcm, noise_db, seed)).numpy()


class InProcess:
    """The shipped files through the streaming step, many slots at once."""

    def __init__(self, demo: Path, quantize: Literal["int8", "int4"] | None = None) -> None:
        from moshi_server.model.stt import SttModel
        from moshi_server.model.weights import load_lm
        from moshi_server.model.weights_mimi import load_mimi
        from training.model import lm_spec

        self.tokenizer = TextTokenizer(demo / "tokenizer.model")
        size = self.tokenizer.vocab_size  # an older model knows fewer words
        spec = dataclasses.replace(lm_spec(), text_in_vocab_size=size + 1, text_out_vocab_size=size)
        lm = load_lm(demo / "model.safetensors", spec, dtype=torch.float32, kind=quantize)
        self.model = SttModel(load_mimi(demo / "mimi.safetensors", decoder=False), lm)
        self.seconds = 0.0
        self.spent = 0.0

    def transcribe(self, waves: list[np.ndarray]) -> list[list[SpokenWord]]:
        frame = self.model.frame_size
        order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
        results: list[list[SpokenWord]] = [[] for _ in waves]
        for at in range(0, len(order), 16):
            rows = order[at : at + 16]
            longest = max(len(waves[i]) for i in rows)
            batch = np.zeros((len(rows), longest + DELAY * frame), np.float32)
            for row, i in zip(batch, rows, strict=True):
                row[: len(waves[i])] = waves[i]
            state = self.model.init_state(len(rows))
            slots = torch.arange(len(rows))
            assemblers = [WordAssembler(DELAY, self.tokenizer.decode) for _ in rows]
            began = time.perf_counter()
            for step in range(batch.shape[1] // frame):
                pcm = torch.from_numpy(batch[:, step * frame : (step + 1) * frame])
                tokens, _ = self.model.step(pcm, state, slots)
                for i, assembler, token in zip(rows, assemblers, tokens.tolist(), strict=True):
                    results[i] += [
                        SpokenWord(e.text, e.start_time, 0.0) for e in assembler.step(token) if isinstance(e, Word)
                    ]
            self.spent += time.perf_counter() - began
            self.seconds += batch.shape[0] * batch.shape[1] / SAMPLE_RATE
            for i, assembler in zip(rows, assemblers, strict=True):
                results[i] += [SpokenWord(e.text, e.start_time, 0.0) for e in assembler.flush() if isinstance(e, Word)]
        return results


class ThroughServer:
    """The same over the real protocol: a connection an utterance, up to `concurrency` at once."""

    def __init__(self, url: str, api_key: str, concurrency: int) -> None:
        self.url, self.api_key, self.concurrency = url, api_key, concurrency
        self.seconds = 0.0
        self.spent = 0.0

    def transcribe(self, waves: list[np.ndarray]) -> list[list[SpokenWord]]:
        began = time.perf_counter()
        results = asyncio.run(self._all(waves))
        self.spent += time.perf_counter() - began
        self.seconds += sum(map(len, waves)) / SAMPLE_RATE
        return results

    async def _all(self, waves: list[np.ndarray]) -> list[list[SpokenWord]]:
        from moshi_server.client import AsrClient

        gate = asyncio.Semaphore(self.concurrency)

        async def one(wave: np.ndarray) -> list[SpokenWord]:
            async with gate, AsrClient.connect(self.url, api_key=self.api_key) as client:
                transcript = await client.transcribe(wave)
                return [SpokenWord(w.text, w.start, 0.0) for w in transcript.words]

        return list(await asyncio.gather(*map(one, waves)))


def evaluate(
    recogniser: InProcess | ThroughServer, folder: Path, limit: int, noise_db: float, nothing: Path | None = None
) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for name, audio, items in cases(folder, limit):
        split, engine = name.split("/")
        runs: list[tuple[str, float | None]] = [(name, None)]
        if split.startswith("seen"):
            runs.append((split.replace("seen", "noise") + "/" + engine, noise_db))
        for label, noise in runs:
            waves = [padded(audio, item, noise, seed=i) for i, item in enumerate(items)]
            score = scores.setdefault(label, Score())
            for item, words in zip(items, recogniser.transcribe(waves), strict=True):
                score.add(known(item.utterance.words), words, LEAD)
            score.seconds += sum(map(len, waves)) / SAMPLE_RATE
            print(f"{label:26s} {described(score)}", flush=True)
    for label, waves in nothing_said(nothing).items():
        score = scores.setdefault(label, Score())
        for words in recogniser.transcribe(waves):
            score.add([], words)
        score.seconds += sum(map(len, waves)) / SAMPLE_RATE
        print(f"{label:26s} {described(score)}", flush=True)
    return scores


def described(score: Score) -> str:
    return f"WER {score.wer:5.1f} %" if score.words else f"{score.false_a_minute:.1f} false words a minute"


def nothing_said(recordings: Path | None = None, minutes: int = 3) -> dict[str, list[np.ndarray]]:
    """Noise of three colours at three levels, music made of notes and drums, and recordings: a minute each."""
    found: dict[str, list[np.ndarray]] = {"nothing/noise": [], "nothing/music": []}
    for seed in range(3 * minutes):
        rng = np.random.default_rng(seed)
        spectrum = np.fft.rfft(rng.standard_normal(60 * SAMPLE_RATE))
        slope = np.maximum(np.arange(len(spectrum)) / 60, 30.0) ** (-0.5 * (seed % 3))
        noise = np.fft.irfft(spectrum * slope)
        found["nothing/noise"].append((noise * 10 ** (-(seed // 3) - 0.5) / np.abs(noise).max()).astype(np.float32))
    torch.manual_seed(0)
    tunes = music(minutes, 60 * SAMPLE_RATE, torch.zeros(1)).numpy()
    found["nothing/music"] = [(0.5 * tune / np.abs(tune).max()).astype(np.float32) for tune in tunes]
    if recordings is not None:
        # From past the beginning, which may be silent.
        cut = slice(10 * SAMPLE_RATE, 70 * SAMPLE_RATE)
        found["nothing/recordings"] = [read_audio(path)[cut] for path in sorted(recordings.glob("*.wav"))]
    return found


# What the issues' bars are about: sets of sentences, joined over engines.
BARS: dict[str, tuple[float, list[str]]] = {
    "everyday, seen voices": (5.0, ["seen-everyday/"]),
    "everyday, held-out voices": (
        10.0,
        [f"unseen-everyday/{engine}" for engine in ("espeak", "flite", "festival", "kokoro")],
    ),
    "everyday, engines never trained on": (15.0, ["unseen-everyday/pico", "unseen-everyday/mbrola"]),
    "everyday, seen voices, in noise": (15.0, ["noise-everyday/"]),
    "seen voices": (5.0, ["seen/"]),
    "held-out voices": (10.0, ["unseen/espeak", "unseen/flite", "unseen/festival", "unseen/kokoro"]),
    "engine never trained on: pico": (20.0, ["unseen/pico"]),
    "engine never trained on: mbrola": (20.0, ["unseen/mbrola"]),
    "a human (joined prompts)": (20.0, ["unseen/asterisk"]),
    "seen voices, in noise": (15.0, ["noise/"]),
}


def summary(scores: dict[str, Score]) -> dict[str, Score]:
    joined: dict[str, Score] = {}
    for bar, (_, prefixes) in BARS.items():
        total = Score()
        for name, score in scores.items():
            if any(name.startswith(p) for p in prefixes):
                total.merge(score)
        joined[bar] = total
    control = Score()
    for name, score in scores.items():
        if "mixed" in name and "noise" not in name and "pico" not in name and "mbrola" not in name:
            control.merge(score)
    joined["numbers with control words, all voices"] = control
    for name, prefix in (
        ("words outside", "outside/"),
        ("noise", "nothing/noise"),
        ("music", "nothing/music"),
        ("recordings", "nothing/recordings"),
    ):
        total = Score()
        for found, score in scores.items():
            if found.startswith(prefix):
                total.merge(score)
        joined[name] = total
    return joined


def as_json(score: Score) -> dict[str, object]:
    return {
        "wer": round(score.wer, 2),
        "words": score.words,
        "substitutions": score.substitutions,
        "deletions": score.deletions,
        "insertions": score.insertions,
        "false_a_minute": round(score.false_a_minute, 2),
        "sentences": score.sentences,
        "sentence_errors": score.sentence_errors,
        "start_median_ms": round(score.start_quantile(0.5), 1),
        "start_p95_ms": round(score.start_quantile(0.95), 1),
        "start_bias_ms": round(float(np.median(score.start_errors)) * 1000, 1) if score.start_errors else None,
        "confusions": [[a, b, n] for (a, b), n in score.confusions.most_common(25)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eval", type=Path, default=Path("training/work/eval"))
    parser.add_argument("--demo", type=Path, default=Path("src/moshi_server/demo"))
    parser.add_argument("--quantize", choices=["int8", "int4"], help="hold layers in so many bits")
    parser.add_argument("--url", help="evaluate a running server instead")
    parser.add_argument("--api-key", default="public_token")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10**9, help="utterances a shard")
    parser.add_argument("--noise", type=float, default=10.0, help="dB of speech over noise")
    parser.add_argument("--nothing", type=Path, help="a folder of wav files in which nobody speaks, as of music")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recogniser: InProcess | ThroughServer = (
        ThroughServer(args.url, args.api_key, args.concurrency) if args.url else InProcess(args.demo, args.quantize)
    )
    scores = evaluate(recogniser, args.eval, args.limit, args.noise, args.nothing)
    joined = summary(scores)
    print(f"\n{'set':42s} {'words':>6s} {'WER %':>6s} {'bar':>5s} {'start ms (median, p95)':>24s}")
    for name, score in joined.items():
        bar = BARS.get(name, (float("nan"), []))[0]
        if not score.words:
            print(f"{name:42s} {score.false_a_minute:.2f} false words a minute of {score.seconds / 60:.1f}")
            continue
        starts = f"{score.start_quantile(0.5):.0f}, {score.start_quantile(0.95):.0f}"
        print(f"{name:42s} {score.words:6d} {score.wer:6.1f} {bar:5.0f} {starts:>24s}")
    print(f"{recogniser.seconds / recogniser.spent:.1f} x real time in all")
    total = Score()
    for score in scores.values():
        total.merge(score)
    print("confusions:", ", ".join(f"{a} > {b} {n}" for (a, b), n in total.confusions.most_common(20)))
    if args.json:
        figures = {
            "sets": {k: as_json(v) for k, v in scores.items()},
            "summary": {k: as_json(v) for k, v in joined.items()},
        }
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
