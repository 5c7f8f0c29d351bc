"""Sampling: greedy, right on average, and a stream's own whatever the batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.model.sampling import sample, sample_rows, uniform


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


def rows(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def test_each_row_has_its_own_temperature_and_candidates() -> None:
    draws = 20_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    temperatures = rows(0.0, 0.7, 0.7, 0.7).repeat(draws)
    top_k = rows(4, 4, 2, 1, dtype=torch.int64).repeat(draws)
    seeds, counters = torch.full((4 * draws,), 9), torch.arange(4 * draws)
    got = sample_rows(logits.expand(4 * draws, -1), temperatures, top_k, seeds, counters, most=4).view(draws, 4)
    assert got[:, 0].eq(0).all()
    assert got[:, 3].eq(0).all()
    for column, candidates in ((1, 4), (2, 2)):
        want = torch.zeros(4)
        want[:candidates] = (logits[:candidates] / 0.7).softmax(-1)
        torch.testing.assert_close(got[:, column].bincount(minlength=4) / draws, want, atol=0.012, rtol=0)


def test_a_rows_draw_does_not_depend_on_the_others_settings() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    temperatures, top_k = rows(0, 0.5, 1, 2, 5, 1), rows(1, 250, 3, 250, 1, 40, dtype=torch.int64)
    seeds, counters = torch.arange(6), torch.full((6,), 3)
    together = sample_rows(logits, temperatures, top_k, seeds, counters, most=250)
    for row in range(6):
        one = slice(row, row + 1)
        alone = sample_rows(logits[one], temperatures[one], top_k[one], seeds[one], counters[one], most=250)
        assert int(alone) == int(together[row])


@given(st.integers(0, 2**63 - 1), st.floats(0.0, 10.0), st.integers(1, 5))
def test_rows_never_leave_the_vocabulary_or_their_candidates(seed: int, temperature: float, top_k: int) -> None:
    logits = torch.tensor([[-torch.inf, 3.0, -torch.inf, 3.0, -torch.inf]])
    seeds, counters = torch.tensor([seed]), torch.tensor([0])
    drawn = sample_rows(logits, rows(temperature), torch.tensor([top_k]), seeds, counters, most=5)
    assert int(drawn) in (1, 3)
