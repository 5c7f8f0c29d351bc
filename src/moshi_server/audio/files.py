"""Audio files in, wav out: wav, mp3, flac, Ogg (Vorbis, Opus) and a few more, to 24 kHz mono float32."""

from __future__ import annotations

import io
import math
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import sphn
from numpy.typing import NDArray

from ..errors import AudioError
from . import ogg
from .opus import OpusDecoder, codec_call
from .pcm import SAMPLE_RATE, mono, resample

_HINT: Final = "wav, mp3, flac and ogg (Vorbis or Opus) are read; convert others with: ffmpeg -i INPUT OUTPUT.wav"
MAX_SECONDS: Final = 4 * 3600.0
"""How long a recording may be by default: at 24 kHz, 1.4 GB of samples."""
_VALUES_PER_SECOND: Final = 2 * 48_000
"""What a second of a recording holds at most while it counts as one: 48 kHz in stereo."""
_PADDING_SECONDS: Final = 0.5
"""What encoders may add at the ends, which is cut off once decoded."""
_FLAC: Final = b"fLaC"
_MP3_DECODER_DELAY: Final = 529
"""Samples by which every MP3 decoder lags, on top of what the encoder declares."""


def read_audio(source: str | os.PathLike[str] | bytes, *, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """A whole recording as 24 kHz mono float32 of shape (samples,), full scale at 1.

    Any sample rate, bit depth (float too) and number of channels; channels are averaged. The length is that of the
    recording, without what MP3, Vorbis and Opus encoders add at the ends.

    Args:
        source: a path, or the bytes of the file.
        max_seconds: how long the recording may be, since a few bytes can hold hours of silence; no more than that is
            ever decoded, whatever the file says of itself. Beyond 48 kHz in stereo it is shorter in proportion.
            ``math.inf`` for a file that is trusted.

    Raises:
        AudioError: the file cannot be read, holds no audio that we decode, or is too long.
    """
    if isinstance(source, bytes):
        return _read_bytes(source, max_seconds)
    path = Path(source)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if _is_opus(head):
                return _read_opus(head + file.read(), str(path), max_seconds)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror or error}") from None
    return _read_file(path, head, str(path), max_seconds)


def wav_bytes(pcm: NDArray[np.float32], sample_rate: int = SAMPLE_RATE) -> bytes:
    """A mono 16-bit wav of float32 samples (samples,); what is beyond full scale is clipped."""
    data = pcm16(pcm)
    return wav_header(len(data), sample_rate) + data


def wav_header(size: int | None = None, sample_rate: int = SAMPLE_RATE) -> bytes:
    """The 44 bytes before a mono 16-bit wav's samples.

    Args:
        size: bytes of samples; None if it is not known yet, which is written as the largest number there is.
        sample_rate: samples a second.
    """
    unknown = 0xFFFF_FFFF
    whole, data = (unknown, unknown) if size is None else (size + 36, size)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", data)


def pcm16(pcm: NDArray[np.float32]) -> bytes:
    """Float32 samples (samples,) as 16-bit little-endian ones; what is beyond full scale is clipped."""
    return (np.clip(pcm, -1, 1) * 32767).round().astype("<i2").tobytes()


def write_wav(path: str | os.PathLike[str], pcm: NDArray[np.float32], sample_rate: int = SAMPLE_RATE) -> None:
    """Write `wav_bytes` to a file."""
    Path(path).write_bytes(wav_bytes(pcm, sample_rate))


def _read_bytes(data: bytes, max_seconds: float) -> NDArray[np.float32]:
    if _is_opus(data):
        return _read_opus(data, "the audio", max_seconds)
    # sphn reads files only.
    with tempfile.TemporaryDirectory(prefix="moshi-server-") as folder:
        path = Path(folder) / "audio"
        path.write_bytes(data)
        return _read_file(path, data[:4096], "the audio", max_seconds)


