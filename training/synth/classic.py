"""flite, festival, SVOX pico and joined human prompts: each with its own way to word times."""

import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from training.synth.speech import SAMPLE_RATE, Speech, SpokenWord, merge_words, resample


def _read(path: str) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    return resample(samples, rate)


_PHONES: dict[tuple[str, str], int] = {}


def _flite_phones(word: str, voice: str) -> int:
    """How many phones the voice gives the word said alone."""
    if (word, voice) not in _PHONES:
        out = subprocess.run(
            ["flite", "-voice", voice, "-ps", "-t", word, "-o", "none"], capture_output=True, text=True
        )
        _PHONES[word, voice] = sum(p not in ("pau", "ssil") for p in out.stdout.split())
    return _PHONES[word, voice]


def flite(sentence: str, voice: str, stretch: float, rng: random.Random) -> Speech:
    """Word times: the printed phone ends, dealt out to the words by their phone counts."""
    pitch = {"rms": 95, "awb": 120, "slt": 170}.get(voice, 105) * rng.uniform(0.85, 1.2)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        settings = ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"int_f0_target_mean={pitch:.1f}"]
        command = ["flite", "-voice", voice, *settings, "-psdur", "-t", sentence, "-o", file.name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        samples = _read(file.name)
    phones = [(p.split(":")[0], float(p.split(":")[1])) for p in out.split()]
    spoken: list[tuple[float, float]] = []
    last = 0.0
    for name, end in phones:
        if name not in ("pau", "ssil"):
            spoken.append((last, end))
        last = end
    counts = [_flite_phones(w, voice) for w in sentence.replace(",", "").split()]
    if sum(counts) != len(spoken):
        raise ValueError(f"flite said {len(spoken)} phones, not {sum(counts)}: {sentence}")
    spans = []
    at = 0
    for count in counts:
        spans.append((spoken[at][0], spoken[at + count - 1][1]))
        at += count
    return Speech(samples, merge_words(sentence, spans))


class Festival:
    """A festival process that is spoken to in Scheme; it gives each word's times itself."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, sentence: str, voice: str, stretch: float) -> Speech:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            self.process.stdin.write(
                f"""(voice_{voice}) (Parameter.set 'Duration_Stretch {stretch:.3f})
                (set! u (utt.synth (Utterance Text "{sentence}"))) (utt.save.wave u "{file.name}" 'riff)
                (mapcar (lambda (w) (format t "W %s %f %f\\n" (item.name w)
                  (item.feat w "word_start") (item.feat w "word_end"))) (utt.relation.items u 'Word))
                (format t "DONE\\n") (fflush nil)\n"""
            )
            self.process.stdin.flush()
            spans = []
            for line in self.process.stdout:
                if line.startswith("DONE"):
                    break
                if line.startswith("W "):
                    _, name, start, end = line.split()
                    if name.isalpha():
                        spans.append((float(start), float(end)))
            return Speech(_read(file.name), merge_words(sentence, spans))


def _coarse(sentence: str, samples: np.ndarray) -> list[SpokenWord]:
    """Words spread evenly: for engines that tell no times and are only scored for their words."""
    words = sentence.replace(",", "").split()
    step = len(samples) / SAMPLE_RATE / len(words)
    return [SpokenWord(w, i * step, (i + 1) * step) for i, w in enumerate(words)]


def pico(sentence: str, language: str, rate: int, pitch: int) -> Speech:
    """SVOX pico; its words carry no times (evenly spread ones stand in)."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        text = f'<speed level="{rate}"><pitch level="{pitch}">{sentence}</pitch></speed>'
        subprocess.run(["pico2wave", "-l", language, "-w", file.name, text], check=True)
        samples = _read(file.name)
    return Speech(samples, _coarse(sentence, samples))


class Prompts:
    """Human recordings of single numbers (Asterisk's English prompts), joined with short gaps: evaluation only."""

    FOLDER = Path("/usr/share/asterisk/sounds/en_US_f_Allison")

    def __init__(self) -> None:
        from training.vocabulary import DIGITS, TEENS, TENS

        names = {w: f"digits/{i}" for i, w in enumerate([*DIGITS, *TEENS])}
        names |= {w: f"digits/{20 + 10 * i}" for i, w in enumerate(TENS)}
        names |= {
            "hundred": "digits/hundred",
            "thousand": "digits/thousand",
            "oh": "digits/oh",
            "minus": "digits/minus",
        }
        names |= {"and": "vm-and", "point": "digits/point"}
        self.clips: dict[str, np.ndarray] = {}
        for word, name in names.items():
            path = self.FOLDER / f"{name}.wav"
            if path.exists():
                clip = _read(str(path))
                on = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
                self.clips[word] = clip[max(0, on[0] - 480) : on[-1] + 480]

    def say(self, sentence: str, rng: random.Random) -> Speech:
        parts: list[np.ndarray] = []
        words: list[SpokenWord] = []
        at = 0
        for token in sentence.split():
            word = token.rstrip(",")
            if word not in self.clips:
                raise ValueError(f"no prompt for {word}")
            gap = np.zeros(
                int(SAMPLE_RATE * (rng.uniform(0.02, 0.12) + (0.3 if token.endswith(",") else 0))), np.float32
            )
            clip = self.clips[word]
            words.append(SpokenWord(word, at / SAMPLE_RATE, (at + len(clip)) / SAMPLE_RATE))
            parts += [clip, gap]
            at += len(clip) + len(gap)
        return Speech(np.concatenate(parts), words)
