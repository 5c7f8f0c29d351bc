"""Train the embedded model by the clock: `python -m training.train --data DIR --eval DIR --out DIR --minutes 9`.

First latents unquantized, then codebooks by k-means and a straight-through pass, the learning rate falling all the
while. `--resume` goes on from a checkpoint, with wider speeds, excerpts and longer pauses, its codebooks in use unless
`--quantize-again` places them anew. Over several GPUs: `torchrun --nproc-per-node 2 -m training.train ...`.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training import corpus, targets
from training.augment import augment, render
from training.evaluate_direct import evaluate_sets
from training.live import Growing, Listing
from training.mixing import FRAME, VARIED, Rows
from training.model import MelTarget, Outputs, TrainingModel
from training.quantize import LATENTS
from training.ranks import Ranks
from training.synth.speech import SAMPLE_RATE


@dataclasses.dataclass
class Settings:
    data: list[Path]
    eval: list[Path]
    out: Path
    minutes: float
    steps: int
    batch: int
    frames: int
    rate: float
    quantize_at: float
    warmup: int
    workers: int
    seed: int
    compile: bool
    resume: Path | None
    device: str
    strength: float
    eval_every: float
    eval_limit: int
    final_limit: int
    live: Path | None
    live_hours: float
    quantize_again: bool


def drop_text(text: Tensor, start_token: int) -> Tensor:
    """The text the LM is fed: the targets one step late, some words hidden or wrong so that it must listen.

    A hidden word becomes a strange one, for that it was written stays to be seen: were it silence, the model would
    not know whether what is missing is still to come, and close words that it has yet to write.
    """
    fed = torch.cat([torch.full_like(text[:, :1], start_token), text[:, :-1]], dim=1)
    chance = lambda p: torch.rand(fed.shape, device=fed.device) < p  # noqa: E731
    rows = torch.rand(len(text), 1, device=text.device)
    hidden = chance(torch.where(rows < 0.3, 0.0, torch.where(rows < 0.9, 0.2, 0.5)))
    word = (fed >= targets.FIRST_WORD) & (fed != start_token)
    fed = torch.where(word & hidden, torch.full_like(fed, targets.UNKNOWN), fed)
    other = torch.randint(targets.FIRST_WORD, targets.VOCABULARY, fed.shape, device=fed.device)
    fed = torch.where(word & chance(0.015), other, fed)
    # As it errs itself now and then: a word or a border too few, a border too many.
    lost = (word | (fed == targets.UNKNOWN) | (fed == targets.BOUNDARY)) & chance(0.01)
    fed = torch.where(lost, torch.full_like(fed, targets.PAD), fed)
    extra = (fed == targets.PAD) & chance(0.003)
    extra[:, 0] = False
    return torch.where(extra, torch.full_like(fed, targets.BOUNDARY), fed)


def losses(out: Outputs, batch: dict[str, Tensor], mels: Tensor) -> dict[str, Tensor]:
    text = functional.cross_entropy(out.logits.flatten(0, 1).float(), batch["text"].flatten())
    pauses = functional.cross_entropy(out.pauses.flatten(0, 2).float(), (~batch["pauses"]).long().flatten())
    phones = functional.cross_entropy(out.phones.flatten(0, 2).float(), batch["phones"].flatten())
    mel = functional.mse_loss(out.mels.float(), mels)
    return {"text": text, "pauses": pauses, "phones": phones, "mel": mel, "commitment": out.commitment}


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only."""
    wide = [p for n, p in model.named_parameters() if p.dim() > 1 and "emb" not in n and "alpha" not in n]
    seen = {id(p) for p in wide}
    rest = [p for p in model.parameters() if id(p) not in seen]
    return [{"params": wide, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision keeps the file small enough to travel; centroids and their averages stay whole."""
    whole = ("codebooks", "sums", "counts")
    return {
        k: v.detach().cpu().to(v.dtype if k.endswith(whole) or not v.is_floating_point() else torch.float16)
        for k, v in weights.items()
    }


def save(path: Path, model: TrainingModel, ema: dict[str, Tensor], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": halved(ema), "quantized": model.quantizer.on, "step": step}, path)


def load(path: Path, model: TrainingModel) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    model.quantizer.on = bool(saved["quantized"])
    model.mimi.quantizer.refresh()


def train(settings: Settings) -> None:
    ranks = Ranks()
    device = ranks.join(torch.device(settings.device))
    torch.manual_seed(settings.seed + 1000 * ranks.rank)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    began = time.monotonic()
    audio, items = corpus.load(settings.data, processes=max(1, settings.workers * 3))
    held, held_items = corpus.load(settings.eval)
    engines: dict[str, float] = {}
    for item in items:
        engines[item.utterance.engine] = engines.get(item.utterance.engine, 0) + item.utterance.samples / 24000 / 60
    if ranks.first:
        print(
            f"minutes by engine { ({k: round(v, 1) for k, v in engines.items()}) }, {len(items)} utterances", flush=True
        )
    more = VARIED if settings.resume else {}
    listing = Listing(settings.out / f"live{ranks.rank or ''}.jsonl")
    rows = Rows(items, settings.frames, settings.seed + 1000 * ranks.rank, more=listing, **more)  # type: ignore[arg-type]
    source = torch.from_numpy(audio).to(device)
    growing = None
    if settings.live:
        room = torch.zeros(int(settings.live_hours * 3600 * SAMPLE_RATE), dtype=source.dtype, device=device)
        source = torch.cat([source, room])
        growing = Growing(settings.live, listing.path, source, len(audio))
        growing.poll()
    loader = iter(
        torch.utils.data.DataLoader(
            rows,
            settings.batch,
            num_workers=settings.workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if settings.workers else None,
        )
    )
    model = TrainingModel().to(device)
    if settings.resume:
        load(settings.resume, model)
        model.quantizer.on &= not settings.quantize_again
    ranks.copy([*model.parameters(), *_centroids(model)])
    mel_target = MelTarget().to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, 0.05), lr=settings.rate, betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    run = torch.compile(model) if settings.compile else model
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, ready after {time.monotonic() - began:.0f} s", flush=True)
    begin_clock = time.monotonic()
    last_eval = begin_clock
    means: dict[str, float] = {}
    curve = open(settings.out / "curve.jsonl", "a")  # noqa: SIM115
    step = 0
    spent = 0.0
    while True:
        if step % 20 == 0:
            spent = ranks.same((time.monotonic() - begin_clock) / 60, device)
        progress = step / settings.steps if settings.steps else spent / settings.minutes
        if progress >= 1:
            break
        rate = (
            settings.rate
            * min(1, (step + 1) / settings.warmup)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        if growing and step % 100 == 0:
            growing.poll()
        batch = {k: v.to(device, non_blocking=True) for k, v in next(loader).items()}
        clean = render(source, batch["segments"], settings.frames * FRAME)
        grown = settings.strength * (1.0 if settings.resume else min(1.0, 0.25 + 2.5 * progress))
        pcm = augment(clean, grown)
        if not model.quantizer.on and progress >= settings.quantize_at:
            blocks = []
            for _ in range(8):
                segments = next(loader)["segments"].to(device)
                pcm_again = augment(render(source, segments, settings.frames * FRAME), grown)
                with torch.no_grad():
                    blocks.append(model.encode(pcm_again).flatten(0, 1).float())
            model.quantizer.begin(torch.cat(blocks)[:LATENTS])
            ranks.copy(_centroids(model))
            if ranks.first:
                print("codebooks placed", flush=True)
            run = torch.compile(model) if settings.compile else model
        fed = drop_text(batch["text"], model.lm.spec.text_start_token)
        mels = mel_target(clean / clean.abs().amax(1, keepdim=True).clamp(min=1e-4))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = run(pcm, fed, learn=model.training)
        parts = losses(out, batch, mels)
        fade = max(0.0, 1 - progress / 0.9)
        loss = parts["text"] + 0.1 * parts["pauses"] + (0.05 + 0.3 * fade) * parts["phones"] + 0.2 * fade * parts["mel"]
        loss = loss + 0.1 * parts["commitment"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.mean_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ranks.copy(_centroids(model))
        step += 1
        if step % 10 == 0:
            keep = min(0.998, step / (step + 20)) ** 10
            with torch.no_grad():
                for name, value in model.state_dict().items():
                    if value.is_floating_point() and "codebooks" not in name:
                        ema[name].lerp_(value, 1 - keep)
                    else:
                        ema[name].copy_(value)
        if ranks.first and (step % 50 == 0 or step == 1):
            for key, value in parts.items():
                means[key] = float(value.detach())
            line = {
                "step": step,
                "minutes": round(spent, 2),
                "rate": rate,
                **{k: round(v, 4) for k, v in means.items()},
            }
            curve.write(json.dumps(line) + "\n")
            curve.flush()
            if step % 200 == 0 or step <= 50:
                print(json.dumps(line), flush=True)
                if growing:
                    print(f"{growing.seconds / 60:.0f} minutes came meanwhile", flush=True)
        if ranks.first and settings.eval_every and time.monotonic() - last_eval > settings.eval_every * 60:
            last_eval = time.monotonic()
            save(settings.out / "last.pt", model, ema, step)
            report(model, ema, held, held_items, settings.eval_limit)
    if not ranks.first:
        return
    save(settings.out / "last.pt", model, ema, step)
    print(f"{step} steps in {(time.monotonic() - begin_clock) / 60:.1f} min", flush=True)
    report(model, ema, held, held_items, settings.final_limit)


def _centroids(model: TrainingModel) -> list[Tensor]:
    """What moves without a gradient."""
    halves = (model.quantizer.semantic, model.quantizer.acoustic)
    return [t for half in halves for t in (half.quantizer.codebooks, half.counts, half.sums)]


def report(
    model: TrainingModel, ema: dict[str, Tensor], held: np.ndarray, items: list[corpus.Located], limit: int
) -> None:
    """Word error rates of the averaged weights."""
    current = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema)
    model.mimi.quantizer.refresh()
    model.eval()
    began = time.monotonic()
    scores = evaluate_sets(model, held, items, limit=limit)
    # Of what is outside the vocabulary: words heard, for there are none to be wrong about.
    line = {name: round(score.wer, 1) if score.words else score.insertions for name, score in scores.items()}
    print(f"WER {line} ({time.monotonic() - began:.0f} s)", flush=True)
    model.load_state_dict(current)
    model.mimi.quantizer.refresh()
    model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--eval", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--steps", type=int, default=0, help="train this many steps instead of by the clock")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--quantize-at", type=float, default=0.5)
    parser.add_argument("--quantize-again", action="store_true", help="at that point, though there are codebooks")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--eval-every", type=float, default=2.5)
    parser.add_argument("--eval-limit", type=int, default=20, help="utterances a set on the way")
    parser.add_argument("--final-limit", type=int, default=10**9)
    parser.add_argument("--live", type=Path, help="shards that are still being written")
    parser.add_argument("--live-hours", type=float, default=8.0, help="room for them")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(Settings(**vars(args)))


if __name__ == "__main__":
    main()
