"""``moshi-server mic`` as a user runs it: the embedded model, and a sound card that plays a recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from moshi_server.audio import read_audio, resample
from moshi_server.cli.demo import API_KEY, running_worker, samples

SOUND_CARD = """
import os, threading, time
import numpy as np

class PortAudioError(Exception):
    pass

RATE = int(os.environ["CARD_RATE"])

def check_input_settings(*, device, channels, samplerate, dtype):
    if samplerate != RATE:
        raise PortAudioError("Invalid sample rate")

def query_devices(device=None, kind=None):
    card = {"name": "A card", "max_input_channels": 1, "default_samplerate": float(RATE)}
    return card if kind else [card, {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 48000.0}]

class InputStream:
    def __init__(self, *, samplerate, blocksize, channels, dtype, device, callback):
        assert (samplerate, channels, dtype) == (RATE, 1, "float32")
        if device == "none":
            raise PortAudioError("No input device matching 'none'")
        self.size, self.callback, self.over = blocksize, callback, False

    def play(self):
        sound = np.load(os.environ["RECORDING"])
        begin = time.monotonic()
        for index, at in enumerate(range(0, len(sound) - self.size, self.size)):
            if "UNPACED" not in os.environ:
                time.sleep(max(0, begin + index * self.size / RATE - time.monotonic()))
            if self.over:
                return
            self.callback(sound[at : at + self.size, None], self.size, None, None)

    def __enter__(self):
        threading.Thread(target=self.play, daemon=True).start()

    def __exit__(self, *_):
        self.over = True
"""
SPOKEN = next(path for path in samples() if path.suffix == ".wav")
WORDS = SPOKEN.with_suffix(".txt").read_text().strip()


def mic(
    folder: Path, *arguments: str, rate: int = 24_000, card: str = SOUND_CARD, times: int = 1, **environ: str
) -> subprocess.Popen[str]:
    (folder / "sounddevice.py").write_text(card)
    recording = np.tile(resample(np.pad(read_audio(SPOKEN), (0, 72_000)), 24_000, rate), times)
    np.save(folder / "recording.npy", recording)
    return subprocess.Popen(
        [sys.executable, "-m", "moshi_server.cli", "mic", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(folder),
            "RECORDING": str(folder / "recording.npy"),
            "CARD_RATE": str(rate),
            "COLUMNS": "200",
            **environ,
        },
    )


def heard(process: subprocess.Popen[str], words: int) -> str:
    """What it prints until so many words are there, and then until Ctrl+C has ended it."""
    assert process.stdout is not None
    assert process.stderr is not None
    stopper = threading.Timer(90, process.kill)
    stopper.start()
    text = ""
    with process:
        while len(text.split()) < words and (letter := process.stdout.read(1)):
            text += letter
        process.send_signal(signal.SIGINT)
        text += process.stdout.read()
        problems = process.stderr.read()
    stopper.cancel()
    assert (process.returncode, problems) == (0, "")
    return text


@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_the_words_come_from_a_model_in_this_process(tmp_path: Path, rate: int) -> None:
    text = heard(mic(tmp_path, rate=rate), len(WORDS.split()))
    assert text.split() == WORDS.split()
    assert text.endswith("\n")


def test_the_words_come_from_a_server(tmp_path: Path) -> None:
    with running_worker("demo") as url:
        text = heard(mic(tmp_path, "--url", url, "--api-key", API_KEY), len(WORDS.split()))
    assert text.split() == WORDS.split()


@pytest.mark.parametrize(
    ("arguments", "card", "reason"),
    [
        (["--device", "none"], SOUND_CARD, "error: the microphone cannot be used: No input device matching 'none'"),
        ([], "raise ImportError", "error: to hear the microphone, the package sounddevice is needed (install it with"),
        ([], "raise OSError('not found')", "error: to hear the microphone, PortAudio is needed: not found (install"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, arguments: list[str], card: str, reason: str) -> None:
    process = mic(tmp_path, *arguments, card=card)
    out, problems = process.communicate(timeout=90)
    assert (process.returncode, out) == (1, "")
    assert problems.startswith(reason)
    assert len(problems.splitlines()) == 1


def test_the_microphones_are_listed(tmp_path: Path) -> None:
    out, _ = mic(tmp_path, "--list").communicate(timeout=60)
    assert out == "  0  A card (1 channels, 24000 Hz)\n"


def test_a_card_that_knows_no_time_is_not_kept_without_end(tmp_path: Path) -> None:
    process = mic(tmp_path, times=40, UNPACED="1")  # seven minutes of sound at once
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        text = ""
        while len(text.split()) < len(WORDS.split()) and (letter := process.stdout.read(1)):
            text += letter
        process.send_signal(signal.SIGINT)
        text += process.stdout.read()
        problems = process.stderr.read().strip()
    assert process.returncode == 0
    assert problems == "warning: too slow for this microphone; some of what it hears is lost"
    assert text.split()[: len(WORDS.split())] == WORDS.split()
    # Half a minute waits here at most, and ten seconds in the stream; the one that was heard first is on top of that.
    seconds = len(read_audio(SPOKEN)) / 24_000 + 3
    assert len(text.split()) < (2 + 40 / seconds) * len(WORDS.split())
