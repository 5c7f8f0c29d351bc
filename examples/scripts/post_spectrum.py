"""`PyPost` without a model: ten seconds of a voice to the energy of 16 bands, four times a second.

[modules.spectrum]
type = "PyPost"
path = "/api/spectrum"
script = "examples/scripts/post_spectrum.py"
[modules.spectrum.py]
bands = 16

curl -H 'kyutai-api-key: public_token' --data-binary @voice.wav http://127.0.0.1:8080/api/spectrum > voice.msgpack
"""

import numpy as np


class Spectrum:
    def __init__(self, bands: int = 16) -> None:
        self.bands = bands

    def run_one(self, pcm: np.ndarray) -> np.ndarray:
        """Float32 (240000,) at 24 kHz, whatever was sent, to float32 of one to three dimensions."""
        power = np.abs(np.fft.rfft(pcm.reshape(40, 6000))) ** 2  # (pieces, frequencies)
        bands = [piece.mean(axis=1) for piece in np.array_split(power, self.bands, axis=1)]
        return np.log10(np.stack(bands) + 1e-9).astype(np.float32)[None]  # (1, bands, pieces)


def init(config: dict) -> Spectrum:
    return Spectrum(**config)
