"""Reading a language model's checkpoint: both namings, what does not fit, and no second copy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moshi_server.errors import CheckpointError
from moshi_server.model.conditioning import ContinuousSpec
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.synthetic import write_lm
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm, parameter_shapes, save_lm

SPEC = LmSpec(
    text_in_vocab_size=24,
    text_out_vocab_size=23,
    audio_vocab_size=17,
    audio_codebooks=3,
    transformer=TransformerSpec(32, 4, 2, 128, context=10, gating="silu", bias_attn=True),
    extra_heads_num=2,
    extra_heads_dim=6,
    conditioners={"delay": ContinuousSpec(8, 1.0, 100.0)},
)


def logits(model: LmModel) -> torch.Tensor:
    text = torch.arange(12)[None] % model.spec.text_in_vocab_size
    audio = torch.arange(36).view(1, 3, 12) % model.spec.audio_vocab_size
    result: torch.Tensor = model(text, audio)[0]
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_lm(tmp_path / "lm.safetensors", SPEC, dtype=torch.float32)
    return tmp_path / "lm.safetensors"


def edit(path: Path, change: Any) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def test_both_namings_give_the_same_model(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "pytorch.safetensors"
    write_lm(other, SPEC, naming="pytorch", dtype=torch.float32)
    candle, pytorch = load_file(path), load_file(other)
    assert "transformer.layers.1.self_attn.in_proj_weight" in candle
    assert "transformer.layers.1.self_attn.out_proj.weight" in candle
    assert "transformer.layers.1.self_attn.in_projs.0.weight" in pytorch
    assert "transformer.layers.1.self_attn.out_projs.0.bias" in pytorch
    for tensors in (candle, pytorch):
        assert tensors["transformer.layers.0.norm1.alpha"].shape == (1, 1, 32)
        assert "extra_heads.1.weight" in tensors
        assert "condition_provider.conditioners.delay.learnt_padding" in tensors
    here, there = (load_lm(file, SPEC, dtype=torch.float32) for file in (path, other))
    assert torch.equal(logits(here), logits(there))
    assert not any(parameter.requires_grad for parameter in here.parameters())


@pytest.mark.parametrize("naming", ["candle", "pytorch"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, naming: Any) -> None:
    torch.manual_seed(3)
    model = LmModel(SPEC).eval()
    save_lm(model, tmp_path / "a.safetensors", naming=naming)
    assert torch.equal(logits(load_lm(tmp_path / "a.safetensors", SPEC, dtype=torch.float32)), logits(model))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_model_outlives_its_file_being_replaced(path: Path) -> None:
    model = load_lm(path, SPEC, dtype=torch.float32)
    before = logits(model)
    write_lm(path, SPEC, seed=1, dtype=torch.float32)
    assert torch.equal(logits(model), before)


def test_everything_that_does_not_fit_is_listed_at_once(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["transformer.layers.1.self_attn.in_proj_weight"]
        del tensors["emb.2.weight"]
        tensors["text_linear.weight"] = torch.zeros(23, 31)
        tensors["text_emb.weight"] = torch.zeros(24, 32, dtype=torch.int8)
        tensors["surprise"] = torch.zeros(2)

    edit(path, change)
    with pytest.raises(CheckpointError) as caught:
        load_lm(path, SPEC, dtype=torch.float32)
    text = str(caught.value)
    assert "5 tensors" in text
    assert "missing transformer.layers.1.self_attn.in_proj.weight [96, 32]" in text
    assert "missing emb.2.weight [17, 32]" in text
    assert "text_linear.weight is [23, 31] where [23, 32] is needed" in text
    assert "text_emb.weight is of type I8" in text
    assert "unknown surprise [2]" in text
    assert "[modules.NAME.model]" in caught.value.hint


def test_a_long_list_is_cut_and_counted(path: Path) -> None:
    spec = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, num_layers=9))
    missing = len(parameter_shapes(spec)) - len(parameter_shapes(SPEC))
    with pytest.raises(CheckpointError, match=rf"{missing} tensors.*and {missing - 20} more"):
        load_lm(path, spec, dtype=torch.float32)


def test_more_layers_than_configured_are_an_error_and_unused_parts_are_not(path: Path) -> None:
    lean = dataclasses.replace(SPEC, extra_heads_num=0, extra_heads_dim=0, conditioners={})
    assert load_lm(path, lean, dtype=torch.float32).condition_provider is None
    short = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, num_layers=1))
    with pytest.raises(CheckpointError, match=r"unknown transformer\.layers\.1\."):
        load_lm(path, short, dtype=torch.float32)
    load_lm(path, short, dtype=torch.float32, strict=False)


@pytest.mark.parametrize(("width", "accepted"), [(88, True), (84, True), (80, False)])
def test_2_the_gated_width_may_be_that_of_either_rule(tmp_path: Path, width: int, accepted: bool) -> None:
    made = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, gated_width=width))
    write_lm(tmp_path / "wide.safetensors", made, dtype=torch.float32)
    if accepted:
        model = load_lm(tmp_path / "wide.safetensors", SPEC, dtype=torch.float32)
        assert model.spec.transformer.hidden == width
    else:
        with pytest.raises(CheckpointError, match=r"gating\.linear_in\.weight is \[160, 32\] where \[176, 32\]"):
            load_lm(tmp_path / "wide.safetensors", SPEC, dtype=torch.float32)


def test_types_are_converted_and_what_overflows_is_named(path: Path) -> None:
    half = load_lm(path, SPEC, dtype=torch.bfloat16)
    assert half.transformer.layers[0].self_attn.in_proj.weight.dtype is torch.bfloat16
    assert half.text_linear.weight.dtype is torch.float32
    assert half.condition_provider is not None
    assert half.condition_provider.learnt_padding("delay").dtype is torch.float32
    whole = logits(load_lm(path, SPEC, dtype=torch.float32))
    assert (logits(half) - whole).abs().max() < 0.1 * whole.abs().max()

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.layers.0.gating.linear_out.weight"][3, 4] = 1e6

    edit(path, change)
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors hold values that f16 cannot.*65504: transformer\.layers\.0\.gating\.linear_out\.weight$",
    ):
        load_lm(path, SPEC, dtype=torch.float16)
    load_lm(path, SPEC, dtype=torch.bfloat16)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, b"\xff" * 64])
def test_unreadable_files_are_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: cannot be read"):
        load_lm(path, SPEC, dtype=torch.float32)


def test_a_file_cut_short_is_an_error(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_lm(path, SPEC, dtype=torch.float32)
