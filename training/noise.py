"""Noise for evaluation: seeded, white to brown, at a set ratio to the speech's own power."""

import numpy as np
import torch
from torch import Tensor


def with_noise(samples: Tensor, snr_db: float, seed: int) -> Tensor:
    """(L,) with white, pink or brown noise at `snr_db` below the power of the parts where there is speech."""
    rng = np.random.default_rng(seed)
    slope = rng.choice([0.0, -0.5, -1.0])
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    f = np.fft.rfftfreq(len(samples), 1 / 24000)
    noise = np.fft.irfft(spectrum * np.maximum(f, 30.0) ** slope, n=len(samples))
    speech = samples.numpy()
    loud = speech**2 > 0.01 * (speech**2).max()
    power = (speech[loud] ** 2).mean()
    noise *= np.sqrt(power / (noise**2).mean()) * 10 ** (-snr_db / 20)
    return torch.from_numpy((speech + noise).astype(np.float32))
