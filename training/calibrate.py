"""Shift how readily a model calls a word strange: `python -m training.calibrate IN OUT --eval DIR --unknown -1`.

The output layer has no bias. But hidden states are nearly all alike along one direction, which least squares find; a
multiple of it added to the row of a token moves its logit by about as much in every frame. `--silence` likewise.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from training import corpus, targets
from training.model import TrainingModel
from training.train import halved, load


@torch.no_grad()
def hidden_states(model: TrainingModel, pcm: Tensor) -> Tensor:
    """(B, L) -> (B * T, D): what the output layer sees while the model listens by itself."""
    rows = pcm.shape[0]
    audio, _ = model.audio_inputs(model.encode(pcm), learn=False)
    state = model.lm.transformer.init_state(rows, device=pcm.device, dtype=torch.float32)
    slots = torch.arange(rows, device=pcm.device)
    text = torch.full((rows,), model.lm.spec.text_start_token, device=pcm.device)
    states = []
    for step in range(audio.shape[1]):
        x = (model.lm.text_emb(text) + audio[:, step]).float()
        logits, hidden = model.lm._read_out(model.lm.transformer.step(x[:, None], state, slots)[:, 0])
        states.append(hidden)
        text = logits.argmax(-1)
    return torch.stack(states, 1).flatten(0, 1)


def constant_direction(states: Tensor) -> Tensor:
    """(N, D) -> (D,) whose product with every state is as near to one as can be."""
    return torch.linalg.lstsq(states, torch.ones(len(states), 1)).solution[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="folders of speech to listen to")
    parser.add_argument(
        "--unknown", type=float, default=0.0, help="shift of strange words' logit; below zero: more words"
    )
    parser.add_argument("--silence", type=float, default=0.0, help="shift of silence's")
    parser.add_argument("--limit", type=int, default=96, help="utterances to listen to")
    args = parser.parse_args()
    model = TrainingModel().eval()
    load(args.checkpoint, model)
    audio, items = corpus.load(args.eval)
    chosen = items[:: max(1, len(items) // args.limit)][: args.limit]
    states = hidden_states(model, corpus.utterance_batch(audio, chosen))
    direction = constant_direction(states)
    fit = states @ direction
    print(f"a shift of 1 is one of {float(fit.mean()):.2f}, give or take {float(fit.std()):.2f}")
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    weights = {
        name: value.float() if name == "lm.text_linear.weight" else value for name, value in saved["model"].items()
    }
    weights["lm.text_linear.weight"][targets.UNKNOWN] += args.unknown * direction
    weights["lm.text_linear.weight"][targets.PAD] += args.silence * direction
    torch.save(saved | {"model": halved(weights)}, args.out)


if __name__ == "__main__":
    main()
