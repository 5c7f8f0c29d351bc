"""The arithmetic against the modules themselves: what weights and each slot take on this machine's CPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moshi_server.config import LmConfig, LutConditionerConfig, load_config
from moshi_server.engine.sizing import lm_shape, module_request
from moshi_server.engine.specs import lm_spec
from moshi_server.errors import CheckpointError
from moshi_server.gpu import (
    CODEC_ROWS,
    CodecShape,
    DepformerShape,
    DType,
    Header,
    LmShape,
    TransformerShape,
    codec_weights,
    lm_weights,
    read_header,
    stt_stream,
)
from moshi_server.model.depformer import Depformer, DepformerSpec
from moshi_server.model.dialogue import DialogueModel, DialogueSpec
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.mimi import ROWS_AT_ONCE, Mimi, MimiSpec
from moshi_server.model.quantizer import QuantizerSpec
from moshi_server.model.seanet import SeanetSpec
from moshi_server.model.streaming import state_bytes
from moshi_server.model.stt import SttModel
from moshi_server.model.synthetic import write_lm
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm
from moshi_server.speech.dialogue import MAX_PENALTY_CONTEXT

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ["config-stt-en_fr-hf", "config-stt-en-hf", "demo", "unmute-stt"]
TORCH: dict[DType, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = 0.02

TINY_MIMI = MimiSpec(
    seanet=SeanetSpec(dimension=96, filters=8, residual_layers=2),
    transformer=TransformerSpec(96, 4, 2, 256, 50, norm="layer_norm", layer_scale=0.01, gating="silu", kv_repeat=2),
    quantizer=QuantizerSpec(dimension=32, bins=256, codebooks=8),
)


def sizes(name: str) -> tuple[LmSpec, LmShape]:
    model = next(iter(load_config(CONFIGS / f"{name}.toml", {}).modules.values())).model
    return lm_spec(model), lm_shape(model)


def allocated(module: nn.Module) -> int:
    """Bytes of every parameter and buffer, whether or not there is memory behind them."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def codec_of(spec: MimiSpec) -> CodecShape:
    return CodecShape.from_json(spec.to_json())


def build(spec: LmSpec, mimi_spec: MimiSpec, dtype: DType) -> SttModel:
    """The whole model as `load_lm` and `load_mimi` leave it, without memory."""
    quantizer = dataclasses.replace(mimi_spec.quantizer, codebooks=spec.audio_codebooks)
    with torch.device("meta"):
        mimi = Mimi(dataclasses.replace(mimi_spec, quantizer=quantizer, decoder=False))
        lm = LmModel(spec).to(TORCH[dtype])
        lm.text_linear.float()
        return SttModel(mimi, lm)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_5_weights_are_what_the_modules_take(name: str, dtype: DType) -> None:
    spec, shape = sizes(name)
    model = build(spec, MimiSpec(), dtype)
    foretold = lm_weights(shape, None)
    assert foretold.bytes(dtype) == pytest.approx(allocated(model.lm), rel=TOLERANCE)
    assert foretold.bytes(dtype) == allocated(model.lm)  # and to the byte
    codec = codec_weights(CodecShape(), "", shape.audio_codebooks)
    assert codec.bytes(dtype) == allocated(model.mimi)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mimi", [MimiSpec(), TINY_MIMI], ids=["kyutai", "tiny"])
def test_a_slots_state_is_what_the_modules_take(name: str, dtype: DType, mimi: MimiSpec) -> None:
    spec, shape = sizes(name)
    if spec.audio_codebooks > mimi.quantizer.codebooks:
        mimi = dataclasses.replace(mimi, quantizer=QuantizerSpec(32, 256, spec.audio_codebooks))
    taken = state_bytes(build(spec, mimi, dtype).init_state(8)) / 8
    costs = stt_stream(shape, codec_of(mimi), "")
    foretold = sum(cost.bytes(dtype) for cost in costs if cost.label != "activations")
    assert foretold == pytest.approx(taken, rel=TOLERANCE)
    assert foretold == taken  # and to the byte


def test_the_plan_counts_as_many_rows_of_the_codec_as_run_at_once() -> None:
    assert CODEC_ROWS == ROWS_AT_ONCE


