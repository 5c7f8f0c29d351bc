"""Kokoro, its student hibari and Piper by onnxruntime; word times come from the phoneme durations of the models."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from training.accents import Accent
from training.synth.speech import SAMPLE_RATE, Speech, merge_words, resample
from training.vocabulary import LEXICON_GB, LEXICON_US


def _session(path: Path, durations: str, threads: int) -> Any:
    """An onnxruntime session of the model with the named inner tensor added to its outputs."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    model.graph.output.append(onnx.ValueInfoProto(name=durations))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _on_gpu(path: Path, durations: str, device: str) -> Any:
    """The same by PyTorch, for which there is no such loop of small kernels on a CPU."""
    from training.synth.graph import Graph

    return Graph(path, ["audio", durations], device)


def pronounce(sentence: str, british: bool, rng: random.Random, accent: Accent | None = None) -> list[tuple[str, bool]]:
    """Each word's phonemes, and whether a pause follows."""
    lexicon = LEXICON_GB if british else LEXICON_US
    said = [(w.rstrip(","), w.endswith(",")) for w in sentence.split()]
    ways = [(w, rng.choice(lexicon[w].split(" ")), pause) for w, pause in said]
    return [(accent(w, way) if accent else way, pause) for w, way, pause in ways]


_LETTERS = [("oʊ", "O"), ("əʊ", "Q"), ("eɪ", "A"), ("aɪ", "I"), ("ɔɪ", "Y"), ("aʊ", "W"), ("tʃ", "ʧ"), ("dʒ", "ʤ")]
"""Plain IPA to one letter a diphthong or an affricate, as Kokoro has it."""


def letters(phonemes: str) -> str:
    for pair, letter in _LETTERS:
        phonemes = phonemes.replace(pair, letter)
    return phonemes


def _tokens(said: list[tuple[str, bool]]) -> tuple[str, list[tuple[int, int]]]:
    """All letters, spaces and commas among them, and each word's range in them."""
    text = ""
    ranges = []
    for phonemes, pause in said:
        text += " " if text else ""
        word = letters(phonemes)
        ranges.append((len(text), len(text) + len(word)))
        text += word + ("," if pause else "")
    return text, ranges


LATE = 0.05
"""Seconds by which a sound comes before the time that Kokoro's durations, and its student's, give it."""


class Kokoro:
    """Kokoro-82M (int8 ONNX, Apache-2.0); `voices` holds one (510, 256) float32 style table a file."""

    FRAME = 600  # samples of output a duration unit

    @classmethod
    def of(cls, assets: Path, device: str = "cpu") -> "Kokoro":
        return cls(assets / "kokoro.onnx", assets / "kokoro_vocab.json", assets / "kokoro_voices", device)

    def __init__(self, model: Path, vocab: Path, voices: Path, device: str = "cpu") -> None:
        durations = "/encoder/Clip_output_0"
        self.session = _session(model, durations, 1) if device == "cpu" else _on_gpu(model, durations, device)
        self.vocab: dict[str, int] = json.loads(vocab.read_text())["vocab"]
        self.voices = voices
        self.styles: dict[str, np.ndarray] = {}

    def style(self, voice: str) -> np.ndarray:
        """The style table of a voice, or of a blend `a*0.4+b*0.6`."""
        if voice not in self.styles:
            total = np.zeros((510, 256), np.float32)
            for part in voice.split("+"):
                name, _, weight = part.partition("*")
                table = np.fromfile(self.voices / f"{name}.bin", np.float32).reshape(-1, 256)
                total += float(weight or 1) * table[:510]
            self.styles[voice] = total
        return self.styles[voice]

    def say(
        self,
        sentence: str,
        voice: str,
        speed: float,
        rng: random.Random,
        *,
        british: bool | None = None,
        accent: Accent | None = None,
    ) -> Speech:
        """`british` pronunciations are those of British voices, unless it is said."""
        here = voice.startswith("b") if british is None else british
        text, ranges = _tokens(pronounce(sentence, here, rng, accent))
        text += rng.choice([".", ".", "!", "?", ","])
        ids = [0, *(self.vocab[p] for p in text), 0]
        style = self.style(voice)[min(len(ids) - 2, 509)]
        feeds = {
            "tokens": np.array([ids], np.int64),
            "style": style[None],
            "speed": np.array([speed], np.float32),
        }
        audio, durations = self.session.run(None, feeds)
        ends = np.cumsum(np.asarray(durations).reshape(-1).astype(np.float64)) * self.FRAME / SAMPLE_RATE - LATE
        spans = [(float(ends[a]), float(ends[b])) for a, b in ranges]
        samples = np.asarray(audio, np.float32).reshape(-1)
        return Speech(samples, merge_words(sentence, spans))


