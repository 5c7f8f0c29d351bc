"""The simulation of admission gives what Erlang's formula says where there is one, and the same from the same seed."""

from __future__ import annotations

import random
import runpy
from typing import Any

import pytest

from ..cli.test_commands import ROOT

SIMULATION = runpy.run_path(str(ROOT / "benchmarks" / "admission.py"))
WORKERS, SLOTS, LOAD = 8, 10, 0.9


def simulate(policy: str, *rest: object, retries: int, lifetimes: float = 400, seed: int = 1) -> Any:
    dice = random.Random(seed)
    made = SIMULATION[policy](WORKERS, dice, *rest)
    sizes = {"workers": WORKERS, "slots": SLOTS, "load": LOAD, "lifetimes": lifetimes}
    return SIMULATION["simulate"](policy, made, dice, proxies=1, retries=retries, **sizes)


def test_erlang_s_formula() -> None:
    assert SIMULATION["erlang_b"](1.0, 1) == pytest.approx(0.5)
    assert SIMULATION["erlang_b"](2.0, 2) == pytest.approx(0.4)
    assert SIMULATION["erlang_b"](90.0, 100) == pytest.approx(0.0270, abs=1e-4)


def test_random_choice_loses_what_each_worker_alone_would() -> None:
    row = simulate("Random", retries=0)
    exact = SIMULATION["erlang_b"](LOAD * SLOTS, SLOTS)
    assert row.refused_while_free + row.refused_when_full == pytest.approx(exact, rel=0.06)
    assert row.refused_while_free > 0.5 * exact


@pytest.mark.parametrize("policy", [("Least", 1), ("Two", 1), ("Random",)], ids=str)
def test_with_as_many_tries_as_workers_all_slots_are_one_pool(policy: tuple[Any, ...]) -> None:
    row = simulate(*policy, retries=WORKERS - 1)
    assert row.refused_while_free == 0
    assert row.refused_when_full == pytest.approx(
        SIMULATION["erlang_b"](LOAD * SLOTS * WORKERS, SLOTS * WORKERS), rel=0.25
    )


def test_a_check_that_takes_full_workers_out_refuses_streams_while_a_slot_is_free() -> None:
    gated = simulate("Gated", 1, SLOTS, 5.0, retries=WORKERS - 1)
    assert gated.refused_while_free > 0
    assert simulate("Least", 1, retries=WORKERS - 1).refused_while_free == 0


def test_shared_counts_that_are_old_send_everybody_to_the_same() -> None:
    least, two = simulate("Stale", 60.0, False, retries=0), simulate("Stale", 60.0, True, retries=0)
    assert least.refused_while_free > 1.5 * two.refused_while_free


def test_the_same_seed_gives_the_same() -> None:
    one, other, third = (simulate("Least", 1, retries=0, lifetimes=20, seed=seed) for seed in (1, 1, 2))
    assert (one.came, one.tries, one.spread) == (other.came, other.tries, other.spread)
    assert one.came != third.came
