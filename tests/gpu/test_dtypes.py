"""The number type: by compute capability on a GPU, by instructions on a CPU, and as configured before either."""

from __future__ import annotations

from pathlib import Path

import pytest

from moshi_server.gpu import (
    DType,
    DTypeChoice,
    QuantizeRequest,
    choose_cpu_dtype,
    choose_dtype,
    cpu_cores,
    cpu_flags,
    quantized,
)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((12, 0), "bf16"),
        ((9, 0), "bf16"),
        ((8, 9), "bf16"),
        ((8, 0), "bf16"),
        ((7, 5), "f16"),
        ((7, 0), "f16"),
        ((6, 1), "f32"),
        ((5, 2), "f32"),
        (None, "f32"),
    ],
)
def test_the_type_follows_the_compute_capability(capability: tuple[int, int] | None, dtype: DType) -> None:
    choice = choose_dtype(capability)
    assert choice.dtype == dtype
    assert "compute capability" in choice.reason


@pytest.mark.parametrize("override", ["f32", "f16", "bf16"])
def test_dtype_override_wins_everywhere(override: DType) -> None:
    assert choose_dtype((7, 5), override).dtype == override
    assert choose_dtype(None, override).reason == "dtype_override"
    assert choose_cpu_dtype({"avx512_bf16"}, override).dtype == override


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [(set(), "f32"), ({"avx2", "avx512f"}, "f32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")],
)
def test_5_a_cpu_takes_bf16_only_where_it_has_the_instructions(flags: set[str], dtype: DType) -> None:
    assert choose_cpu_dtype(flags).dtype == dtype


def test_a_small_model_stays_in_f32_on_a_cpu_with_bf16() -> None:
    assert choose_cpu_dtype({"avx512_bf16"}, None, 4_000_000).dtype == "f32"
    assert choose_cpu_dtype({"avx512_bf16"}, "bf16", 4_000_000).dtype == "bf16"
    assert choose_cpu_dtype({"avx512_bf16"}, None, 1_000_000_000).dtype == "bf16"


def test_flags_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: other\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(str(x86)) == {"fpu", "avx512_bf16"}
    assert choose_cpu_dtype(cpu_flags(str(arm))).reason == "the CPU has bf16"
    assert cpu_flags(str(tmp_path / "none")) == frozenset()


LARGE_MODEL = QuantizeRequest(parameters=1_000_000_000)
F32 = DTypeChoice("f32", "the CPU has no bf16 instructions")


@pytest.mark.parametrize(
    ("flags", "cores", "kind"),
    [({"avx2"}, 8, "int8"), ({"avx2"}, 2, "int4"), ({"asimddp"}, 2, "int8"), ({"sse4_2"}, 2, None), (set(), 8, None)],
)
def test_a_large_model_is_quantized_by_cpu_and_cores(flags: set[str], cores: int, kind: str | None) -> None:
    choice = quantized(F32, LARGE_MODEL, flags, cores, None)
    assert choice.quantize == kind
    assert choice.dtype == "f32"
    if kind:
        assert str(choice) == f"{kind} layers, f32 (a large model on {cores} cores)"


def test_a_small_model_is_not() -> None:
    assert quantized(F32, QuantizeRequest(parameters=20_000_000), {"avx2"}, 2, None) == F32


def test_what_is_asked_for_goes_first_then_what_is_stored_then_the_type() -> None:
    flags = {"avx2"}
    assert quantized(F32, QuantizeRequest("none", "int8", 10**9), flags, 2, None) == F32
    assert quantized(F32, QuantizeRequest("int8", "int4", 10**9), flags, 2, None).quantize == "int8"
    assert quantized(F32, QuantizeRequest("int8"), set(), 2, "bf16") == DTypeChoice("bf16", "quantize", "int8")
    assert quantized(F32, QuantizeRequest(stored="int4"), flags, 8, "bf16").quantize == "int4"
    bf16 = DTypeChoice("bf16", "dtype_override")
    assert quantized(bf16, LARGE_MODEL, flags, 2, "bf16") == bf16


def test_a_process_has_a_core() -> None:
    assert cpu_cores() >= 1