@pytest.mark.parametrize("name", NAMES)
def test_a_slots_state_in_8_bits_is_what_the_modules_take(name: str) -> None:
    spec, shape = sizes(name)
    taken = state_bytes(build(spec, MimiSpec(), "bf16").init_state(8, eight_bit_kv=True)) / 8
    costs = stt_stream(shape, CodecShape(), "", eight_bit_kv=True, captured=True)
    assert sum(cost.bytes("bf16") for cost in costs if cost.label != "activations") == taken


def test_memory_really_taken_on_this_machine_is_as_foretold(tmp_path: Path) -> None:
    spec, shape = sizes("demo")
    write_lm(tmp_path / "lm.safetensors", spec)
    header = read_header(str(tmp_path / "lm.safetensors"))
    for dtype, kind in TORCH.items():
        lm = load_lm(tmp_path / "lm.safetensors", spec, dtype=kind)
        assert lm_weights(shape, header).bytes(dtype) == allocated(lm)
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in lm.parameters()
        }
        assert sum(storages.values()) == pytest.approx(lm_weights(shape, header).bytes(dtype), rel=TOLERANCE)


@pytest.mark.parametrize("spec", [MimiSpec(), TINY_MIMI], ids=["kyutai", "tiny"])
@pytest.mark.parametrize("codebooks", [1, 4, 8])
def test_the_codec_is_counted_to_the_number(spec: MimiSpec, codebooks: int) -> None:
    quantizer = dataclasses.replace(spec.quantizer, codebooks=codebooks)
    with torch.device("meta"):
        encoder = Mimi(dataclasses.replace(spec, quantizer=quantizer, decoder=False))
        whole = Mimi(dataclasses.replace(spec, quantizer=quantizer))
    shape = codec_of(spec)
    assert 4 * shape.encoder_parameters(codebooks) == allocated(encoder)
    with_decoder = dataclasses.replace(shape, quantizer=dataclasses.replace(shape.quantizer, codebooks=codebooks))
    assert 4 * with_decoder.decoder_parameters() == allocated(whole) - allocated(encoder)
    assert 4 * shape.decoder_state + 8 == state_bytes(whole.init_decoder_state(1))


@pytest.mark.parametrize(
    "change",
    [
        {"kv_repeat": 2},
        {"bias_ff": True, "bias_attn": True},
        {"norm": "layer_norm", "layer_scale": 0.01},
        {"gating": "none"},
        {"dim_feedforward": 96},
        {"gated_width": 77},
    ],
)
def test_every_variant_of_the_transformer_is_counted_to_the_number(change: dict[str, object]) -> None:
    base = {"d_model": 32, "num_heads": 4, "num_layers": 3, "dim_feedforward": 128, "context": 7, "gating": "silu"}
    spec = TransformerSpec(**{**base, **change})
    _, shape = sizes("demo")
    fields = dataclasses.asdict(spec) | {"layer_scale": spec.layer_scale is not None}
    known = {field.name for field in dataclasses.fields(shape.transformer)}
    transformer = dataclasses.replace(shape.transformer, **{key: fields[key] for key in known})
    shape = dataclasses.replace(shape, transformer=transformer)
    lm = LmSpec(
        shape.text_in_vocab_size, shape.text_out_vocab_size, shape.audio_vocab_size, shape.audio_codebooks, spec,
        shape.extra_heads_num, shape.extra_heads_dim,
    )  # fmt: skip
    with torch.device("meta"):
        model = LmModel(lm)
    assert 4 * shape.parameters == allocated(model)
    assert 4 * transformer.state + 8 == state_bytes(model.init_state(1))


