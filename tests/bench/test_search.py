"""The search for the most streams, on servers whose limit is known."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from moshi_server.bench.report import Generator, Trial, most_held
from moshi_server.bench.search import search


def trial(streams: int, held: bool) -> Trial:
    return Trial(streams, 1, held, "" if held else "late", "step", None, 0, {}, {}, {}, Generator(None, 0), None)


async def find(limit: int, first: int, most: int) -> list[Trial]:
    async def attempt(streams: int) -> Trial:
        return trial(streams, streams <= limit)

    return await search(attempt, first, most)


@given(st.integers(0, 300), st.integers(1, 64), st.integers(1, 256))
async def test_it_finds_the_limit_to_a_twentieth_and_tries_few(limit, first, most):
    trials = await find(limit, first, most)
    found = most_held(trials) or 0
    expected = min(limit, most)
    assert expected - max(1, expected // 20) <= found <= expected
    assert len(trials) <= 30
    assert all(1 <= each.streams <= most for each in trials)


async def test_small_limits_are_found_exactly_enough():
    assert most_held(await find(11, 16, 1024)) == 11
    assert most_held(await find(0, 4, 1024)) is None


async def test_one_hiccup_is_no_limit_but_a_refusal_is():
    failed_once: set[int] = set()

    async def hiccup(streams: int) -> Trial:
        if streams == 4 and streams not in failed_once:
            failed_once.add(streams)
            return trial(streams, False)
        return trial(streams, streams <= 6)

    assert most_held(await search(hiccup, 4, 64)) == 6

    async def full(streams: int) -> Trial:
        return dataclasses.replace(trial(streams, streams <= 6), errors={} if streams <= 6 else {"no free channels": 1})

    trials = await search(full, 4, 64)
    refused = [each.streams for each in trials if each.errors]
    assert len(refused) == len(set(refused)), "a server that says it is full is not asked twice"
