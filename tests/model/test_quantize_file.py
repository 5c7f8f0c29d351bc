"""Quantized checkpoints: written in little memory, read in either naming, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moshi_server.errors import CheckpointError
from moshi_server.model import jit
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.names import Naming
from moshi_server.model.quantize import Quantize, QuantizedLinear
from moshi_server.model.quantize_file import SCALES, Quantized, is_intact, kind_of, quantized_in, write_quantized
from moshi_server.model.synthetic import write_lm
from moshi_server.model.tensor_file import read_layout
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm

KINDS: tuple[Quantize, ...] = ("int8", "int4")
SPEC = LmSpec(60, 59, 33, 4, TransformerSpec(128, 2, 2, 512, 20, gating="silu"), 2, 6)
LARGEST_ERROR: dict[Quantize, float] = {"int8": 0.03, "int4": 0.3}


def made(folder: Path, kind: Quantize, *, dtype: torch.dtype = torch.bfloat16, naming: Naming = "candle") -> Path:
    write_lm(folder / "model.safetensors", SPEC, dtype=dtype, naming=naming)
    with open(folder / "small.safetensors", "wb") as out:
        write_quantized(folder / "model.safetensors", out, kind)
    return folder / "small.safetensors"


def rings(dtype: torch.dtype) -> torch.dtype:
    """What keys and values are held in: where kernels of our own read them, always 16 bits."""
    return torch.float16 if jit.available() else dtype


def load(path: Path, kind: Quantize | None, dtype: torch.dtype = torch.float32) -> LmModel:
    return load_lm(path, SPEC, dtype=dtype, kind=kind)


def logits(model: LmModel, streams: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    state, slots = model.init_state(streams), torch.arange(streams)
    steps = []
    for _ in range(25):
        text = torch.randint(0, 60, (2,), generator=generator)[:streams]
        audio = torch.randint(0, 33, (2, 4), generator=generator)[:streams]
        steps.append(model.step(text, audio, state, slots)[0])
    return torch.stack(steps)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", ["candle", "pytorch"])
def test_a_quantized_file_gives_the_model_that_quantizing_at_load_gives(
    tmp_path: Path, kind: Quantize, naming: Naming
) -> None:
    path = made(tmp_path, kind, naming=naming)
    expected = logits(load(tmp_path / "model.safetensors", kind))
    assert torch.equal(logits(load(path, kind)), expected)
    assert relative(expected, logits(load(tmp_path / "model.safetensors", None))) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kind_it_is_brought_back_to_numbers(tmp_path: Path, kind: Quantize) -> None:
    model = load(made(tmp_path, kind), None)
    assert not any(isinstance(layer, QuantizedLinear) for layer in model.modules())
    assert relative(logits(model), logits(load(tmp_path / "model.safetensors", None))) < LARGEST_ERROR[kind]


def test_linear_layers_are_quantized_and_embeddings_and_heads_are_not(tmp_path: Path) -> None:
    model = load(made(tmp_path, "int4", dtype=torch.float32), "int4")
    kinds = {name: layer.kind for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    assert len(kinds) == 2 * 4 + 1
    assert kinds["text_linear"] == "int8"
    assert kinds["transformer.layers.1.gating.linear_in"] == "int4"
    assert kinds["transformer.layers.1.self_attn.in_proj"] == "int4"
    assert model.text_emb.weight.dtype is torch.bfloat16
    assert model.dtype is torch.float32
    assert logits(model).dtype is torch.float32
    assert model.init_state(1)["transformer"]["ring.0"].dtype is rings(torch.float32)  # type: ignore[index,union-attr]


def test_the_number_type_is_that_of_activations_and_of_keys_and_values(tmp_path: Path) -> None:
    model = load(made(tmp_path, "int8"), "int8", torch.bfloat16)
    assert model.init_state(1)["transformer"]["ring.0"].dtype is rings(torch.bfloat16)  # type: ignore[index,union-attr]
    assert relative(logits(model), logits(load(tmp_path / "model.safetensors", None))) < 0.05


def test_a_stream_hears_the_same_alone_and_beside_another(tmp_path: Path) -> None:
    for kind in KINDS:
        model = load(made(tmp_path, kind), kind)
        rows = [row for name, row in model.named_modules() if isinstance(row, QuantizedLinear)]
        x = torch.randn(2, rows[0].in_features, generator=torch.Generator().manual_seed(3))
        for row in rows:
            if row.in_features == x.shape[1]:
                assert torch.equal(row(x)[:1], row(x[:1]))


def test_the_file_keeps_names_and_metadata_and_says_what_it_is(tmp_path: Path) -> None:
    weights = {"transformer.layers.0.gating.linear_in.weight": torch.randn(130, 32), "odd": torch.arange(5)}
    save_file(weights, tmp_path / "a", {"origin": "here"})
    with open(tmp_path / "b", "wb") as out:
        assert write_quantized(tmp_path / "a", out, "int8") == Quantized(
            1, 1, 130 * 32 * 4 + 40, 130 * 32 + 130 * 4 + 40
        )
    _, metadata = read_layout(tmp_path / "b")
    assert metadata["origin"] == "here"
    assert quantized_in(metadata, "b") == "int8"
    found = load_file(tmp_path / "b")
    assert torch.equal(found["odd"], weights["odd"])
    assert found.keys() == {*weights, "transformer.layers.0.gating.linear_in.weight" + SCALES}


def test_what_is_a_layer_and_in_how_many_bits() -> None:
    assert kind_of("transformer.layers.3.self_attn.in_proj_weight", (192, 64), "int4") == "int4"
    assert kind_of("depformer.2.transformer.layers.0.gating.linear_out.weight", (64, 96), "int4") == "int4"
    assert kind_of("transformer.layers.3.self_attn.in_proj_weight", (100, 64), "int4") == "int8"
    assert kind_of("text_linear.weight", (64, 64), "int4") == "int8"
    assert kind_of("transformer.layers.3.norm1.alpha", (1, 1, 64), "int8") is None
    assert kind_of("transformer.layers.3.self_attn.in_proj_bias", (64,), "int8") is None
    assert kind_of("depformer_emb.0.weight", (64, 64), "int8") is None
    assert kind_of("encoder_transformer.transformer.layers.0.linear1.weight", (64, 64), "int8") is None


def test_another_kind_than_the_files_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "int8")
    with pytest.raises(CheckpointError, match="is quantized to int8") as caught:
        load(path, "int4")
    assert caught.value.hint == 'set quantize = "int8"'
    with open(tmp_path / "again", "wb") as out, pytest.raises(CheckpointError, match="quantized already"):
        write_quantized(path, out, "int8")


def test_a_file_without_layers_or_of_another_format_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(64, 64)}, tmp_path / "codec")
    with open(tmp_path / "out", "wb") as out, pytest.raises(CheckpointError, match="no layers of a language model"):
        write_quantized(tmp_path / "codec", out, "int8")
    path = made(tmp_path, "int8")
    path.write_bytes(path.read_bytes().replace(b'"quantize_format": "1"', b'"quantize_format": "0"', 1))
    with pytest.raises(CheckpointError, match="format '0', which this version does not read"):
        load(path, "int8")


def test_8_bit_numbers_without_that_metadata_are_no_weights(tmp_path: Path) -> None:
    tensors = load_file(made(tmp_path, "int8"))
    save_file(tensors, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"in_proj.weight is of type I8 where floating point is needed"):
        load(tmp_path / "plain", "int8")


@pytest.mark.parametrize("place", [0, 9, 200, -1, -700])
def test_one_wrong_bit_is_seen(tmp_path: Path, place: int) -> None:
    path = made(tmp_path, "int8")
    assert is_intact(path)
    data = bytearray(path.read_bytes())
    body = 8 + int.from_bytes(data[:8], "little")
    data[place if place < 200 and place >= 0 else body + place % (len(data) - body)] ^= 1
    path.write_bytes(data)
    assert not is_intact(path)


def test_a_file_cut_short_is_seen(tmp_path: Path) -> None:
    path = made(tmp_path, "int4")
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_intact(path)
    path.write_bytes(b"")
    assert not is_intact(path)
    assert not is_intact(tmp_path / "absent")
    assert not is_intact(tmp_path / "model.safetensors")
