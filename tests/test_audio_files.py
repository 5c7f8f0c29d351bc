"""Recordings of every kind to 24 kHz mono: the right sound, of exactly the right length, or a sentence."""

from __future__ import annotations

import io
import math
import resource
import shutil
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import sphn

from moshi_server.audio import (
    FRAME_SIZE,
    SAMPLE_RATE,
    OpusEncoder,
    chunks,
    frames,
    read_audio,
    resample,
    wav_bytes,
    write_wav,
)
from moshi_server.errors import AudioError

ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program to make its input")


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def riff(kind: int, bits: int, rate: int, data: np.ndarray) -> bytes:
    """A wav of interleaved data (samples, channels), any sample type."""
    channels = data.shape[1]
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    body = data.tobytes()
    return (
        b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
        + b"data" + struct.pack("<I", len(body)) + body
    )  # fmt: skip


def int24(pcm: np.ndarray) -> np.ndarray:
    whole = (pcm * (2**23 - 1)).astype("<i4")
    return whole.view(np.uint8).reshape(*pcm.shape, 4)[..., :3]


SAMPLE_TYPES = {
    "u8": (1, 8, lambda x: (x * 127 + 128).astype(np.uint8), 0.012),
    "s16": (1, 16, lambda x: (x * 32767).astype("<i2"), 1e-4),
    "s24": (1, 24, int24, 1e-5),
    "s32": (1, 32, lambda x: (x.astype(np.float64) * (2**31 - 1)).astype("<i4"), 1e-6),
    "f32": (3, 32, lambda x: x.astype("<f4"), 1e-7),
    "f64": (3, 64, lambda x: x.astype("<f8"), 1e-7),
}


@pytest.mark.parametrize("name", SAMPLE_TYPES)
def test_wav_of_any_sample_type(name, tmp_path):
    kind, bits, convert, error = SAMPLE_TYPES[name]
    pcm = tone(SAMPLE_RATE)
    file = riff(kind, bits, SAMPLE_RATE, convert(pcm[:, None]))
    got = read_audio(file)
    assert got.dtype == np.float32
    assert got.shape == pcm.shape
    assert np.abs(got - pcm).max() <= error
    (tmp_path / "named.wav").write_bytes(file)
    assert np.array_equal(read_audio(tmp_path / "named.wav"), got)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("samples", [1, 12345])
def test_any_rate_gives_the_exact_length(rate, samples):
    got = read_audio(riff(3, 32, rate, tone(rate, 2)[:samples, None]))
    assert len(got) == math.floor(samples * SAMPLE_RATE / rate + 0.5)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_resampling_keeps_the_sound_in_place(rate):
    got, wanted = read_audio(riff(3, 32, rate, tone(rate)[:, None])), tone(SAMPLE_RATE)
    middle = slice(1000, -1000)
    assert np.abs(got[middle] - wanted[middle]).max() < 2e-3


def test_channels_are_averaged():
    left, right = tone(SAMPLE_RATE, hertz=300), tone(SAMPLE_RATE, hertz=500)
    got = read_audio(riff(3, 32, SAMPLE_RATE, np.stack([left, right], axis=1)))
    assert np.allclose(got, (left + right) / 2, atol=1e-6)
    six = read_audio(riff(3, 32, SAMPLE_RATE, np.stack([left] * 6, axis=1)))
    assert np.allclose(six, left, atol=1e-6)


def test_ogg_opus_files_by_path_and_by_bytes(tmp_path):
    pcm = tone(SAMPLE_RATE)[:20_001]
    encoder = OpusEncoder()
    data = encoder.encode(pcm) + encoder.finish()
    (tmp_path / "a.ogg").write_bytes(data)
    got = read_audio(tmp_path / "a.ogg")
    assert len(got) == len(pcm)
    assert np.array_equal(got, read_audio(data))
    assert np.corrcoef(got[3000:], pcm[3000:])[0, 1] > 0.95


def test_opus_written_by_sphn(tmp_path):
    sphn.write_opus(str(tmp_path / "a.opus"), tone(48_000, 1.5), 48_000)
    assert len(read_audio(tmp_path / "a.opus")) == pytest.approx(1.5 * SAMPLE_RATE, abs=160)


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.flac", []),
        ("a.mp3", ["-b:a", "128k"]),
        ("mono.mp3", ["-ac", "1", "-ar", "16000"]),
        ("low.mp3", ["-ar", "22050", "-q:a", "6"]),
        ("tagged.mp3", ["-metadata", "title=" + "x" * 3000]),
        ("a.ogg", ["-c:a", "libvorbis"]),
        ("a.opus", ["-c:a", "libopus"]),
        ("long-pages.opus", ["-c:a", "libopus", "-b:a", "8k", "-frame_duration", "60", "-page_duration", "20000000"]),
        ("a.aiff", []),
    ],
)
def test_compressed_files_have_the_length_and_place_of_the_original(name, options, tmp_path):
    pcm = tone(44_100, 7.0) * (np.arange(7 * 44_100) % 44_100 < 30_000)
    (tmp_path / "in.wav").write_bytes(riff(3, 32, 44_100, np.stack([pcm, pcm], axis=1).astype("<f4")))
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", tmp_path / "in.wav", *options, tmp_path / name], check=True, timeout=60
    )
    wanted, got = read_audio(tmp_path / "in.wav"), read_audio(tmp_path / name)
    assert abs(len(got) - len(wanted)) <= 1
    n = min(len(got), len(wanted)) - 300
    match = {lag: float(np.corrcoef(wanted[150:n], got[150 + lag : n + lag])[0, 1]) for lag in range(-100, 101)}
    best = max(match, key=match.__getitem__)
    assert match[best] > 0.98
    assert abs(best) <= 12


