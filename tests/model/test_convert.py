"""Converting a checkpoint gives the model that converting at load gives; names, metadata, memory, faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moshi_server.errors import CheckpointError
from moshi_server.model.conditioning import ContinuousSpec
from moshi_server.model.convert import convert_checkpoint
from moshi_server.model.lm import LmSpec
from moshi_server.model.mimi import MimiSpec
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi

from ..golden import mimi_spec

SPEC = LmSpec(
    24, 23, 17, 3,
    TransformerSpec(32, 4, 2, 128, context=10, gating="silu", bias_attn=True),
    extra_heads_num=2, extra_heads_dim=6, conditioners={"delay": ContinuousSpec(8, 1.0, 100.0)},
)  # fmt: skip
TYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("naming", ["candle", "pytorch"])
def test_a_converted_checkpoint_gives_the_model_that_converting_at_load_gives(
    tmp_path: Path, naming: Any, stored: torch.dtype, dtype: torch.dtype
) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lm(source, SPEC, naming=naming, dtype=stored)
    convert_checkpoint(source, target, dtype)
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys()
    assert after["transformer.layers.1.gating.linear_in.weight"].dtype is dtype
    # What is held in f32 loses nothing.
    for name in ("text_linear.weight", "condition_provider.conditioners.delay.output_proj.weight"):
        assert torch.equal(after[name].float(), before[name].float())
    want, got = (load_lm(path, SPEC, dtype=dtype) for path in (source, target))
    for (name, one), other in zip(want.named_parameters(), got.parameters(), strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_codec_keeps_its_centroids_and_its_description(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_mimi(source, mimi_spec.SMALL, seed=1)
    done = convert_checkpoint(source, target, dtype)
    assert done.is_codec
    assert 0 < done.kept < done.changed
    with safe_open(source, framework="pt") as one, safe_open(target, framework="pt") as other:
        assert one.metadata() == other.metadata()
    before, after = load_mimi(source), load_mimi(target)
    assert before.spec == after.spec == mimi_spec.SMALL
    assert torch.equal(before.quantizer.semantic.codebooks, after.quantizer.semantic.codebooks)
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one.to(dtype).float(), other)
    assert isinstance(after.spec, MimiSpec)


def test_order_metadata_and_what_is_no_number_of_a_model_stay(tmp_path: Path) -> None:
    tensors = {
        "z": torch.randn(3, 2),
        "a": torch.tensor(1.5, dtype=torch.float64),
        "count": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 4),
        "already": torch.randn(7).to(torch.bfloat16),
        "broken": torch.tensor([float("inf"), float("nan"), 1.0]),
    }
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source, {"format": "pt", "note": 'ü "quoted"'})
    done = convert_checkpoint(source, target, torch.bfloat16)
    with safe_open(source, framework="pt") as one, safe_open(target, framework="pt") as other:
        assert one.metadata() == other.metadata()
        assert one.offset_keys() == other.offset_keys()
    got = load_file(target)
    for name, tensor in tensors.items():
        want = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert got[name].dtype is want.dtype
        assert got[name].shape == want.shape
        torch.testing.assert_close(got[name], want, rtol=0, atol=0, equal_nan=True)
    assert (done.changed, done.kept) == (4, 3)
    assert done.bytes_after == sum(tensor.nbytes for tensor in got.values())
    assert not done.is_codec


def test_what_overflows_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    # The first and the last number of several pieces.
    large = torch.zeros(5 << 20)
    large[-1] = -7e4
    save_file({"fine": torch.tensor([65504.0]), "large": large, "first": torch.tensor([1e6, 0.0])}, source)
    target.write_text("as before")
    with pytest.raises(CheckpointError, match=r"in\.safetensors: 2 tensors hold values that f16 cannot") as caught:
        convert_checkpoint(source, target, torch.float16)
    assert {"large", "first"} <= set(str(caught.value).replace(";", " ").split())
    assert "fine" not in str(caught.value)
    assert "bf16" in caught.value.hint
    assert target.read_text() == "as before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]
    convert_checkpoint(source, target, torch.bfloat16)


def test_a_file_may_be_converted_in_place_under_a_model_that_maps_it(tmp_path: Path) -> None:
    path = tmp_path / "lm.safetensors"
    write_lm(path, SPEC, dtype=torch.float32)
    model = load_lm(path, SPEC, dtype=torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    convert_checkpoint(path, path, torch.float16)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert load_file(path)["text_emb.weight"].dtype is torch.float16


@given(content=st.binary(max_size=200))
def test_any_other_file_is_one_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "in").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        convert_checkpoint(folder / "in", folder / "out", torch.float16)
    assert not (folder / "out").exists()


def test_a_file_that_is_not_there_and_a_folder_that_is_not_there_are_clear(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none: cannot be read"):
        convert_checkpoint(tmp_path / "none", tmp_path / "out", torch.float16)
    save_file({"a": torch.zeros(2)}, tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"no/out: cannot be written"):
        convert_checkpoint(tmp_path / "in", tmp_path / "no" / "out", torch.float16)


PEAK = """
import re, sys, torch
from pathlib import Path
from moshi_server.model.convert import convert_checkpoint

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, large, out = sys.argv[1:]
convert_checkpoint(small, out, torch.float16)
before = peak()
convert_checkpoint(large, out, torch.float16)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read as Linux tells it")
def test_memory_peaks_below_one_tensor(tmp_path: Path) -> None:
    one = torch.zeros(64 << 20, dtype=torch.uint8).view(torch.float32)
    save_file({"a": one[:1000]}, tmp_path / "small")
    save_file({"a": one, "b": one.clone(), "c": one.clone()}, tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *(str(tmp_path / name) for name in ("small", "large", "out"))],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert int(done.stdout) < one.nbytes, f"{int(done.stdout) / 2**20:.0f} MB more"
    assert (tmp_path / "out").stat().st_size > 1.5 * one.nbytes
