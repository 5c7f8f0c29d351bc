"""``moshi-server convert``: the real program on files and on a hub of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from moshi_server.cli.convert import NumberType, convert
from moshi_server.errors import ConfigError

from ..hub_server import serving
from .test_commands import moshi_server, one_error


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save_file({"a.weight": torch.full((4, 2), 0.1), "text_linear.weight": torch.full((2,), 0.1)}, path, {"k": "v"})
    return path


def test_a_file_is_converted_and_what_was_done_is_said(source: Path, tmp_path: Path) -> None:
    done = moshi_server("convert", str(source), "out.safetensors", "--dtype", "f16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.safetensors: 1 tensors in f16, 1 as they were; 0.0 MB became 0.0 MB\n"
    assert done.stderr == ""
    assert load_file(tmp_path / "out.safetensors")["a.weight"].dtype is torch.float16


def test_a_file_of_the_hub_is_fetched_and_converted(tmp_path: Path) -> None:
    weights = save({"quantizer.rvq_first.x": torch.ones(3, dtype=torch.bfloat16)}, {"k": "v"})
    with serving({"kyutai/stt": {"sub/mimi@125.safetensors": weights}}) as hub:
        done = moshi_server(
            "convert", "hf://kyutai/stt/sub/mimi@125.safetensors", "out", "--dtype", "f16",
            cwd=tmp_path, HF_HOME=str(tmp_path / "cache"), HF_ENDPOINT=hub.url,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: this is a codec")
    assert load_file(tmp_path / "out")["quantizer.rvq_first.x"].dtype is torch.float16


def test_a_file_that_is_there_is_overwritten_only_with_force(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("mine")
    line = one_error(moshi_server("convert", str(source), "out", "--dtype", "bf16", cwd=tmp_path))
    assert line == "error: out is there already (name another file, or overwrite it with --force)"
    assert target.read_text() == "mine"
    assert moshi_server("convert", str(source), "out", "--dtype", "bf16", "--force", cwd=tmp_path).returncode == 0
    assert load_file(target)["a.weight"].dtype is torch.bfloat16


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for target, words in [(tmp_path, "is a folder"), (tmp_path / "none" / "out", "its folder is missing")]:
        with pytest.raises(ConfigError, match=words):
            convert("hf://nobody/nothing/x", target, NumberType.f16)


def test_faults_are_one_line(tmp_path: Path) -> None:
    save_file({"layers.3.weight": torch.tensor([1e6])}, tmp_path / "wide")
    line = one_error(moshi_server("convert", "wide", "out", "--dtype", "f16", cwd=tmp_path))
    assert "wide: 1 tensors hold values that f16 cannot, the largest being 65504: layers.3.weight (take bf16" in line
    assert not (tmp_path / "out").exists()
    done = moshi_server("convert", "wide", "out", "--dtype", "int8", cwd=tmp_path)
    assert done.returncode == 2
    assert "'f16', 'bf16', 'f32'" in done.stderr


def test_layers_are_quantized_and_what_was_done_is_said(tmp_path: Path) -> None:
    name = "transformer.layers.0.gating.linear_in.weight"
    save_file({name: torch.randn(64, 64), "odd": torch.ones(3)}, tmp_path / "in.safetensors")
    for kind, dtype in (("int8", torch.int8), ("int4", torch.uint8)):
        done = moshi_server("convert", "in.safetensors", kind, "--quantize", kind, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{kind}: 1 layers in {kind}, 1 other tensors; 0.0 MB became 0.0 MB\n"
        assert load_file(tmp_path / kind)[name].dtype is dtype


def test_what_cannot_be_quantized_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    line = one_error(moshi_server("convert", str(source), "out", "--quantize", "int8", cwd=tmp_path))
    assert "has no layers of a language model" in line
    assert not (tmp_path / "out").exists()


def test_a_type_or_a_number_of_bits_and_not_both(source: Path, tmp_path: Path) -> None:
    for options in ([], ["--dtype", "f16", "--quantize", "int8"]):
        line = one_error(moshi_server("convert", str(source), "out", *options, cwd=tmp_path))
        assert line.startswith("error: expected either --dtype or --quantize")
