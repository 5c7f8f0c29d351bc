"""Makes a checkpoint to train on from what ships, the inverse of `export`: `python -m training.unfold NEW`.

The embedding tables are linear in the centroids, so that least squares find the maps again. What only helps in training
begins anew, and the codebooks are to be placed again. It has as many layers as what ships; `grow` gives it more.
"""

import argparse
import re
from pathlib import Path

import torch
from safetensors import safe_open

from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi
from training.model import TrainingModel, lm_spec
from training.train import halved


def layers_in(path: Path) -> int:
    """How many transformer layers a language model's file holds."""
    with safe_open(path, "pt") as file:
        found = [re.search(r"transformer\.layers\.(\d+)\.", name) for name in file.keys()]  # noqa: SIM118
    return 1 + max(int(match[1]) for match in found if match)


@torch.no_grad()
def unfold(demo: Path) -> TrainingModel:
    mimi = load_mimi(demo / "mimi.safetensors", decoder=False)
    layers = layers_in(demo / "model.safetensors")
    model = TrainingModel(mimi.spec.transformer.num_layers, layers)
    model.mimi.load_state_dict(mimi.state_dict())
    lm = load_lm(demo / "model.safetensors", lm_spec(layers), dtype=torch.float32)
    model.lm.load_state_dict(lm.state_dict())
    tables = [table.weight.double() for table in model.lm.emb]
    quantizer = model.mimi.quantizer
    assert quantizer.acoustic is not None
    # The semantic table carries the bias, and in its last row what stands before the first frame.
    centroids = quantizer.semantic.codebooks[0].double()
    ones = torch.ones(len(centroids), 1, dtype=torch.float64)
    found = torch.linalg.lstsq(torch.cat([centroids, ones], 1), tables[0][:-1]).solution
    model.semantic_map.weight.copy_(found[:-1].t())
    model.semantic_map.bias.copy_(found[-1])
    model.first.copy_(tables[0][-1])
    stacked = torch.cat(list(quantizer.acoustic.codebooks.double()))
    rows = torch.cat([table[:-1] for table in tables[1:]])
    found = torch.linalg.lstsq(stacked, rows).solution
    model.acoustic_map.weight.copy_(found.t())
    print(f"off by {float((stacked @ found - rows).abs().max()):.1e} at most")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("src/moshi_server/demo"))
    args = parser.parse_args()
    torch.save({"model": halved(unfold(args.demo).state_dict()), "quantized": False, "step": 0}, args.new)


if __name__ == "__main__":
    main()
