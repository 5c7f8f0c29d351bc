"""Carries a checkpoint over to the model as it is now: `python -m training.grow OLD NEW`.

Rows of a word go where that word is now, those of new words begin small, layers that the old model lacks begin by
passing on what they are given, and the codebooks are to be placed again, of whatever width they are now.
"""

import argparse
from pathlib import Path

import torch

from training import targets
from training.model import TrainingModel
from training.train import halved
from training.vocabulary import FIRST_TIER, WORDS

SPECIAL = 4
BY_TOKEN = {"lm.text_emb.weight": True, "lm.text_linear.weight": False}
"""Tables with a row a token, and whether the start token's row follows them."""
MAP, PROJECTION = "acoustic_map.weight", "mimi.quantizer.{}.input_proj.weight"
LAST = ("self_attn.out_proj.weight", "gating.linear_out.weight", "linear2.weight")
"""What a layer adds to its input is a product with these."""


def grow(old: dict[str, torch.Tensor], before: list[str]) -> dict[str, torch.Tensor]:
    """The new model's weights: the old ones', where they have the same meaning. ``before``: the old words in order."""
    new = TrainingModel().state_dict()
    for name, value in new.items():
        if name in BY_TOKEN:
            value[:SPECIAL] = old[name][:SPECIAL]
            for row, word in enumerate(before, SPECIAL):
                value[targets.TOKENS[word]] = old[name][row]
            if BY_TOKEN[name]:
                value[-1] = old[name][-1]
        elif name in old and old[name].shape == value.shape:
            new[name] = old[name].to(value.dtype)
        elif name not in old and name.endswith(LAST):
            value.zero_()
    if old[MAP].shape != new[MAP].shape or old["semantic_map.weight"].any():
        condense(old, new)
    return new


def condense(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> None:
    """What both halves of the quantizer passed on, unquantized, now all by way of the acoustic one.

    In a model of now nothing else passes anything on, and nothing is lost. The map's columns become orthonormal, so
    that what a code is off by is what the LM's input is off by.
    """
    halves = ("semantic", "acoustic")
    whole = sum(old[f"{half}_map.weight"].float() @ old[PROJECTION.format(half)].float() for half in halves)
    outward, gain, inward = torch.linalg.svd(whole)
    width = new[MAP].shape[1]
    new[MAP] = outward[:, :width].contiguous()
    projection = gain[:width, None] * inward[:width]
    new["semantic_map.weight"] = torch.zeros_like(new[MAP])
    for name in new:
        if name.endswith("input_proj.weight") and "quantizer" in name:
            new[name] = projection.clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    saved = torch.load(args.old, map_location="cpu", weights_only=True)
    rows = len(saved["model"]["lm.text_linear.weight"])
    before = next((words for words in (FIRST_TIER, WORDS) if len(words) + SPECIAL == rows), None)
    if before is None:
        raise SystemExit(f"{args.old} has {rows} tokens, which is neither tier's vocabulary")
    weights = grow(saved["model"], sorted(before))
    torch.save({"model": halved(weights), "quantized": False, "step": 0}, args.new)


if __name__ == "__main__":
    main()
