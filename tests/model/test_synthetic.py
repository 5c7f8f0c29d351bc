"""Synthetic checkpoints: the published shapes, and values that depend on the seed and the name alone."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from moshi_server.model.names import checkpoint_name, our_name
from moshi_server.model.synthetic import SHAPES, random_rows, write_lm
from moshi_server.model.weights import parameter_shapes


def test_the_published_shapes() -> None:
    shapes = parameter_shapes(SHAPES["stt-1b-en_fr"])
    assert shapes["transformer.layers.15.gating.linear_in.weight"] == (2 * 5632, 2048)
    assert shapes["transformer.layers.0.self_attn.in_proj.weight"] == (6144, 2048)
    assert shapes["emb.31.weight"] == (2049, 2048)
    assert shapes["heads.3.weight"] == (6, 2048)
    assert 0.98e9 < sum(map(math.prod, shapes.values())) < 1.0e9
    assert 2.5e9 < sum(map(math.prod, parameter_shapes(SHAPES["stt-2.6b-en"]).values())) < 2.7e9


def test_names_go_both_ways() -> None:
    for name in parameter_shapes(SHAPES["stt-1b-en_fr"]):
        assert our_name(checkpoint_name(name, "candle")) == name
        assert our_name(checkpoint_name(name, "pytorch")) == name


def test_values_depend_on_seed_and_name() -> None:
    def value(name: str, seed: int) -> np.ndarray:
        return np.concatenate(list(random_rows(name, (5000, 16), seed)))

    assert np.array_equal(value("a.weight", 1), value("a.weight", 1))
    assert not np.array_equal(value("a.weight", 1), value("a.weight", 2))
    assert not np.array_equal(value("a.weight", 1), value("b.weight", 1))
    assert abs(value("a.weight", 1).std() - 1 / 4) < 0.01
    norm = next(random_rows("transformer.layers.0.norm1.alpha", (1, 1, 64), 0))
    assert 0.8 <= norm.min() < 1 < norm.max() <= 1.2


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    spec = SHAPES["stt-1b-en_fr"]
    transformer = dataclasses.replace(spec.transformer, d_model=32, num_heads=2, num_layers=1, dim_feedforward=128)
    small = dataclasses.replace(spec, transformer=transformer, audio_codebooks=2)
    write_lm(tmp_path / "a.safetensors", small, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "a.safetensors")
    assert {our_name(name): tuple(tensor.shape) for name, tensor in tensors.items()} == parameter_shapes(small)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    want = torch.from_numpy(np.concatenate(list(random_rows("text_emb.weight", (8001, 32), 0))))
    assert torch.equal(tensors["text_emb.weight"], want.to(torch.bfloat16))


def test_the_command_names_the_shapes() -> None:
    command = [sys.executable, "-m", "moshi_server.model.synthetic", "huge", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "stt-1b-en_fr" in done.stderr
