"""Speech taken apart and spoken again keeps its envelope and its power, at whatever pitch is asked for."""

import math

import torch
from training.synth.speech import SAMPLE_RATE

from training import vocoder

SIZE, HOP = 1024, 256
WINDOW = torch.hann_window(SIZE)


def columns(x: torch.Tensor) -> torch.Tensor:
    return torch.stft(x, SIZE, HOP, window=WINDOW, return_complex=True).transpose(1, 2)


def buzz(pitch: float, seconds: float = 1.0) -> torch.Tensor:
    """Pulses through a resonance at 1 kHz."""
    torch.manual_seed(0)
    source = vocoder.pulses(torch.full((1, int(seconds * SAMPLE_RATE)), pitch))
    t = torch.arange(400) / SAMPLE_RATE
    ring = torch.exp(-t * 300) * torch.sin(2 * math.pi * 1000 * t)
    return (
        0.1 * torch.nn.functional.conv1d(source[None], ring.flip(0)[None, None], padding=399)[0, :, : source.shape[1]]
    )


def taken_apart(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    power = columns(x).abs().square()
    cepstra = vocoder.cepstrum(vocoder.log_magnitude(power), SIZE)
    voiced = vocoder.voicing(power, vocoder.envelope(cepstra, SIZE), WINDOW)
    return cepstra, voiced, power.mean(-1)


def test_pulses_are_voiced_and_noise_is_not() -> None:
    torch.manual_seed(1)
    _, voiced, _ = taken_apart(torch.cat([buzz(120.0), buzz(220.0)]))
    _, unvoiced, _ = taken_apart(torch.randn(1, SAMPLE_RATE))
    assert voiced[:, 4:-4].min() > 0.8
    assert unvoiced.mean() < 0.1


def test_another_pitch_keeps_the_resonance_and_the_power() -> None:
    speech = buzz(110.0)
    cepstra, voiced, power = taken_apart(speech)
    pitch = torch.full((1, speech.shape[1]), 200.0)
    again = vocoder.speak(cepstra, voiced, power, pitch, torch.tensor([[20_000.0]]), WINDOW, HOP)
    assert again.shape == speech.shape
    ratio = float(again[:, 2000:-2000].square().mean() / speech[:, 2000:-2000].square().mean())
    assert 0.5 < ratio < 2
    spectrum = torch.fft.rfft(again[0] * torch.hann_window(again.shape[1])).abs()
    strongest = int(spectrum.argmax()) * SAMPLE_RATE / again.shape[1]
    assert abs(strongest - 1000) < 110
    # Its harmonics are the new pitch's: at 200 Hz and not at 110.
    at = lambda hz: float(spectrum[round(hz * again.shape[1] / SAMPLE_RATE)])  # noqa: E731
    assert at(800) > 10 * at(770)


def test_a_response_has_its_envelope() -> None:
    torch.manual_seed(2)
    cepstra = torch.randn(1, 3, vocoder.KEPT) * 0.3
    torch.testing.assert_close(vocoder.response(cepstra, SIZE).abs().log(), vocoder.envelope(cepstra, SIZE))


def test_pitches_are_of_voices() -> None:
    torch.manual_seed(3)
    pitch = vocoder.contour(64, SAMPLE_RATE, torch.zeros(1))
    assert pitch.shape == (64, SAMPLE_RATE)
    assert pitch.min() > 60
    assert pitch.max() < 450
    steady = (pitch.amax(1) / pitch.amin(1)) < 1.35
    assert 5 < int(steady.sum()) < 64  # some are a machine's
