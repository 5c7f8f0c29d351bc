"""Mimi checkpoints: what fits is loaded, and what does not is named, all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from moshi_server.errors import CheckpointError
from moshi_server.model.mimi import Mimi, MimiSpec
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.weights_mimi import SPEC_KEY, checkpoint_shapes, load_mimi

from ..golden.mimi_spec import SMALL


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mimi.safetensors"
    write_mimi(path, SMALL, seed=1)
    return path


def rewrite(path: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors = load_file(path) | change
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata={SPEC_KEY: SMALL.to_json()})


def test_names_are_those_of_the_published_file() -> None:
    shapes = checkpoint_shapes(MimiSpec())
    assert len(shapes) == 318
    assert shapes["encoder.model.0.conv.conv.weight"] == (64, 1, 7)
    assert shapes["encoder.model.1.block.1.conv.conv.bias"] == (32,)
    assert shapes["decoder.model.2.convtr.convtr.weight"] == (1024, 512, 16)
    assert shapes["encoder_transformer.transformer.layers.7.self_attn.in_proj_weight"] == (1536, 512)
    assert shapes["decoder_transformer.transformer.layers.0.self_attn.out_proj.weight"] == (512, 512)
    assert shapes["downsample.conv.conv.conv.weight"] == (512, 512, 4)
    assert shapes["upsample.convtr.convtr.convtr.weight"] == (512, 1, 4)
    assert shapes["quantizer.rvq_first.input_proj.weight"] == (256, 512, 1)
    assert shapes["quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum"] == (2048, 256)


def test_centroids_are_sums_over_usage_and_stay_in_float32(checkpoint: Path) -> None:
    name = "quantizer.rvq_rest.vq.layers.2._codebook."
    usage = load_file(checkpoint)[name + "cluster_usage"]
    usage[5] = 0.0
    rewrite(checkpoint, {name + "cluster_usage": usage})
    mimi = load_mimi(checkpoint, dtype=torch.bfloat16)
    assert mimi.quantizer.acoustic is not None
    sums = load_file(checkpoint)[name + "embedding_sum"]
    expected = torch.from_numpy(sums / np.maximum(usage, 1e-5)[:, None])
    assert torch.equal(mimi.quantizer.acoustic.codebooks[2], expected)
    assert mimi.encoder.seanet.layers[0].conv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    codes = mimi.encode_step(
        torch.randn(2, 1920, dtype=torch.bfloat16), mimi.init_encoder_state(2), torch.tensor([0, 1])
    )
    assert codes.shape == (2, 8)
    assert mimi.decode_step(codes, mimi.init_decoder_state(2), torch.tensor([1, 0])).shape == (2, 1920)


def test_parts_give_the_same_codes(checkpoint: Path) -> None:
    pcm = torch.randn(1, 1, 3 * 1920)
    part = load_mimi(checkpoint, num_codebooks=3, decoder=False)
    assert part.decoder is None
    assert part.codebooks == 3
    assert torch.equal(part.encode(pcm), load_mimi(checkpoint).encode(pcm)[:, :3])


@pytest.mark.parametrize("count", [0, 9])
def test_codebooks_that_are_not_there(checkpoint: Path, count: int) -> None:
    with pytest.raises(CheckpointError, match=f"{count} codebooks were asked for, and this Mimi has 8"):
        load_mimi(checkpoint, num_codebooks=count)


def test_everything_that_does_not_fit_is_named_at_once(checkpoint: Path) -> None:
    rewrite(
        checkpoint,
        {
            "encoder.model.0.conv.conv.weight": None,
            "quantizer.rvq_rest.vq.layers.0._codebook.cluster_usage": None,
            "quantizer.rvq_rest.vq.layers.1._codebook._initialized": None,
            "downsample.conv.conv.conv.weight": np.zeros((32, 32, 3), np.float32),
            "wavlm_proj.weight": np.zeros(1, np.float32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load_mimi(checkpoint)
    message = str(caught.value)
    assert "4 tensors do not fit" in message, "the flag of initialization is not needed"
    assert "missing encoder.model.0.conv.conv.weight" in message
    assert "missing quantizer.rvq_rest.vq.layers.0._codebook.cluster_usage" in message
    assert "downsample.conv.conv.conv.weight is [32, 32, 3] where [32, 32, 4] is needed" in message
    assert "unknown wavlm_proj.weight" in message
    assert caught.value.hint


def test_a_file_of_another_model_lists_a_few_and_counts_the_rest(tmp_path: Path) -> None:
    save_file({"text_emb.weight": np.zeros(3, np.float32)}, tmp_path / "lm.safetensors")
    with pytest.raises(CheckpointError, match=r"287 tensors do not fit .*; and 275 more"):
        load_mimi(tmp_path / "lm.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mimi.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_mimi(tmp_path / "mimi.safetensors")


def test_a_spec_in_the_header_that_describes_nothing(tmp_path: Path) -> None:
    save_file({}, tmp_path / "mimi.safetensors", metadata={SPEC_KEY: "{}"})
    with pytest.raises(CheckpointError, match="describes no Mimi"):
        load_mimi(tmp_path / "mimi.safetensors")


def test_an_encoder_only_file(tmp_path: Path) -> None:
    spec = MimiSpec(seanet=SMALL.seanet, transformer=SMALL.transformer, quantizer=SMALL.quantizer, decoder=False)
    write_mimi(tmp_path / "mimi.safetensors", spec)
    mimi = load_mimi(tmp_path / "mimi.safetensors")
    assert isinstance(mimi, Mimi)
    assert mimi.decoder is None
    assert not any("decoder" in name or "output_proj" in name for name in load_file(tmp_path / "mimi.safetensors"))
