"""Percentiles and how they go over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moshi_server.bench.numbers import course, growth, percentiles
from moshi_server.bench.plot import draw
from moshi_server.bench.report import Generator, Trial
from moshi_server.errors import MoshiServerError


def test_percentiles_are_milliseconds():
    found = percentiles(np.arange(1, 101) / 1000)
    assert found is not None
    assert (found.count, found.max) == (100, 100)
    assert found.p50 == pytest.approx(50.5)
    assert found.p99 == pytest.approx(99.01)
    assert percentiles([]) is None


def test_the_course_is_by_seconds():
    moments = course([0.1, 0.9, 1.5, 3.2], [0.01, 0.03, 0.05, 0.07])
    assert [(moment.second, round(moment.p50)) for moment in moments] == [(0, 20), (1, 50), (3, 70)]


def test_growth_is_from_the_first_third_to_the_last():
    times = np.linspace(0, 9, 100)
    assert growth(times, times / 10) == pytest.approx(0.6, abs=0.05)
    assert growth(times, np.ones(100)) == 0
    assert growth([], []) == 0


def test_a_picture_is_drawn_of_one_run_of_several_and_of_none_that_held(tmp_path: Path):
    def trial(streams: int, held: bool) -> Trial:
        moments = course([0, 1, 2], [0.01, 0.02, 0.03])
        delays = percentiles([0.01, 0.02])
        return Trial(streams, 3, held, "", "step", delays, 0, {}, {}, {}, Generator(None, 0), None, moments)

    for name, trials in {"one": [trial(4, True)], "some": [trial(4, True), trial(8, False)], "none": []}.items():
        draw(trials, 0.16, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MoshiServerError, match="cannot be written"):
        draw([trial(1, True)], 0.16, tmp_path / "no" / "folder")