def _read_file(path: Path, head: bytes, name: str, max_seconds: float) -> NDArray[np.float32]:
    if not head:
        raise AudioError(f"{name} is empty", hint=_HINT)
    reader = _codec(lambda: sphn.FileReader(str(path)), path, name)
    rate, most, asked = reader.sample_rate, max_seconds, math.inf
    if math.isinf(most):
        samples = _codec(reader.decode_all, path, name)
    else:
        most *= min(1.0, _VALUES_PER_SECOND / (rate * reader.channels))
        asked = most + 2 * _PADDING_SECONDS
        # Of these two it is believed early; others may say anything, such as a wav from a pipe.
        if head.startswith((_FLAC, ogg.CAPTURE)) and reader.duration_sec > most + _PADDING_SECONDS:
            raise _too_long(name, most)
        samples = _codec(lambda: reader.decode(0.0, asked), path, name)
    decoded = samples.shape[1]
    start, length = _audible(path, head, decoded)
    if length > most * rate or decoded >= (asked - 0.01) * rate:
        raise _too_long(name, most)
    pcm = mono(samples[:, start : start + length])
    del samples
    if not np.isfinite(pcm).all():
        raise AudioError(f"{name} holds samples that are not numbers")
    return resample(pcm, rate)


def _codec(call: Callable[[], Any], path: Path, name: str) -> Any:
    try:
        return codec_call(call, f"{name} cannot be decoded")
    except AudioError as error:
        # sphn names the file once more.
        raise AudioError(error.message.replace(f'"{path}": ', ""), hint=_HINT) from None


def _audible(path: Path, head: bytes, decoded: int) -> tuple[int, int]:
    """Which of the decoded samples are the recording's own: the first, and how many."""
    if head.startswith(ogg.CAPTURE):
        return 0, min(decoded, _last_granule(path) or decoded)
    delay, padding = _mp3_gap(head, path)
    if delay is None:
        return 0, decoded
    return delay + _MP3_DECODER_DELAY, max(0, decoded - delay - padding)


def _mp3_gap(head: bytes, path: Path) -> tuple[int | None, int]:
    """What a LAME tag says the encoder added before and after, in samples; None without such a tag."""
    if head.startswith(b"ID3") and len(head) > 10:
        size = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
        with path.open("rb") as file:
            file.seek(10 + size)
            head = file.read(512)
    # A frame header, then the tag at an offset that depends on version and channels, then LAME's part at a fixed one.
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None, 0
    version1, single = head[1] & 0x08, head[3] >> 6 == 3
    at = 4 + ((17 if single else 32) if version1 else (9 if single else 17))
    if head[at : at + 4] not in (b"Xing", b"Info") or len(head) < at + 144:
        return None, 0
    # The optional fields before it are there or not as these bits say.
    flags = head[at + 7]
    lame = at + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    if not head[lame : lame + 4].isalnum():
        return None, 0
    gap = int.from_bytes(head[lame + 21 : lame + 24], "big")
    return gap >> 12, gap & 0xFFF


def _last_granule(path: Path) -> int:
    """The position at the end of an Ogg file, in samples; 0 if there is none."""
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 70_000))
        tail = file.read()
    at = tail.rfind(ogg.CAPTURE)
    return max(0, int.from_bytes(tail[at + 6 : at + 14], "little", signed=True)) if at >= 0 else 0


def _is_opus(head: bytes) -> bool:
    return head.startswith(ogg.CAPTURE) and b"OpusHead" in head[: ogg.HEADER_SIZE + 255 + 8]


def _read_opus(data: bytes, name: str, max_seconds: float) -> NDArray[np.float32]:
    parts, samples = [np.zeros(0, dtype=np.float32)], 0
    try:
        for pcm in OpusDecoder().decode(data):
            samples += len(pcm)
            if samples > max_seconds * SAMPLE_RATE:
                break
            parts.append(pcm)
        else:
            return np.concatenate(parts)
    except AudioError as error:
        raise AudioError(f"{name} cannot be decoded: {error.message}", hint=error.hint or _HINT) from None
    raise _too_long(name, max_seconds)


def _too_long(name: str, most: float) -> AudioError:
    limit = f"{most / 3600:.3g} h" if most >= 3600 else f"{most:.4g} s"
    return AudioError(
        f"{name} is longer than {limit}", hint="cut it, as with: ffmpeg -i INPUT -f segment -segment_time 3600 %d.wav"
    )
