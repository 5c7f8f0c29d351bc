"""Audio as every room uses it: 24 kHz mono float32, in frames of 80 ms; files and Opus streams in and out, no model."""

from __future__ import annotations

from .files import pcm16, read_audio, wav_bytes, wav_header, write_wav
from .opus import OpusDecoder, OpusEncoder
from .pcm import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, chunks, frames, resample

__all__ = [
    "FRAME_RATE",
    "FRAME_SIZE",
    "SAMPLE_RATE",
    "OpusDecoder",
    "OpusEncoder",
    "chunks",
    "frames",
    "pcm16",
    "read_audio",
    "resample",
    "wav_bytes",
    "wav_header",
    "write_wav",
]
