"""Sampling: greedy, right on average, and a stream's own whatever the batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.model.sampling import sample, uniform


def test_temperature_zero_is_the_largest() -> None:
    logits = torch.randn(5, 40)
    row = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(sample(logits, 0.0, row, row), logits.argmax(-1))


def test_frequencies_follow_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = 20_000
    got = sample(logits.expand(draws, -1), 0.7, torch.full((draws,), 9), torch.arange(draws))
    want = (logits / 0.7).softmax(-1)
    torch.testing.assert_close(got.bincount(minlength=4) / draws, want, atol=0.012, rtol=0)


def test_a_streams_draws_do_not_depend_on_the_batch() -> None:
    logits = torch.randn(50, 8, 100, generator=torch.Generator().manual_seed(2))
    seeds, alone, together = torch.arange(8) * 1000 + 3, [], []
    for step in range(50):
        counters = torch.full((8,), step)
        together.append(sample(logits[step], 1.0, seeds, counters)[5])
        alone.append(sample(logits[step, 5:6], 1.0, seeds[5:6], counters[5:6])[0])
    assert torch.equal(torch.stack(alone), torch.stack(together))


def test_seeds_and_counters_give_different_even_draws() -> None:
    a = uniform(torch.full((4096,), 1), torch.arange(4096))
    b = uniform(torch.arange(4096), torch.zeros(4096, dtype=torch.int64))
    for draws in (a, b):
        assert draws.unique().numel() == 4096
        histogram = torch.histc(draws, bins=16, min=0, max=1)
        assert (histogram - 256).abs().max() < 80
    assert abs(torch.corrcoef(torch.stack((a[:-1], a[1:])))[0, 1]) < 0.06
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 0.06


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_any_seed_gives_a_token_of_the_vocabulary(seed: int, counter: int) -> None:
    logits = torch.tensor([[-torch.inf, 3.0, -torch.inf, 3.0, -torch.inf]])
    token = int(sample(logits, 0.5, torch.tensor([seed]), torch.tensor([counter]))[0])
    assert token in (1, 3)
