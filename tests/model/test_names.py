"""A speaking model's checkpoint in each of upstream's namings, and in the older forms of each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moshi_server.errors import CheckpointError
from moshi_server.model.conditioning import LutSpec, TensorSpec
from moshi_server.model.cross_attention import CrossSpec
from moshi_server.model.depformer import DepformerSpec
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.names import Naming, layout
from moshi_server.model.synthetic import write_lm
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm, parameter_shapes, save_lm

DEPTH = TransformerSpec(16, 2, 2, 48, context=4, gating="silu", positional_embedding="none")
SPEC = LmSpec(
    text_in_vocab_size=24,
    text_out_vocab_size=23,
    audio_vocab_size=17,
    audio_codebooks=4,
    transformer=TransformerSpec(32, 4, 2, 128, context=10, gating="silu", cross=CrossSpec(6)),
    conditioners={"control": LutSpec(2, 4, ("ok",)), "speaker_wavs": TensorSpec(5)},
    depformer=DepformerSpec(4, DEPTH, schedule=(0, 1, 2, 2), low_rank=3),
    two_text_streams=True,
)


def same(one: LmModel, other: LmModel) -> bool:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def read(path: Path, spec: LmSpec = SPEC) -> LmModel:
    return load_lm(path, spec, dtype=torch.float32)


@pytest.mark.parametrize("naming", ["candle", "pytorch"])
@pytest.mark.parametrize(
    "depth",
    [
        {},
        {"schedule": None, "low_rank": None},
        {"shared_input": True, "norms": "rms_norm"},
        {"schedule": (0, 0, 0, 0), "transformer": dataclasses.replace(DEPTH, gating="none"), "shared_input": True},
    ],
)
def test_what_is_written_is_read(naming: Naming, depth: dict[str, Any], tmp_path: Path) -> None:
    assert SPEC.depformer is not None
    spec = dataclasses.replace(SPEC, depformer=dataclasses.replace(SPEC.depformer, **depth))
    if naming == "candle" and depth.get("norms"):
        spec = dataclasses.replace(spec, depformer=dataclasses.replace(spec.depformer, norms=None))
    write_lm(tmp_path / "first", spec, naming=naming, dtype=torch.float32)
    first = read(tmp_path / "first", spec)
    save_lm(first, tmp_path / "again", naming=naming)
    assert same(read(tmp_path / "again", spec), first)
    assert set(layout(parameter_shapes(spec), spec, naming)) == set(load_file(tmp_path / "first"))


def test_names_are_upstreams(tmp_path: Path) -> None:
    for naming in ("candle", "pytorch"):
        write_lm(tmp_path / naming, SPEC, naming=naming, dtype=torch.float32)  # type: ignore[arg-type]
    pytorch, candle = load_file(tmp_path / "pytorch"), load_file(tmp_path / "candle")
    assert pytorch["transformer.layers.1.cross_attention.in_projs.0.weight"].shape == (96, 32)
    assert pytorch["transformer.layers.1.norm_cross.bias"].shape == (32,)
    assert pytorch["depformer_in.2.weight"].shape == (16, 32)
    assert pytorch["depformer_emb.2.low_rank.weight"].shape == (16, 3)
    assert pytorch["depformer_text_emb.out1.weight"].shape == (16, 3)
    assert pytorch["text_emb.out2.weight"].shape == (32, 32)
    assert pytorch["depformer.layers.1.self_attn.in_projs.2.weight"].shape == (48, 16)
    assert pytorch["depformer.layers.1.gating.2.linear_out.weight"].shape == (16, 32)
    assert pytorch["depformer.layers.1.norm1.alpha"].shape == (1, 1, 16)
    assert pytorch["linears.3.weight"].shape == (16, 16)
    assert candle["depformer.3.transformer.layers.1.self_attn.in_proj_weight"].shape == (48, 16)
    assert candle["depformer.3.transformer.layers.1.norm2.alpha"].shape == (1, 1, 16)
    assert candle["depformer.0.emb.weight"].shape == (24, 3)
    assert candle["depformer.3.emb.weight"].shape == (17, 3)
    assert candle["depformer.3.linear_out.weight"].shape == (16, 16)
    assert candle["transformer.layers.0.cross_attention.in_proj_weight_kv"].shape == (64, 32)
    assert same(read(tmp_path / "candle"), read(tmp_path / "pytorch"))


def test_older_files_have_all_sets_of_weights_in_one_tensor(tmp_path: Path) -> None:
    write_lm(tmp_path / "new", SPEC, naming="pytorch", dtype=torch.float32)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(load_file(tmp_path / "new").items()):
        fused = re.sub(r"^(depformer.*)\.in_projs\.\d\.weight", r"\1.in_proj_weight", name)
        fused = re.sub(r"^(depformer.*)\.out_projs\.\d\.weight", r"\1.out_proj.weight", fused)
        tensors[fused] = torch.cat((tensors[fused], tensor)) if fused in tensors else tensor
    assert len(tensors) < len(load_file(tmp_path / "new"))
    save_file(tensors, tmp_path / "old")
    assert same(read(tmp_path / "old"), read(tmp_path / "new"))


def test_the_widths_of_the_feed_forwards_are_taken_as_they_are(tmp_path: Path) -> None:
    assert SPEC.depformer is not None
    wide = dataclasses.replace(SPEC, depformer=dataclasses.replace(SPEC.depformer, widths=(24, 40, 8)))
    write_lm(tmp_path / "wide", wide, naming="pytorch")
    read_back = read(tmp_path / "wide").spec.depformer
    assert read_back is not None
    assert read_back.widths == (24, 40, 8)


def test_what_is_shared_must_be_the_same(tmp_path: Path) -> None:
    write_lm(tmp_path / "lm", SPEC, dtype=torch.float32)
    tensors = load_file(tmp_path / "lm")
    tensors["depformer.2.transformer.layers.0.norm1.alpha"] += 1
    save_file(tensors, tmp_path / "lm2")
    with pytest.raises(CheckpointError, match=r"depformer\.2\.transformer\.layers\.0\.norm1\.alpha differs"):
        read(tmp_path / "lm2")


def test_a_codebook_that_is_not_configured_is_left_out(tmp_path: Path) -> None:
    write_lm(tmp_path / "lm", SPEC, dtype=torch.float32)
    assert SPEC.depformer is not None
    fewer = dataclasses.replace(SPEC.depformer, codebooks=3, schedule=(0, 1, 2))
    assert len(read(tmp_path / "lm", dataclasses.replace(SPEC, depformer=fewer)).depformer.linears) == 3  # type: ignore[union-attr]
