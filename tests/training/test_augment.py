"""Another throat keeps time and silence, and training alone is training without the others."""

import torch
from training.augment import HOP, augment, strange_voices, unbroken, uneven_pace
from training.ranks import Ranks


def _vowel() -> torch.Tensor:
    t = torch.arange(24_000) / 24_000
    tone = sum(torch.sin(2 * torch.pi * 120 * k * t) / k for k in range(1, 40))
    return (0.1 * tone)[None].repeat(8, 1)


def test_formants_move_only_where_they_are_to():
    speech = _vowel()
    assert torch.allclose(strange_voices(speech, 0.0), speech, atol=1e-5)
    torch.manual_seed(0)
    moved = strange_voices(speech, 1.0)
    assert moved.shape == speech.shape
    changed = (moved - speech).abs().amax(1) > 1e-3
    assert 0 < changed.sum() < 8


def test_silence_stays_silence_and_everything_else_finite():
    assert not strange_voices(torch.zeros(2, 24_000), 1.0).any()
    assert augment(_vowel(), 1.0).isfinite().all()


def test_gaps_are_short_rare_and_only_in_a_share_of_the_rows():
    torch.manual_seed(2)
    kept = unbroken(200, 24_000, 0.5, torch.zeros(1))
    assert set(kept.unique().tolist()) == {0, 1}
    gapped = (kept == 0).any(1)
    assert 50 < gapped.sum() < 110
    shares = (kept[gapped] == 0).float().mean(1)
    assert shares.max() < 0.25
    assert (kept == 0).sum(1)[gapped].min() >= 24 * 5 / 2, "a gap of 5 ms, or the half of it that a row's end leaves"
    assert unbroken(200, 24_000, 0.0, torch.zeros(1)).all()


def test_what_is_loud_passes_faster_and_words_stay_where_they_were():
    columns = torch.arange(400)
    loud = (columns // 10) % 2 == 0  # a vowel of a tenth of a second, then a consonant
    power = torch.where(loud, 1.0, 0.01).repeat(3, 1)
    said = uneven_pace(power, torch.tensor([[0.0], [1.5], [-0.5]]))
    assert torch.equal(said[0], columns), "not bent"
    for row, faster in ((said[1], loud), (said[2], ~loud)):
        assert (row.diff() >= 0).all(), "never back"
        assert (row - columns).abs().max() * HOP / 24 < 120, "ms"
        inside = slice(100, 300)
        assert faster[row][inside].float().mean() < 0.45
    assert loud[said[1]][100:300].float().mean() < 0.35


def test_a_process_alone_shares_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks()
    assert ranks.first
    assert ranks.same(2.5, torch.device("cpu")) == 2.5
    weights = torch.ones(3)
    ranks.copy([weights])
    assert torch.equal(weights, torch.ones(3))
