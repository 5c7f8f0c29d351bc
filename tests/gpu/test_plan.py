"""What fits: the documented formula, several modules on one GPU, the environment, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.errors import ConfigError, MemoryPlanError
from moshi_server.gpu import MB, Cost, GpuInfo, ModuleRequest, Overrides, Weights, find_card, hypothetical, plan_modules
from moshi_server.gpu.plan import share_out

GB = 1024 * MB


def card(free_mb: float, capability: tuple[int, int] | None = (8, 0)) -> GpuInfo:
    return GpuInfo(0, "a card", int(free_mb * MB), int(free_mb * MB), capability)


def request(
    batch_size: int | Literal["auto"] = 4,
    *,
    name: str = "asr",
    weights_mb: int = 1000,
    each_mb: int = 100,
    key: str = "lm",
) -> ModuleRequest:
    """A module whose figures are of fixed size, so that the type does not matter."""
    return ModuleRequest(
        name,
        batch_size,
        weights=(Weights(key, Cost("language model", "checkpoint header", fixed=weights_mb * MB)),),
        per_stream=(Cost("KV cache", "configuration", fixed=each_mb * MB),),
    )


@pytest.mark.parametrize(("free", "fits"), [(1612, 1), (1711.9, 1), (1712, 2), (5512, 40), (5611, 40), (100_000, 984)])
def test_5_the_most_is_what_is_left_divided_by_a_stream(free: float, fits: int) -> None:
    assert plan_modules([request("auto")], card(free), {})["asr"].batch_size == fits


def test_the_documented_defaults() -> None:
    plan = plan_modules([ModuleRequest("tts", "auto")], card(24_576), {})
    weights = int(7e9) * 2
    assert plan["tts"].batch_size == (24_576 * MB - 512 * MB - weights) // (400 * MB)
    assert [term.origin.split(":")[0] for term in (plan.reserved, *plan.weights)] == ["default", "default"]


def test_the_environment_comes_before_all() -> None:
    env = {"MOSHI_MODEL_PARAMS_BILLIONS": "1.0", "MOSHI_PER_BATCH_ITEM_MB": "400", "MOSHI_VRAM_RESERVED_MB": "1024"}
    plan = plan_modules([request(64)], card(8192, (7, 5)), env)
    assert plan["asr"].batch_size == (8192 * MB - 1024 * MB - 2 * 10**9) // (400 * MB)
    (warning,) = plan.warnings()
    for name in env:
        assert name in warning


def test_5_the_environment_may_say_one_thing_only() -> None:
    plan = plan_modules([request("auto")], card(5512), {"MOSHI_PER_BATCH_ITEM_MB": "200"})
    assert plan["asr"].batch_size == 20
    assert plan.reserved.bytes == 512 * MB


@pytest.mark.parametrize(
    "variable", ["MOSHI_MODEL_PARAMS_BILLIONS", "MOSHI_PER_BATCH_ITEM_MB", "MOSHI_VRAM_RESERVED_MB"]
)
@pytest.mark.parametrize("value", ["seven", "-1", "nan", "inf", "1,5", "0x10", "1e999"])
def test_a_variable_without_sense_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        Overrides.read({variable: value})


def test_nothing_may_be_reserved_but_no_model_is_empty() -> None:
    assert Overrides.read({"MOSHI_VRAM_RESERVED_MB": "0"}).reserved_mb == 0
    with pytest.raises(ConfigError):
        Overrides.read({"MOSHI_PER_BATCH_ITEM_MB": "0"})


def test_an_empty_variable_is_an_absent_one() -> None:
    assert Overrides.read({"MOSHI_MODEL_PARAMS_BILLIONS": " ", "MOSHI_PER_BATCH_ITEM_MB": ""}) == Overrides()


def test_a_batch_size_that_fits_is_left_alone() -> None:
    plan = plan_modules([request(4)], card(80_000), {})
    assert plan["asr"].batch_size == 4
    assert plan.warnings() == []
    (line,) = plan.lines()
    assert "as configured" in line


def test_5_one_that_does_not_is_lowered_with_every_term_and_its_origin() -> None:
    plan = plan_modules([request(64)], card(5512), {})
    (warning,) = plan.warnings()
    assert warning == (
        "module asr: batch_size lowered from 64 to 40: a card has 5512 MB free [NVML] - reserved 512 MB [default] - "
        "language model 1000 MB [checkpoint header] = 4000 MB; divided by 100 MB a stream "
        "(KV cache 100 MB [configuration])"
    )
    assert plan.lines() == []


def test_5_not_even_one_says_what_is_needed_and_what_there_is() -> None:
    with pytest.raises(MemoryPlanError) as raised:
        plan_modules([request(64)], card(1600), {})
    message = str(raised.value)
    assert "1612 MB are needed" in message
    assert "a card has 1600 MB free of 1600 MB" in message
    for part in ("reserved 512 MB [default]", "language model 1000 MB", "one stream of asr 100 MB"):
        assert part in message
    assert "nvidia-smi" in raised.value.hint


def test_a_refusal_by_the_environment_names_the_variable() -> None:
    with pytest.raises(MemoryPlanError) as raised:
        plan_modules([request(64)], card(8192), {"MOSHI_MODEL_PARAMS_BILLIONS": "7"})
    assert "MOSHI_MODEL_PARAMS_BILLIONS: 7 billion parameters in bf16" in str(raised.value)
    assert raised.value.hint.startswith("check MOSHI_MODEL_PARAMS_BILLIONS")


def test_a_guess_refuses_nobody() -> None:
    plan = plan_modules([ModuleRequest("tts", 8)], card(8192), {})
    assert plan["tts"].batch_size == 1
    assert "lowered from 8 to 1" in plan.warnings()[0]


def test_modules_with_the_same_file_count_it_once() -> None:
    two = [request(10, name="a"), request(10, name="b")]
    assert plan_modules(two, card(512 + 1000 + 2000), {}).warnings() == []
    apart = [request(10, name="a"), request(10, name="b", key="other")]
    assert len(plan_modules(apart, card(512 + 1000 + 2000), {}).warnings()) == 2
    assert plan_modules(apart, card(512 + 2000 + 2000), {}).warnings() == []


def test_the_same_file_in_two_types_is_held_twice() -> None:
    weights = (Weights("lm", Cost("language model", "checkpoint header", elements=1000 * MB)),)
    each = (Cost("KV cache", "configuration", fixed=100 * MB),)
    modules = [ModuleRequest(t, 1, t, weights, each) for t in ("f16", "bf16", "f32")]
    assert sum(term.bytes for term in plan_modules(modules, card(80_000), {}).weights) == 8000 * MB


def test_the_environment_counts_a_shared_file_once() -> None:
    plan = plan_modules([request(1, name="a"), request(1, name="b")], card(8192), {"MOSHI_MODEL_PARAMS_BILLIONS": "1"})
    assert sum(term.bytes for term in plan.weights) == 2 * 10**9


def test_5_modules_are_lowered_in_proportion() -> None:
    plan = plan_modules([request(60, name="a"), request(20, name="b", each_mb=300)], card(512 + 1000 + 6000), {})
    assert (plan["a"].batch_size, plan["b"].batch_size) == (30, 10)
    assert "module b 10 x 300 MB" in plan.warnings()[0]


def test_auto_takes_what_the_configured_ones_leave() -> None:
    modules = [request(10, name="a"), request("auto", name="b"), request("auto", name="c", each_mb=200)]
    plan = plan_modules(modules, card(512 + 1000 + 1000 + 4000), {})
    assert [module.batch_size for module in plan.modules] == [10, 20, 10]
    assert plan.warnings() == []


@given(
    st.integers(0, 10**12),
    st.lists(
        st.tuples(st.one_of(st.just("auto"), st.integers(1, 10**6)), st.integers(1, 10**10)), min_size=1, max_size=5
    ),
)
def test_shares_fit_and_waste_nothing(available: int, asks: list[tuple[int | Literal["auto"], int]]) -> None:
    counts = share_out(available, asks)
    used = sum(count * each for count, (_, each) in zip(counts, asks, strict=True))
    assert all(count >= 1 for count in counts)
    assert used <= available or all(count == 1 for count in counts)
    assert all(asked == "auto" or count <= asked for count, (asked, _) in zip(counts, asks, strict=True))
    fixed = [i for i, (asked, _) in enumerate(asks) if asked != "auto"]
    if all(counts[i] == asks[i][0] for i in fixed):
        left = [each for asked, each in asks if asked == "auto"]
        assert all(each > available - used for each in left) or used > available
    else:
        # Some module was lowered, so no lowered one can have another stream, and none was lowered without need.
        assert all(asks[i][1] > available - used for i in fixed if counts[i] != asks[i][0])


@pytest.mark.parametrize("gpu", [None, GpuInfo(0, "a card", None, None, (7, 5))])
def test_without_known_memory_the_configured_values_stand(gpu: GpuInfo | None) -> None:
    plan = plan_modules([request(64), request("auto", name="b")], gpu, {})
    assert [module.batch_size for module in plan.modules] == [64, 8]
    assert plan.warnings() == []
    assert all("no GPU memory is known" in line for line in plan.lines())


def test_starting_cuda_is_a_term_until_it_is_started() -> None:
    later = dataclasses.replace(card(5512), context=500 * MB)
    assert plan_modules([request("auto")], later, {})["asr"].batch_size == 35
    assert "CUDA itself 500 MB" in plan_modules([request(64)], later, {}).warnings()[0]


def test_memory_that_cannot_be_taken_is_halved_until_one() -> None:
    plan = plan_modules([request(41)], card(80_000), {})
    tried = [41]
    with pytest.raises(MemoryPlanError, match="not even one stream fits: 1612 MB are needed"):
        while True:
            tried.append(plan.halve("asr", tried[-1]))
    assert tried == [41, 20, 10, 5, 2, 1]


def test_halving_without_known_memory_still_ends_in_a_sentence() -> None:
    with pytest.raises(MemoryPlanError, match="module asr: not even one stream fits the device"):
        plan_modules([request(1)], None, {}).halve("asr", 1)


def test_several_that_do_not_fit_are_named_together() -> None:
    with pytest.raises(MemoryPlanError, match="module a, b: not even one stream fits"):
        plan_modules([request(1, name="a"), request(1, name="b")], card(1700), {})


@pytest.mark.parametrize(
    ("name", "total_mb", "capability"),
    [
        ("RTX 2070", 8192, (7, 5)),
        ("rtx2070", 8192, (7, 5)),
        ("NVIDIA GeForce RTX 2070", 8192, (7, 5)),
        ("Tesla T4", 15360, (7, 5)),
        ("A100", 40960, (8, 0)),
        ("a100-80gb", 81920, (8, 0)),
        ("H100", 81559, (9, 0)),
    ],
)
def test_cards_are_found_by_any_usual_spelling(name: str, total_mb: int, capability: tuple[int, int]) -> None:
    found = find_card(name)
    assert (found.total, found.capability) == (total_mb * MB, capability)
    assert found.free is not None
    assert 0.98 * total_mb * MB < found.free < total_mb * MB


@pytest.mark.parametrize("name", ["", "RTX", "RTX 9999", "nvidia", "RTX 207"])
def test_an_unknown_card_is_no_guess(name: str) -> None:
    with pytest.raises(ConfigError, match="no GPU named") as raised:
        find_card(name)
    assert "--vram-mb" in raised.value.hint


def test_a_card_of_ones_own_counts_what_cuda_takes() -> None:
    assert hypothetical("mine", 8192, (7, 5)).context > 500 * MB
