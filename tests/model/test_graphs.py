"""Buckets: which there are, and that what fills one up is padding whatever ran before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moshi_server.model.graphs import BucketedStep, bucket_sizes

CPU = torch.device("cpu")
PADDING = torch.tensor([-1.0, 0.0])


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (1, [1]),
        (4, [1, 2, 4]),
        (5, [1, 2, 4, 5]),
        (100, [1, 2, 4, 8, 16, 32, 48, 64, 96, 100]),
        (32, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_buckets_end_with_all_rows(rows: int, sizes: list[int]) -> None:
    assert bucket_sizes(rows) == sizes


def test_no_bucket_is_more_than_half_larger_than_what_it_is_taken_for() -> None:
    sizes = bucket_sizes(1000)
    assert sizes == sorted(set(sizes))
    assert all(next(size for size in sizes if size >= count) <= 1.5 * count for count in range(33, 1001))


def test_a_bucket_is_filled_up_with_padding_after_any_step() -> None:
    seen: list[Tensor] = []

    def double(rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        return rows[:, 1:] * 2

    step = BucketedStep(double, 6, PADDING, CPU)
    for count in (6, 3, 1, 5, 3, 2, 6, 1, 4, 3):
        for row in range(count):
            step.inputs[row] = row, 10 * count + row
        assert step.run(count)[:, 0].tolist() == [2 * (10 * count + row) for row in range(count)]
        rows = seen.pop()
        assert len(rows) == next(size for size in (1, 2, 4, 6) if size >= count)
        assert rows[:count, 0].tolist() == list(range(count))
        assert all(torch.equal(row, PADDING) for row in rows[count:])
