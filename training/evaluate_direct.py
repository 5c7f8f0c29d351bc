"""Word error rates of a model in training, many utterances at once, without folding its codes and without a server."""

import numpy as np
import torch
from torch import Tensor

from training import targets, voices
from training.corpus import utterance_batch
from training.mixing import Located
from training.model import TrainingModel
from training.noise import with_noise
from training.scoring import Score
from training.shard import Utterance
from training.vocabulary import FIRST_TIER

LEAD = 0.4


def groups(items: list[Located], limit: int) -> dict[str, list[Located]]:
    """Evaluation sets: an engine's training voices, its held-out ones, or a whole engine never trained on."""
    sets: dict[str, list[Located]] = {}
    for item in items:
        sets.setdefault(_split(item), []).append(item)
    return {name: chosen[:limit] for name, chosen in sorted(sets.items())}


def _split(item: Located) -> str:
    u = item.utterance
    if not targets.known(u.words):
        return f"outside-{u.engine}"
    tier = "" if all(w.text in FIRST_TIER for w in u.words) else "everyday-"
    return tier + _who(u)


def _who(u: Utterance) -> str:
    if not voices.ENGINES[u.engine].trained_on:
        return f"engine-{u.engine}"
    held = voices.HELD_OUT.get(u.engine, [])
    unseen = u.voice in held or u.voice.split("+")[-1] in held
    return f"{'unseen' if unseen else 'seen'}-{u.engine}"


@torch.no_grad()
def decode(model: TrainingModel, batch: Tensor) -> list[list[int]]:
    device = next(model.parameters()).device
    tokens = model.greedy(batch.to(device))
    return [list(map(int, row)) for row in tokens.cpu()]


def evaluate_sets(
    model: TrainingModel, audio: np.ndarray, items: list[Located], limit: int = 10**9, noise_db: float = 15.0
) -> dict[str, Score]:
    """A score a set, and the seen voices again with noise."""
    scores: dict[str, Score] = {}
    for name, chosen in groups(items, limit).items():
        for noisy in (False, True) if "seen-" in name and "unseen" not in name else (False,):
            score = Score()
            for at in range(0, len(chosen), 128):
                part = chosen[at : at + 128]
                batch = utterance_batch(audio, part, LEAD)
                if noisy:
                    batch = torch.stack([with_noise(row, noise_db, seed=at + i) for i, row in enumerate(batch)])
                for item, tokens in zip(part, decode(model, batch), strict=True):
                    score.add(targets.known(item.utterance.words), targets.words_of(tokens), LEAD)
            scores.setdefault(f"noise-{noise_db:g}dB" if noisy else name, Score()).merge(score)
    return scores