def test_what_a_gpu_really_took() -> None:
    """Read on an H100 80GB HBM3 with torch 2.11: MB of weights and of one slot's state, in bf16."""
    for name, weights, state in [("config-stt-en_fr-hf", 2134.4, 101.61), ("config-stt-en-hf", 5225.3, 148.48)]:
        _, shape = sizes(name)
        costs = stt_stream(shape, CodecShape(), "")
        taken = lm_weights(shape, None).bytes("bf16") + codec_weights(CodecShape(), "", 32).bytes("bf16")
        assert taken / 2**20 == pytest.approx(weights, rel=TOLERANCE)
        held = sum(cost.bytes("bf16") for cost in costs if cost.label != "activations")
        assert held / 2**20 == pytest.approx(state, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "streams", "peak"), [("config-stt-en_fr-hf", 256, 30670 - 2134), ("config-stt-en-hf", 256, 45072 - 5225)]
)
def test_activations_cover_what_the_allocator_held_on_a_gpu(name: str, streams: int, peak: int) -> None:
    """Read on the same H100: MB that torch had reserved after steps of 256 streams, less the weights."""
    _, shape = sizes(name)
    foretold = streams * sum(cost.bytes("bf16") for cost in stt_stream(shape, CodecShape(), "")) / 2**20
    assert peak <= foretold <= 1.05 * peak


def head_of(tensors: dict[str, tuple[int, ...]], path: Path) -> Header:
    entries = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return read_header(str(path))


def test_a_header_counts_what_is_loaded_and_nothing_else(tmp_path: Path) -> None:
    _, shape = sizes("demo")
    used = {"text_emb.weight": (10,), "text_linear.weight": (7,)}
    extra = {"extra_heads.0.weight": (100,), "condition_provider.x": (1000,), "depformer.x": (5,), "fuser.x": (5,)}
    header = head_of(used | extra, tmp_path / "x.safetensors")
    assert lm_weights(shape, header).bytes("f16") == 110 * 2 + 7 * 4
    without = dataclasses.replace(shape, extra_heads_num=0)
    assert lm_weights(without, header).bytes("f16") == 10 * 2 + 7 * 4
    assert lm_weights(without, header, conditioners=True).bytes("f16") == 10 * 2 + 1007 * 4


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"seanet": 3}', '{"sample_rate": 1, "seanet": {}}'])
def test_a_spec_that_describes_no_mimi_is_a_checkpoint_error(text: str) -> None:
    with pytest.raises(CheckpointError, match="describes no Mimi"):
        CodecShape.from_json(text)


@pytest.mark.parametrize(
    "change",
    [{}, {"low_rank": 12}, {"codebooks": 1}, {"gating": "none", "codebooks": 1}, {"kv_repeat": 2}],
    ids=str,
)
def test_the_depth_transformer_is_counted_to_the_number(change: dict[str, Any]) -> None:
    codebooks, low_rank = change.pop("codebooks", 4), change.pop("low_rank", None)
    sizes = {"d_model": 32, "num_heads": 4, "num_layers": 2, "dim_feedforward": 128, "context": 4, "gating": "silu"}
    sizes |= change
    with torch.device("meta"):
        spec = TransformerSpec(**sizes, positional_embedding="none")
        module = Depformer(DepformerSpec(codebooks, spec, low_rank=low_rank), 48, 65, 33)
    shape = DepformerShape(codebooks, TransformerShape(**sizes), low_rank)
    assert shape.parameters(48, 65, 33) == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_dialogues_slot_is_what_the_modules_take(conditioned: bool, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "config-dialogue-moshi-hf.toml", {})
    module = config.modules["lm"]
    assert isinstance(module, LmConfig)
    if conditioned:
        lut = LutConditionerConfig(type="Lut", n_bins=3, dim=4, possible_values=["a"])
        model = module.model.model_copy(update={"conditioners": {"description": lut}})
        module = module.model_copy(update={"model": model})
    request = module_request("lm", module, lambda uri: None)
    assert request is not None
    with torch.device("meta"):
        lm = LmModel(lm_spec(module.model)).to(torch.bfloat16)
        mimi = Mimi(dataclasses.replace(MimiSpec(), quantizer=QuantizerSpec(codebooks=8)))
        gen = module.gen.model_dump(exclude={"audio_vocab_size"})
        model = DialogueModel(mimi, lm, DialogueSpec(**gen, penalty_context=MAX_PENALTY_CONTEXT))
    costs = {cost.label: cost for cost in request.per_stream}
    foretold = sum(cost.bytes("bf16") for label, cost in costs.items() if label != "activations")
    assert foretold == state_bytes(model.init_state(4)) / 4
    codec = next(each.cost for each in request.weights if each.cost.label == "codec")
    assert codec.bytes("bf16") == allocated(mimi)
