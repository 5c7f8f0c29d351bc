"""`quantize` from the configuration to running layers: what is taken, cached, planned, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moshi_server.engine.build import BuiltModule, build_engines, make_plans, quantized_file
from moshi_server.engine.hooks import EngineHooks
from moshi_server.errors import ConfigError
from moshi_server.gpu import Header, TensorHead, lm_weights
from moshi_server.model.quantize import QuantizedLinear
from moshi_server.model.quantize_cache import convert_quantized

from .test_build import config, folder, module
from .test_number_types import lm_of

__all__ = ["folder"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "moshi-server" / "quantized"


def build(text: str, tmp_path: Path) -> BuiltModule:
    return build_engines(config(tmp_path, text), device="cpu", hooks_for=lambda name, kind: EngineHooks())[0]


def layers_of(built: BuiltModule) -> set[str]:
    return {layer.kind for layer in lm_of(built).modules() if isinstance(layer, QuantizedLinear)}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_layers_are_in_as_many_bits_as_asked_and_the_copy_is_kept(
    folder: Path, tmp_path: Path, cache: Path, kind: str
) -> None:
    built = build(module(folder, quantize=kind), tmp_path)
    assert layers_of(built) <= {"int8", kind}  # 4 bits do not fit every shape of this small model
    assert len(list(cache.iterdir())) == 1
    assert lm_of(built).dtype is torch.float32
    assert lm_of(built).text_emb.weight.dtype is torch.bfloat16
    built.engine._runner.warmup()  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [None, "none"])
def test_a_small_model_is_left_as_it_is(folder: Path, tmp_path: Path, cache: Path, value: str | None) -> None:
    changes = {} if value is None else {"quantize": value}
    assert layers_of(build(module(folder, **changes), tmp_path)) == set()
    assert not cache.exists()


def test_a_quantized_checkpoint_is_taken_as_it_is(folder: Path, tmp_path: Path, cache: Path) -> None:
    convert_quantized(folder / "lm.safetensors", tmp_path / "small.safetensors", "int8")
    small = str(tmp_path / "small.safetensors")
    assert layers_of(build(module(folder, lm_model_file=small), tmp_path)) == {"int8"}
    assert layers_of(build(module(folder, lm_model_file=small, quantize="none"), tmp_path)) == set()
    assert not cache.exists()


def test_dtype_override_is_that_of_all_else(folder: Path, tmp_path: Path) -> None:
    built = build(module(folder, quantize="int8", dtype_override="bf16"), tmp_path)
    assert layers_of(built) == {"int8"}
    assert lm_of(built).dtype is torch.bfloat16
    built.engine._runner.warmup()  # type: ignore[attr-defined]


def test_modules_in_different_bits_share_no_weights(folder: Path, tmp_path: Path) -> None:
    both = config(tmp_path, module(folder, "a", quantize="int8"), module(folder, "b"), module(folder, "c"))
    one, other, third = build_engines(both, device="cpu", hooks_for=lambda name, kind: EngineHooks())
    assert lm_of(one) is not lm_of(other)
    assert lm_of(other) is lm_of(third)


def test_without_a_cache_it_is_quantized_while_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = folder / "lm.safetensors"
    assert quantized_file(path, "int8") == path
    assert layers_of(build(module(folder, quantize="int8"), tmp_path)) == {"int8"}
    assert "cannot be kept for the next start" in caplog.text


def test_the_plan_says_so(folder: Path, tmp_path: Path) -> None:
    plan = make_plans(config(tmp_path, module(folder, quantize="int8")), "cpu", {})["cpu"]
    assert plan["asr"].dtype.quantize == "int8"
    assert "8 at once, int8 layers, f32 (quantize)" in plan.lines()[0]


def test_a_gpu_takes_no_quantized_layers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moshi_server.engine.build.choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr("moshi_server.engine.build.cuda_gpus", list)
    with pytest.raises(ConfigError, match="on a CPU only") as caught:
        make_plans(config(tmp_path, module(folder, quantize="int8")), None, {})
    assert caught.value.key == "quantize"


def test_the_size_foretold_is_that_of_the_layers(tmp_path: Path) -> None:
    """The published 1B model's: 822 million numbers in linear layers, 151 million in embeddings, a text head."""
    from moshi_server.config import load_config
    from moshi_server.engine.sizing import lm_shape

    root = Path(__file__).parents[2]
    loaded = load_config(root / "configs" / "config-stt-en_fr-hf.toml", {}).modules["asr"]
    shape = lm_shape(loaded.model)  # type: ignore[union-attr]
    for header in (None, Header({"a": TensorHead("I8", (3,))}, {"quantize": "int8"})):
        cost = lm_weights(shape, header)
        # As measured: the files of `convert --quantize` for that shape.
        assert cost.bytes("f32", "int8") == pytest.approx(1_141_447_936, rel=0.005)
        assert cost.bytes("f32", "int4") == pytest.approx(831_790_336, rel=0.005)