class Hibari:
    """hibari's one voice (Apache-2.0), a small student of Kokoro's af_heart that tells pitch and noise apart."""

    @classmethod
    def installed(cls) -> "Hibari":
        """With the files that lie in the package."""
        import hibari

        folder = Path(hibari.__file__).parent / "assets"
        return cls(folder / "hibari.onnx", folder / "vocab.json")

    def __init__(self, model: Path, vocab: Path, threads: int = 1) -> None:
        from hibari import dsp

        self.session = _session(model, "/Clip_output_0", threads)
        self.vocab: dict[str, int] = json.loads(vocab.read_text())
        self.dsp = dsp

    def say(
        self,
        sentence: str,
        speed: float,
        rng: random.Random,
        *,
        british: bool,
        accent: Accent | None,
        pitch: float,
        lively: float,
    ) -> Speech:
        """`pitch` as a multiple of the voice's own, `lively` from 0, a monotone, to 1."""
        text, ranges = _tokens(pronounce(sentence, british, rng, accent))
        text += rng.choice([".", ".", "!", "?", ","])
        ids = [0, *(self.vocab[p] for p in text), 0]
        feeds = {"ids": np.array([ids], np.int64), "speed": np.array([speed], np.float32)}
        *parts, durations = self.session.run(None, feeds)
        lh, th, ln, lr, phi, f0 = (part[0] for part in parts)
        voiced = f0 > 20
        middle = float(np.median(f0[voiced])) if voiced.any() else 200.0
        f0 = np.where(voiced, pitch * middle * (np.maximum(f0, 20) / middle) ** lively, f0).astype(np.float32)
        noise = np.random.default_rng(rng.randrange(2**32))
        samples = np.asarray(self.dsp.synth(lh, th, ln, lr, phi, f0, noise), np.float32)
        ends = np.cumsum(np.asarray(durations).reshape(-1).astype(np.float64))
        ends = ends * (len(samples) / SAMPLE_RATE / ends[-1]) - LATE
        spans = [(float(ends[a]), float(ends[b])) for a, b in ranges]
        return Speech(samples, merge_words(sentence, spans))


class Piper:
    """A Piper VITS voice (`en_US-joe-medium`, CC0)."""

    HOP = 256

    @classmethod
    def of(cls, assets: Path) -> "Piper":
        return cls(assets / "en_US-joe-medium.onnx")

    def __init__(self, model: Path, threads: int = 1) -> None:
        self.session = _session(model, "/Ceil_output_0", threads)
        config = json.loads(Path(f"{model}.json").read_text())
        self.ids: dict[str, list[int]] = config["phoneme_id_map"]
        self.rate: int = config["audio"]["sample_rate"]

    def say(
        self,
        sentence: str,
        speed: float,
        noise: float,
        rng: random.Random,
        *,
        british: bool = False,
        accent: Accent | None = None,
    ) -> Speech:
        ids = [*self.ids["^"], *self.ids["_"]]
        ranges: list[tuple[int, int]] = []

        def push(symbol: str) -> None:
            ids.extend([*self.ids[symbol], *self.ids["_"]])

        for phonemes, pause in pronounce(sentence, british, rng, accent):
            if ranges:
                push(" ")
            first = len(ids)
            for p in phonemes:
                push(p)
            ranges.append((first, len(ids)))
            if pause:
                push(",")
        push(rng.choice([".", ".", "!", ","]))
        ids += self.ids["$"]
        feeds = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([noise, 1 / speed, 0.8], np.float32),
        }
        audio, durations = self.session.run(None, feeds)
        ends = np.cumsum(np.asarray(durations).reshape(-1)) * self.HOP / self.rate
        spans = [(float(ends[a - 1]), float(ends[b - 1])) for a, b in ranges]
        samples = resample(np.asarray(audio, np.float32).reshape(-1), self.rate)
        return Speech(samples, merge_words(sentence, spans))
