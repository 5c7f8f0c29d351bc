"""Write one shard of speech: `python -m training.synthesize --engine espeak --minutes 60 --seed 1 --out DIR`."""

import argparse
import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

from training import accents, sentences, voices
from training.shard import ShardWriter, tighten
from training.synth.speech import ASSETS, Speech


@dataclasses.dataclass(frozen=True)
class Split:
    """What is spoken, and by whom."""

    held_out: bool  # voices
    evaluation: bool  # sentences
    mix: list[tuple[sentences.Kind, float]]


SPLITS = {
    "train": Split(False, False, sentences.TRAIN_MIX),
    "second": Split(False, False, sentences.SECOND_MIX),
    "strange": Split(False, False, sentences.STRANGE_MIX),
    "seen": Split(False, True, sentences.NUMBER_MIX),
    "unseen": Split(True, True, sentences.NUMBER_MIX),
    "seen-mixed": Split(False, True, sentences.MIXED_MIX),
    "unseen-mixed": Split(True, True, sentences.MIXED_MIX),
    "seen-everyday": Split(False, True, sentences.EVERYDAY_MIX),
    "unseen-everyday": Split(True, True, sentences.EVERYDAY_MIX),
    "outside": Split(True, True, sentences.OUTSIDE_MIX),
    "outside-dev": Split(True, True, sentences.OUTSIDE_DEV_MIX),
}
Speak = Callable[[str, random.Random, Split], tuple[str, Speech]]


def _kokoro(assets: Path) -> Speak:
    from training.synth.neural import Kokoro

    device = os.environ.get("TRAINING_DEVICE", "cpu")  # such as cuda:0
    engine = Kokoro.of(assets, device)

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = voices.pick_kokoro(rng, split.held_out, 0.0 if split.evaluation else 0.25)
        if split.evaluation:
            return voice, engine.say(text, voice, rng.uniform(0.8, 1.35), rng)
        british = voice.startswith("b") or rng.random() < 0.4
        return voice, engine.say(text, voice, rng.uniform(0.75, 1.4), rng, british=british, accent=accents.draw(rng))

    return speak


def _piper(assets: Path) -> Speak:
    from training.synth.neural import Piper

    engine = Piper.of(assets)

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        speed, noise = rng.uniform(0.8, 1.4), rng.uniform(0.4, 0.9)
        if split.evaluation:
            return "joe", engine.say(text, speed, noise, rng)
        return "joe", engine.say(text, speed, noise, rng, british=rng.random() < 0.5, accent=accents.draw(rng))

    return speak


def _hibari(assets: Path) -> Speak:
    from training.synth.neural import Hibari

    engine = Hibari.installed()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        speech = engine.say(
            text,
            rng.uniform(0.75, 1.4),
            rng,
            british=rng.random() < 0.5,
            accent=accents.draw(rng),
            pitch=2 ** rng.uniform(-1.1, 0.4),
            lively=rng.choice([0.0, 1.0, rng.random()]),
        )
        return "heart", speech

    return speak


def _espeak(assets: Path) -> Speak:
    from training.synth.espeak import Espeak

    engine = Espeak()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = voices.pick_espeak(rng, split.held_out)
        return voice, engine.say(
            text, voice, rate=rng.randint(115, 250), pitch=rng.randint(25, 75), span=rng.randint(20, 80)
        )

    return speak


def _mbrola(assets: Path) -> Speak:
    from training.synth.espeak import Espeak

    engine = Espeak()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = rng.choice(voices.MBROLA)
        return voice, engine.say(text, voice, rate=rng.randint(125, 200), pitch=rng.randint(40, 60), span=50)

    return speak


def _joined(assets: Path) -> Speak:
    from training.synth.espeak import Espeak
    from training.synth.joined import Joined, unevenness
    from training.synth.neural import pronounce

    engine = Joined(assets / "donors")
    espeak = Espeak()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = rng.choice(list(engine.donors))
        british, pitch = voices.is_british(voice), 2 ** rng.uniform(6.4, 7.9)
        if rng.random() < 0.6:
            timeline, words = espeak.timeline(text, "en-gb-x-rp" if british else "en-us", rng.randint(115, 210))
            return voice, engine.say_timed(timeline, words, voice, pitch, rng, unevenness(rng))
        ways = [way for way, _ in pronounce(text, british, rng)]
        return voice, engine.say(text, voice, ways, rng.uniform(0.7, 1.35), pitch, rng, unevenness(rng))

    return speak


def _rhvoice(assets: Path) -> Speak:
    from training.synth.rhvoice import RHVoice

    engine = RHVoice()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = rng.choice(voices.RHVOICE)
        return voice, engine.say(text, voice, pitch=rng.uniform(0.8, 1.3))

    return speak


def _flite(assets: Path) -> Speak:
    from training.synth.classic import flite

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        names = (
            voices.HELD_OUT["flite"]
            if split.held_out
            else [v for v in voices.FLITE if v not in voices.HELD_OUT["flite"]]
        )
        voice = rng.choice(names)
        return voice, flite(text, voice, stretch=rng.uniform(0.75, 1.25), rng=rng)

    return speak


def _festival(assets: Path) -> Speak:
    from training.synth.classic import Festival

    engine = Festival()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        out = voices.HELD_OUT["festival"]
        voice = rng.choice(out if split.held_out else [v for v in voices.FESTIVAL if v not in out])
        return voice, engine.say(text, voice, stretch=rng.uniform(0.75, 1.25))

    return speak


def _pico(assets: Path) -> Speak:
    from training.synth.classic import pico

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        voice = rng.choice(voices.PICO)
        return voice, pico(text, voice, rate=rng.randint(80, 130), pitch=rng.randint(85, 120))

    return speak


def _asterisk(assets: Path) -> Speak:
    from training.synth.classic import Prompts

    engine = Prompts()

    def speak(text: str, rng: random.Random, split: Split) -> tuple[str, Speech]:
        return "allison", engine.say(text, rng)

    return speak


ENGINES: dict[str, Callable[[Path], Speak]] = {
    "espeak": _espeak,
    "mbrola": _mbrola,
    "flite": _flite,
    "rhvoice": _rhvoice,
    "joined": _joined,
    "festival": _festival,
    "piper": _piper,
    "hibari": _hibari,
    "kokoro": _kokoro,
    "pico": _pico,
    "asterisk": _asterisk,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop at this much speech")
    parser.add_argument("--count", type=int, default=10**9, help="or at this many utterances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    args = parser.parse_args()
    speak = ENGINES[args.engine](args.assets)
    split = SPLITS[args.split]
    writer = ShardWriter(args.out / f"{args.split}-{args.engine}-{args.seed}")
    while writer.seconds < args.minutes * 60 and writer.count < args.count:
        # One generator an utterance, so that a resumed shard goes on as it would have.
        tries = 0
        while True:
            rng = random.Random(f"{args.split}/{args.engine}/{args.seed}/{writer.count}/{tries}")
            text = sentences.sentence(rng, evaluation=split.evaluation, mix=split.mix)
            tries += 1
            try:
                voice, speech = speak(text, rng, split)
                speech = tighten(speech)
                break
            except ValueError as error:
                print(f"skipped: {error}", flush=True)
        writer.add(args.engine, voice, text, speech)
    writer.close()
    print(f"{args.split} {args.engine}: {writer.count} utterances, {writer.seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
