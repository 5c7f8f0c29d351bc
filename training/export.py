"""Fold a trained checkpoint into what the server loads: `python -m training.export CHECKPOINT`.

The LM's input is a linear map of the sum of centroids, so that each code's share of it becomes a row of its embedding
table.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from moshi_server.model.quantizer import ResidualQuantizer
from moshi_server.model.weights import save_lm
from moshi_server.model.weights_mimi import SPEC_KEY, checkpoint_name, checkpoint_shapes
from training.model import TrainingModel
from training.tokenizer import write_tokenizer
from training.train import load


@torch.no_grad()
def fold(model: TrainingModel) -> None:
    """Fill the LM's audio embedding tables from the centroids and the maps learnt in training."""
    semantic, acoustic = model.mimi.quantizer.semantic, model.mimi.quantizer.acoustic
    assert acoustic is not None
    assert model.quantizer.on, "the checkpoint has no codebooks yet"
    centroids = [*semantic.codebooks, *acoustic.codebooks]
    maps = [model.semantic_map.weight] + [model.acoustic_map.weight] * len(acoustic.codebooks)
    for level, (table, rows, weight) in enumerate(zip(model.lm.emb, centroids, maps, strict=True)):
        values = rows @ weight.t()
        initial = torch.zeros_like(values[:1])
        if level == 0:
            values = values + model.semantic_map.bias
            initial = model.first[None]
        table.weight.copy_(torch.cat([values, initial]))


def mimi_tensors(model: TrainingModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The codec's checkpoint: names as upstream's, centroids in float32 as sums over a usage of one."""
    mimi = model.mimi
    shapes = checkpoint_shapes(mimi.spec)
    tensors = {checkpoint_name(name): parameter.detach().to(dtype) for name, parameter in mimi.named_parameters()}

    def add(prefix: str, quantizer: ResidualQuantizer) -> None:
        for level, rows in enumerate(quantizer.codebooks):
            name = f"quantizer.{prefix}.vq.layers.{level}._codebook."
            tensors[name + "_initialized"] = torch.ones(1)
            tensors[name + "cluster_usage"] = torch.ones(len(rows))
            tensors[name + "embedding_sum"] = rows.detach().clone()

    add("rvq_first", mimi.quantizer.semantic)
    if mimi.quantizer.acoustic is not None:
        add("rvq_rest", mimi.quantizer.acoustic)
    return {name: tensors[name].reshape(shape).contiguous() for name, shape in shapes.items()}


def export(checkpoint: Path, out: Path) -> None:
    model = TrainingModel()
    load(checkpoint, model)
    fold(model)
    out.mkdir(parents=True, exist_ok=True)
    about = {"trained_with": "training/README.md", "licence": "MIT"}
    save_file(
        mimi_tensors(model, torch.float16), out / "mimi.safetensors", {SPEC_KEY: model.mimi.spec.to_json(), **about}
    )
    save_lm(model.lm, out / "model.safetensors", dtype=torch.float16, metadata=about)
    write_tokenizer(out / "tokenizer.model")
    for name in ("mimi.safetensors", "model.safetensors", "tokenizer.model"):
        print(f"{name}: {(out / name).stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/moshi_server/demo"))
    args = parser.parse_args()
    export(args.checkpoint, args.out)


if __name__ == "__main__":
    main()