@ffmpeg
def test_a_wav_from_a_pipe_has_no_length_and_is_read_whole(tmp_path):
    (tmp_path / "in.wav").write_bytes(wav_bytes(tone(SAMPLE_RATE)))
    piped = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", tmp_path / "in.wav", "-f", "wav", "-"], check=True, capture_output=True
    ).stdout
    assert b"\xff\xff\xff\xff" in piped[:100]
    assert len(read_audio(piped)) == SAMPLE_RATE


def test_a_file_cut_short_gives_what_there_is():
    data = wav_bytes(tone(SAMPLE_RATE))
    assert len(read_audio(data[: len(data) // 2])) == (len(data) // 2 - 44) // 2


def test_a_recording_of_no_samples():
    assert read_audio(wav_bytes(tone(SAMPLE_RATE)[:0])).shape == (0,)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty"),
        (b"hello, this is no sound" * 10, "cannot be decoded"),
        (b"RIFF\x00\x00", "cannot be decoded"),
        (b"OggS" + bytes(200), "cannot be decoded"),
        (b"OggS" + bytes(24) + b"OpusHead", "cannot be decoded"),
        (riff(3, 32, SAMPLE_RATE, np.full((100, 1), np.nan, dtype="<f4")), "not numbers"),
    ],
)
def test_what_cannot_be_read_is_said(data, complaint):
    with pytest.raises(AudioError, match=complaint) as caught:
        read_audio(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "honest"),
    [("long.flac", True), ("long.flac", False), ("long.ogg", True), ("long.opus", True), ("long.mp3", True)],
)
@ffmpeg
def test_a_small_file_that_holds_very_much_is_refused_before_it_is_decoded(name, honest, tmp_path):
    codec = {"ogg": ["-c:a", "libvorbis"], "opus": ["-c:a", "libopus", "-b:a", "6k"]}.get(name.rpartition(".")[2], [])
    # Half an hour of FLAC would be 700 MB; the others are slow to make.
    seconds = "1800" if name.endswith("flac") else "60"
    source = ["-f", "lavfi", "-i", f"anullsrc=r=48000:cl=stereo:d={seconds}"]
    subprocess.run(["ffmpeg", "-v", "error", *source, *codec, tmp_path / name], check=True, timeout=60)
    data = bytearray((tmp_path / name).read_bytes())
    if not honest:
        data[21] &= 0xF0  # the number of samples, 36 bits: ten seconds
        data[22:26] = (480_000).to_bytes(4, "big")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source_of_it in (bytes(data), tmp_path / name):
        with pytest.raises(AudioError, match=r"is longer than 20 s") as caught:
            read_audio(source_of_it, max_seconds=20)
        assert "ffmpeg" in caught.value.hint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_a_recording_of_just_the_longest_is_read_and_one_sample_more_is_not():
    pcm = tone(SAMPLE_RATE, 2.0)
    encoder = OpusEncoder()
    for data in (wav_bytes(pcm), encoder.encode(pcm) + encoder.finish()):
        assert len(read_audio(data, max_seconds=2)) == len(pcm)
        assert len(read_audio(data, max_seconds=math.inf)) == len(pcm)
        with pytest.raises(AudioError, match=r"the audio is longer than 2 s"):
            read_audio(data, max_seconds=2 - 1 / SAMPLE_RATE)
    with pytest.raises(AudioError, match="longer than 1 s"):
        read_audio(wav_bytes(tone(SAMPLE_RATE, 60.0)), max_seconds=1)


def test_many_channels_count_as_more_seconds():
    eight = riff(1, 16, 48_000, np.zeros((48_000 * 2, 8), dtype="<i2"))
    assert len(read_audio(eight, max_seconds=8)) == 2 * SAMPLE_RATE
    with pytest.raises(AudioError, match="longer than"):
        read_audio(eight, max_seconds=7)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(AudioError, match=r"none\.wav: No such file"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="directory"):
        read_audio(tmp_path)


def test_a_text_file_names_itself_and_says_how_to_convert(tmp_path):
    (tmp_path / "notes.wav").write_text("hello")
    with pytest.raises(AudioError, match=r"notes\.wav cannot be decoded") as caught:
        read_audio(tmp_path / "notes.wav")
    assert "ffmpeg -i" in caught.value.hint


def test_wav_out_is_clipped_and_comes_back(tmp_path):
    pcm = np.array([0, 0.5, -0.5, 2, -2], dtype=np.float32)
    write_wav(tmp_path / "a.wav", pcm, 16_000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
    with wave.open(io.BytesIO(wav_bytes(pcm))) as file:
        assert np.frombuffer(file.readframes(5), "<i2").tolist() == [0, 16384, -16384, 32767, -32767]


def test_frames_and_chunks_cover_everything_once():
    pcm = np.arange(2 * FRAME_SIZE + 7, dtype=np.float32)
    whole = list(frames(pcm))
    assert [len(frame) for frame in whole] == [FRAME_SIZE] * 3
    joined = np.concatenate(whole)
    assert np.array_equal(joined[: len(pcm)], pcm)
    assert not joined[len(pcm) :].any()
    assert [len(chunk) for chunk in chunks(pcm, 1000)] == [1000, 1000, 1000, 847]
    assert list(frames(pcm[:0])) == []


def test_resampling_to_another_rate():
    assert len(resample(tone(SAMPLE_RATE), SAMPLE_RATE, 16_000)) == 16_000


def test_nothing_here_needs_torch():
    code = "import sys, moshi_server.audio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_path_may_be_a_string(tmp_path: Path):
    write_wav(tmp_path / "a.wav", tone(SAMPLE_RATE))
    assert len(read_audio(str(tmp_path / "a.wav"))) == SAMPLE_RATE
