"""Renders rows of training audio on the device and makes them worse: voice, level, colour, room, noise; batched."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from training import vocoder
from training.synth.speech import SAMPLE_RATE

SIZE, HOP = 1024, 256
"""Samples of a column in which voices are changed, and between two."""


def render(audio: Tensor, segments: Tensor, length: int) -> Tensor:
    """(B, length) from the long int16 array: each segment read at its own speed, by cubic interpolation."""
    rows = len(segments)
    source, start, end, speed, gain = segments.unbind(-1)
    t = torch.arange(length, device=audio.device, dtype=torch.float64).expand(rows, length).contiguous()
    which = torch.searchsorted(start.contiguous(), t, right=True) - 1
    inside = which >= 0
    which = which.clamp(min=0)
    pick = lambda x: torch.gather(x, 1, which)  # noqa: E731
    inside &= t < pick(end)
    position = (pick(source) + (t - pick(start)) * pick(speed)) * inside
    whole = position.floor().long()
    f = (position - whole).float()
    p = [audio[(whole + k).clamp(0, len(audio) - 1)].float() for k in (-1, 0, 1, 2)]
    value = p[1] + 0.5 * f * (
        p[2] - p[0] + f * (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3] + f * (3 * (p[1] - p[2]) + p[3] - p[0]))
    )
    return value * (inside * pick(gain)).float() / 32768


def _uniform(rows: int, low: float, high: float, like: Tensor) -> Tensor:
    return torch.rand(rows, 1, device=like.device) * (high - low) + low


def _chance(rows: int, p: float, like: Tensor) -> Tensor:
    return (torch.rand(rows, 1, device=like.device) < p).float()


def _colour(rows: int, frequencies: Tensor, strength: float, like: Tensor) -> Tensor:
    """Random smooth gain curves (rows, bins): a tilt, a few broad bumps, and sometimes a low and a high cut."""
    octave = torch.log2(frequencies.clamp(min=50.0) / 1000)[None]
    db = strength * _uniform(rows, -4, 4, like) * octave
    for _ in range(3):
        centre = _uniform(rows, -3, 3.2, like)
        width = _uniform(rows, 0.3, 1.5, like)
        db = db + strength * _uniform(rows, -9, 9, like) * torch.exp(-(((octave - centre) / width) ** 2))
    f = frequencies[None]
    low = 60 * 2 ** _uniform(rows, 0, 2.7, like)
    db = db - _chance(rows, 0.4, like) * 24 * torch.log2((low / f.clamp(min=20)).clamp(min=1))
    high = SAMPLE_RATE / 2 * 2 ** (-_uniform(rows, 0.1, 1.9, like))
    db = db - _chance(rows, 0.4, like) * 60 * torch.log2((f / high).clamp(min=1))
    # A telephone's band.
    phone = _chance(rows, 0.12 * strength, like)
    edge = _uniform(rows, 3200, 3900, like)
    db = db - phone * (
        120 * torch.log2((f / edge).clamp(min=1)) + 18 * torch.log2((250 / f.clamp(min=20)).clamp(min=1))
    )
    return 10 ** (db.clamp(-70, 25) / 20)


def strange_voices(speech: Tensor, strength: float) -> Tensor:
    """(B, L) as if spoken through another throat: formants moved and made sharper or duller, pitch and time kept.

    Each column's envelope, its spectrum smoothed by a short cepstrum, is stretched along the frequencies; in some rows
    a little otherwise from piece to piece, as where diphones are joined. Some rows also get another larynx: pulses of a
    pitch of their own, as a machine's, or a whisper, through that envelope.
    """
    rows, length = speech.shape
    window = torch.hann_window(SIZE, device=speech.device)
    columns = torch.stft(speech, SIZE, HOP, window=window, return_complex=True).transpose(1, 2)
    power = columns.abs().square()
    smooth = vocoder.envelope(vocoder.cepstrum(vocoder.log_magnitude(power), SIZE), SIZE)
    bins = smooth.shape[-1]
    changed = _chance(rows, 0.6 * strength, speech)
    low, high = (changed * _uniform(rows, -0.18, 0.18, speech) for _ in range(2))
    # (rows, T, 1): in rows of joined pieces each piece differs a little, in formants, tilt and level.
    pieces = _pieces(rows, smooth.shape[1], 0.3 * strength, speech)
    low, high = (torch.exp(x[..., None] + 0.04 * pieces()) for x in (low, high))
    place = torch.linspace(0, 1, bins, device=speech.device)
    # Low formants may move otherwise than high ones, as from throat to throat.
    bend = (place / 0.3).clamp(max=1)
    source = (place * (low * (1 - bend) + (0.5 * low + 0.5 * high) * bend) * (bins - 1)).clamp(0, bins - 1)
    left = source.long().clamp(max=bins - 2)
    part = source - left
    moved = smooth.gather(2, left) * (1 - part) + smooth.gather(2, left + 1) * part
    middle = moved.mean(2, keepdim=True)
    sharp = torch.exp(changed * _uniform(rows, -0.35, 0.25, speech))[..., None]
    uneven = 0.2 * pieces() + 0.5 * pieces() * (place - 0.3)
    gain = (middle + sharp * (moved - middle) + uneven - smooth).clamp(-3, 3)
    columns = columns * gain.exp()
    out = torch.istft(columns.transpose(1, 2), SIZE, HOP, window=window, length=length)
    again = int(0.35 * strength * rows + float(torch.rand(1)))  # which rows they are makes no difference
    if again:
        out = torch.cat(
            [_another_larynx(smooth[:again] + gain[:again], power[:again], smooth[:again], length), out[again:]]
        )
    return out


def _pieces(rows: int, columns: int, share: float, like: Tensor) -> Callable[[], Tensor]:
    """Draws (rows, columns, 1) numbers, each time others, that stay the same for a tenth of a second or so.

    Only a share of the rows has any, as diphones from several places have; all others get zeros.
    """
    joint = torch.rand(rows, columns, device=like.device) < 0.1 * 2 ** _uniform(rows, -1, 1, like)
    which = torch.cumsum(joint, 1)
    joined = _chance(rows, share, like)

    def draw() -> Tensor:
        return (joined * torch.randn(rows, columns + 1, device=like.device).gather(1, which))[..., None]

    return draw


def uneven_pace(power: Tensor, bend: Tensor) -> Tensor:
    """(B, T) powers of columns -> (B, T) which column is said when, as if vowels were shorter and consonants longer.

    What is loud passes `exp(bend)` (B, 1) times as fast as what is not; over half a second that evens out, so that
    words stay where they were.
    """
    level = (power + 1e-9).log() - (power.amax(1, keepdim=True) + 1e-9).log()
    loud = torch.sigmoid((level + 2.1) / 0.5)  # from 9 dB under the row's loudest
    ahead = torch.cumsum(torch.exp(bend * (loud - 0.5)) - 1, 1)
    around = 2 * (SAMPLE_RATE // 4 // HOP) + 1
    mean = torch.nn.functional.avg_pool1d(ahead[:, None], around, 1, around // 2, count_include_pad=False)[:, 0]
    columns = torch.arange(power.shape[1], device=power.device)
    return (columns + ahead - mean).cummax(1).values.round().long().clamp(0, power.shape[1] - 1)


def _another_larynx(shape: Tensor, power: Tensor, smooth: Tensor, length: int) -> Tensor:
    """Envelopes to be spoken with (B, T, bins), and the power and envelopes of the speech they come from -> (B, L)."""
    rows = len(shape)
    pace = uneven_pace(power.mean(-1), _chance(rows, 0.6, shape) * _uniform(rows, -0.6, 1.8, shape))[..., None]
    shape, power, smooth = (x.gather(1, pace.expand_as(x)) for x in (shape, power, smooth))
    window = torch.hann_window(SIZE, device=shape.device)
    voiced = vocoder.voicing(power, smooth, window) * (1 - _chance(rows, 0.08, shape))
    edge = 1500 * 2 ** _uniform(rows, 0, 3, shape)
    pitch = vocoder.contour(rows, length, shape)
    return vocoder.speak(vocoder.cepstrum(shape, SIZE), voiced, power.mean(-1), pitch, edge, window, HOP)


def _rooms(rows: int, size: int, like: Tensor) -> Tensor:
    """Spectra of random rooms: a direct path and an exponentially fading noise tail."""
    tail = int(0.5 * SAMPLE_RATE)
    t = torch.arange(tail, device=like.device)[None] / SAMPLE_RATE
    t60 = _uniform(rows, 0.08, 0.6, like)
    level = 10 ** (_uniform(rows, -22, -3, like) / 20)
    noise = torch.randn(rows, tail, device=like.device) * torch.exp(-6.9 * t / t60) * (t > 0.002)
    noise = level * noise / noise.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
    noise[:, 0] += 1
    return torch.fft.rfft(noise, n=size)


def _noise(rows: int, length: int, frequencies: Tensor, like: Tensor) -> Tensor:
    """(rows, length) noise of unit power: white to brown, coloured at random, its level wandering."""
    spectrum = torch.fft.rfft(torch.randn(rows, length, device=like.device))
    slope = _uniform(rows, -1.1, 0.1, like)
    spectrum = spectrum * (frequencies.clamp(min=40)[None] / 1000) ** slope * _colour(rows, frequencies, 1.0, like)
    noise = torch.fft.irfft(spectrum, n=length)
    knots = torch.randn(rows, 1, 12, device=like.device) * _chance(rows, 0.5, like)[..., None] * 6
    wander = torch.nn.functional.interpolate(knots, size=length, mode="linear", align_corners=True)[:, 0]
    noise = noise * 10 ** (wander / 20)
    return noise / noise.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def music(rows: int, length: int, like: Tensor) -> Tensor:
    """(rows, length) of unit power: a few voices of held notes with overtones, each note struck and fading."""
    t = torch.arange(length, device=like.device)[None] / SAMPLE_RATE
    out = torch.zeros(rows, length, device=like.device)
    for _ in range(3):
        beat = _uniform(rows, 0.12, 0.7, like)
        note = (t / beat).long().clamp(max=255)
        steps = torch.randint(0, 25, (rows, 256), device=like.device)
        steps = torch.where(torch.rand(rows, 256, device=like.device) < 0.5, steps, steps // 12 * 12)
        pitch = 70 * 2 ** (torch.gather(steps, 1, note) / 12 + _uniform(rows, 0, 2.5, like))
        phase = 2 * math.pi * torch.cumsum(pitch / SAMPLE_RATE, 1)
        fade = torch.exp(-(t - note * beat) * _uniform(rows, 0.5, 8, like))
        for overtone in (1, 2, 3, 5):
            out += torch.sin(overtone * phase) * fade * _uniform(rows, 0, 1, like) / overtone
        drum = torch.exp(-(t % (2 * beat)) * 40) * torch.randn(rows, length, device=like.device)
        out += drum * _uniform(rows, 0, 0.5, like)
    return out / out.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def unbroken(rows: int, length: int, share: float, like: Tensor) -> Tensor:
    """(rows, length) ones, and in a share of the rows zeros for 5 to 40 ms now and then.

    Such pieces are lost by browsers on busy machines, and by networks.
    """
    columns = -(-length // 60)
    at = torch.arange(columns, device=like.device)
    lost = torch.rand(rows, columns, device=like.device) < 0.002 * 2 ** _uniform(rows, -1, 1, like)
    latest = torch.where(lost, at, -columns).cummax(1).values
    gap = at - latest < 2 * 2 ** _uniform(rows, 0, 3, like)
    gap &= _chance(rows, share, like).bool()
    return 1 - gap.float().repeat_interleave(60, 1)[:, :length]


def augment(clean: Tensor, strength: float) -> Tensor:
    """(B, L) clean speech -> the same made worse; `strength` 0 to 1 grows as training goes on."""
    rows, length = clean.shape
    size = 2 ** math.ceil(math.log2(length + SAMPLE_RATE // 2))
    size = min(size, length + SAMPLE_RATE // 2 + (-(length + SAMPLE_RATE // 2)) % 1920)
    frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE).to(clean.device)
    spectrum = torch.fft.rfft(strange_voices(clean, strength), n=size)
    coloured = _chance(rows, 0.75 * strength + 0.1, clean)
    curve = _colour(rows, frequencies, strength, clean)
    spectrum = spectrum * (coloured * curve + (1 - coloured))
    roomy = _chance(rows, 0.5 * strength, clean)
    spectrum = spectrum * (roomy * _rooms(rows, size, clean) + (1 - roomy))
    speech = torch.fft.irfft(spectrum, n=size)[:, :length]

    # Speech power where there is speech, not over the pauses.
    loud = speech.square()
    active = (loud > 0.01 * loud.amax(1, keepdim=True)).float()
    power = (loud * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1)
    power = torch.where(power > 1e-9, power, torch.full_like(power, 1e-3))
    noise = _noise(rows, length, torch.fft.rfftfreq(length, 1 / SAMPLE_RATE).to(clean.device), clean)
    babble = (
        speech.roll(1, 0).roll(length // 3, 1)
        + speech.roll(2, 0).roll(length // 2, 1)
        + speech.roll(3, 0).roll(length // 5, 1)
    )
    babble = (babble + speech.roll(5, 0).flip(1)) / 2
    babbling = _chance(rows, 0.15, clean)
    babble = babble / babble.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
    noise = babbling * babble + (1 - babbling) * noise
    players = int(0.2 * rows + float(torch.rand(1)))  # which rows they are makes no difference
    if players:
        noise = torch.cat([music(players, length, clean), noise[players:]])
    low = 30 - 25 * strength
    snr = _uniform(rows, low, 45, clean)
    snr = snr + 6 * babbling
    noisy = _chance(rows, 0.35 + 0.4 * strength, clean)
    # What sounds clean still has a noise floor now and then, at times a digital silence.
    floor = _uniform(rows, 45, 90, clean)
    snr = noisy * snr + (1 - noisy) * floor
    silent = _chance(rows, 0.2, clean) * (1 - noisy)
    out = speech + (1 - silent) * noise * power.sqrt() * 10 ** (-snr / 20)

    level = 10 ** (_uniform(rows, -34, -1, clean) / 20)
    out = out * level / out.abs().amax(1, keepdim=True).clamp(min=1e-5)
    hot = _chance(rows, 0.08 * strength, clean)
    out = hot * (out * 4).clamp(-0.9, 0.9) + (1 - hot) * out
    return (out * unbroken(rows, length, 0.12 * strength, clean)).clamp(-1, 1)
