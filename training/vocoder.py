"""Takes speech apart into a smooth envelope and what excites it, and puts other excitation through the envelope."""

import torch
from torch import Tensor

from training.synth.speech import SAMPLE_RATE

KEPT = 44
"""Cepstral coefficients of an envelope; pitch lies beyond them up to 545 Hz."""
LOWEST, HIGHEST = 65.0, 420.0
"""Hz between which a pitch is looked for."""


def log_magnitude(power: Tensor) -> Tensor:
    """(B, T, bins) -> its log amplitude, with a floor a long way under each row's loudest bin."""
    return 0.5 * (power + 1e-6 * power.amax((1, 2), keepdim=True) + 1e-9).log()


def cepstrum(logs: Tensor, size: int) -> Tensor:
    """(B, T, size // 2 + 1) log amplitudes -> (B, T, KEPT) of their smooth part."""
    return torch.fft.irfft(logs, n=size)[..., :KEPT]


def _logs(cepstra: Tensor, size: int) -> Tensor:
    """(B, T, KEPT) -> (B, T, size // 2 + 1), complex: log amplitude and, of minimum phase, the phase."""
    return torch.fft.rfft(torch.cat([cepstra[..., :1], 2 * cepstra[..., 1:]], -1), n=size)


def envelope(cepstra: Tensor, size: int) -> Tensor:
    """(B, T, KEPT) -> (B, T, size // 2 + 1) log amplitudes."""
    return _logs(cepstra, size).real


def response(cepstra: Tensor, size: int) -> Tensor:
    """(B, T, KEPT) -> (B, T, size // 2 + 1), complex: a throat's, of minimum phase."""
    return _logs(cepstra, size).exp()


def voicing(power: Tensor, smooth: Tensor, window: Tensor) -> Tensor:
    """(B, T) from 0 to 1: how periodic each column is, from the autocorrelation of its flattened lower part."""
    size = len(window)
    bins = power.shape[-1]
    low = (torch.arange(bins, device=power.device) < 2500 * size / SAMPLE_RATE).to(power.dtype)
    flat = power * (-2 * smooth).exp() * low
    found = torch.fft.irfft(flat, n=size)
    # What the window alone would give.
    own = torch.fft.irfft(torch.fft.rfft(window, n=2 * size).abs().square(), n=2 * size)[:size]
    first, last = int(SAMPLE_RATE / HIGHEST), int(SAMPLE_RATE / LOWEST)
    peaks = found[..., first:last] / found[..., :1].clamp(min=1e-9) * (own[0] / own[first:last])
    return ((peaks.amax(-1) - 0.4) / 0.3).clamp(0, 1)


def pulses(pitch: Tensor) -> Tensor:
    """(B, L) Hz a sample -> (B, L) pulses of unit power at that pitch."""
    phase = torch.cumsum(pitch.double() / SAMPLE_RATE, 1)
    beat = torch.diff(phase.floor(), dim=1, prepend=torch.zeros_like(phase[:, :1])) > 0
    return beat * (SAMPLE_RATE / pitch).sqrt()


def speak(
    cepstra: Tensor, voiced: Tensor, power: Tensor, pitch: Tensor, edge: Tensor, window: Tensor, hop: int
) -> Tensor:
    """(B, T, KEPT) envelopes, (B, T) voicing and powers, (B, L) pitch -> (B, L) speech.

    Above `edge` Hz (B, 1) even a voiced column is half noise.
    """
    size, length = len(window), pitch.shape[1]
    stft = lambda x: torch.stft(x, size, hop, window=window, return_complex=True).transpose(1, 2)  # noqa: E731
    f = torch.arange(size // 2 + 1, device=pitch.device) * (SAMPLE_RATE / size)
    share = voiced[..., None] * (1 - 0.5 * (f > edge)[:, None].to(voiced.dtype))
    tone = stft(pulses(pitch).to(cepstra.dtype))
    noise = stft(torch.randn(pitch.shape, device=pitch.device, dtype=cepstra.dtype))
    columns = (share * tone + (1 - share.square()).clamp(min=0).sqrt() * noise) * response(cepstra, size)
    # The level of each column is the given one, whatever the envelope's is.
    found = columns.abs().square().mean(-1)
    columns = columns * (power / found.clamp(min=1e-12)).sqrt()[..., None]
    return torch.istft(columns.transpose(1, 2), size, hop, window=window, length=length)


def contour(rows: int, length: int, like: Tensor) -> Tensor:
    """(rows, length) Hz: a voice's pitch, now lively, now as flat as a machine's, gliding down or wavering."""
    rand = lambda low, high: low + (high - low) * torch.rand(rows, 1, device=like.device)  # noqa: E731
    centre = torch.log2(rand(80, 260))
    lively = (torch.rand(rows, 1, device=like.device) < 0.7) * rand(0.02, 0.3)
    knots = torch.randn(rows, 1, max(4, length // (SAMPLE_RATE // 4)), device=like.device)
    wave = torch.nn.functional.interpolate(knots, size=length, mode="linear", align_corners=True)[:, 0]
    glide = rand(-0.25, 0.05) * torch.linspace(0, 1, length, device=like.device)[None]
    return 2 ** (centre + lively * wave + glide).clamp(6.0, 8.7)
