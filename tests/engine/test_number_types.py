"""The number type of section 5 through the whole build: chosen once, converted at load, refused by a tensor's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moshi_server.config import load_config
from moshi_server.config.modules import BatchedAsrConfig
from moshi_server.engine import sizing
from moshi_server.engine.build import BuiltModule
from moshi_server.errors import CheckpointError
from moshi_server.gpu import choose_cpu_dtype, cpu_flags, dtypes
from moshi_server.model.convert import convert_checkpoint
from moshi_server.model.lm import LmModel

from .test_build import build, config, folder, module

__all__ = ["folder"]

ROOT = Path(__file__).parents[2]
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def lm_of(built: BuiltModule) -> LmModel:
    model: LmModel = built.engine._runner._model.lm  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize("name", TYPES)
def test_5_dtype_override_converts_at_load_and_the_module_runs(folder: Path, tmp_path: Path, name: str) -> None:
    built = build(config(tmp_path, module(folder, dtype_override=name)))[0]
    lm = lm_of(built)
    assert lm.dtype is TYPES[name]
    assert lm.transformer.layers[0].self_attn.in_proj.weight.dtype is TYPES[name]
    assert lm.text_linear.weight.dtype is torch.float32
    built.engine._runner.warmup()  # type: ignore[attr-defined]


def test_5_a_converted_checkpoint_is_loaded_as_it_is(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "f16.safetensors"
    convert_checkpoint(folder / "lm.safetensors", half, torch.float16)
    paths = (folder / "lm.safetensors", half)
    want, got = (
        lm_of(build(config(tmp_path, module(folder, lm_model_file=str(path), dtype_override="f16")))[0])
        for path in paths
    )
    assert all(torch.equal(one, other) for one, other in zip(want.parameters(), got.parameters(), strict=True))


def test_5_a_value_beyond_f16_names_the_module_and_the_tensor(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "lm.safetensors")
    name = "transformer.layers.1.self_attn.in_proj_weight"
    tensors[name][5, 7] = 7e4
    save_file(tensors, tmp_path / "lm.safetensors")
    path = str(tmp_path / "lm.safetensors")
    with pytest.raises(CheckpointError) as raised:
        build(config(tmp_path, module(folder, lm_model_file=path, dtype_override="f16")))
    assert str(raised.value).startswith(f"modules.asr: {path}: 1 tensors hold values that f16 cannot")
    assert str(raised.value).endswith(name)
    assert "dtype_override" in raised.value.hint
    assert lm_of(build(config(tmp_path, module(folder, lm_model_file=path, dtype_override="bf16")))[0])


def test_5_without_an_override_the_policy_decides(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = config(tmp_path, module(folder))
    assert lm_of(build(small)[0]).dtype is torch.float32, "it lies in the cache"
    monkeypatch.setattr(dtypes, "SMALL", 0)
    want = choose_cpu_dtype(cpu_flags()).dtype
    assert lm_of(build(small)[0]).dtype is TYPES[want]
    monkeypatch.setattr(sizing, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert lm_of(build(small)[0]).dtype is torch.bfloat16


@pytest.mark.parametrize("origin", ["fork", "notes"])
def test_5_the_shipped_file_for_turing_is_the_published_one_in_f16(origin: str) -> None:
    name = "config-stt-en_fr-lowram-sm75.toml"
    ours = load_config(ROOT / "configs" / name, {}).modules["asr"]
    theirs = load_config(ROOT / "tests" / "data" / "configs" / origin / name, {"HOME": "/home/somebody"}).modules["asr"]
    assert isinstance(ours, BatchedAsrConfig)
    assert isinstance(theirs, BatchedAsrConfig)
    assert ours.dtype_override == "f16"
    assert ours.model == theirs.model
    for key in ("path", "batch_size", "asr_delay_in_tokens", "conditioning_learnt_padding", "temperature"):
        assert getattr(ours, key) == getattr(theirs, key), key
