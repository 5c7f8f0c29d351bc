"""Carries a checkpoint of the first tier over to both: `python -m training.grow OLD NEW`.

Rows of a word go where that word is now, those of new words begin small, what only helps in training begins anew, and
the codebooks are to be placed again.
"""

import argparse
from pathlib import Path

import torch

from training import targets
from training.model import TrainingModel
from training.train import halved
from training.vocabulary import FIRST_TIER

SPECIAL = 4
BY_TOKEN = {"lm.text_emb.weight": True, "lm.text_linear.weight": False}
"""Tables with a row a token, and whether the start token's row follows them."""


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
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    saved = torch.load(args.old, map_location="cpu", weights_only=True)
    weights = grow(saved["model"], sorted(FIRST_TIER))
    torch.save({"model": halved(weights), "quantized": False, "step": 0}, args.new)


if __name__ == "__main__":
    main()
