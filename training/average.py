"""Average the weights of checkpoints of one run's line: `python -m training.average OUT CHECKPOINT CHECKPOINT...`."""

import argparse
from pathlib import Path

import torch


def average(checkpoints: list[Path], out: Path) -> None:
    """Equal shares. The centroids are averaged too: a continued run moves them little and keeps their order."""
    saved = [torch.load(path, map_location="cpu", weights_only=True) for path in checkpoints]
    model = dict(saved[-1]["model"])
    for name, value in model.items():
        if value.is_floating_point():
            model[name] = torch.stack([s["model"][name].float() for s in saved]).mean(0).to(value.dtype)
    torch.save(saved[-1] | {"model": model}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    args = parser.parse_args()
    average(args.checkpoints, args.out)


if __name__ == "__main__":
    main()
