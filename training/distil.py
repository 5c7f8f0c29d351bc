"""Give a model without codebooks some, and have it say what it said: `python -m training.distil IN OUT --data DIR`.

Weights averaged over a run hear strange voices better than any of theirs, and training them any further on the same
speech undoes it. So codebooks are placed by k-means, and then not labels but the model's own logits without codebooks
are what the encoder and the projections are trained towards; the language model stays as it is. Where codebooks lose
next to nothing once they are placed, as 32 of 128 do, training only adds noise: `--steps 0` places them and no more.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from training import corpus
from training.augment import augment, render
from training.grow import condense
from training.mixing import FRAME, VARIED, Rows
from training.model import TrainingModel
from training.quantize import LATENTS
from training.train import drop_text, load, save


class Speech:
    """Endless worsened rows, and the text they are fed."""

    def __init__(self, folders: list[Path], rows: int, frames: int, seed: int, device: str = "cpu") -> None:
        audio, items = corpus.load(folders)
        self.audio = torch.from_numpy(audio).to(device)
        self.rows = iter(Rows(items, frames, seed, **VARIED))  # type: ignore[arg-type]
        self.count, self.frames = rows, frames

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, Tensor]:
        """PCM (B, L) and text tokens (B, T)."""
        rows = [next(self.rows) for _ in range(self.count)]
        segments, text = (torch.stack([r[key] for r in rows]).to(self.audio.device) for key in ("segments", "text"))
        return augment(render(self.audio, segments, self.frames * FRAME), 1.0), text


@torch.no_grad()
def place(model: TrainingModel, speech: Speech, latents: int = LATENTS) -> None:
    """Codebooks where the model's latents are, its map turned first so that k-means minimises what the LM is off by."""
    weights = model.state_dict()
    condense(weights, weights)
    model.load_state_dict(weights)
    blocks: list[Tensor] = []
    while sum(map(len, blocks)) < latents:
        blocks.append(model.encode(speech.batch()[0]).flatten(0, 1).float())
    model.quantizer.begin(torch.cat(blocks)[:latents])


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of our logits (..., V) from theirs, in nats a row."""
    our, their = (logits.float().log_softmax(-1).flatten(0, -2) for logits in (ours, theirs))
    return functional.kl_div(our, their, log_target=True, reduction="batchmean")


def learned(model: TrainingModel) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """What surrounds the codebooks, and the encoder before it; the rest is frozen."""
    around: list[torch.nn.Parameter] = []
    encoder: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith(("lm.", "mel_head.", "phone_head.")):
            parameter.requires_grad_(False)
        elif "quantizer" in name or "_map." in name or name == "first":
            around.append(parameter)
        else:
            encoder.append(parameter)
    return around, encoder


def distil(teacher: TrainingModel, student: TrainingModel, speech: Speech, steps: int, rate: float) -> None:
    """Bring the student, whose codebooks are in use, closer to the teacher, which has none."""
    teacher.eval().requires_grad_(False)
    around, encoder = learned(student)
    groups = [{"params": around, "share": 1.0}, {"params": encoder, "share": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * rate * min(1, (step + 1) / 8) * 0.5 * (1 + math.cos(math.pi * step / steps))
        pcm, text = speech.batch()
        fed = drop_text(text, student.lm.spec.text_start_token)
        with torch.autocast(pcm.device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                wanted, _ = teacher.audio_inputs(teacher.encode(pcm), learn=False)
                words, pauses = teacher.say(fed, wanted)
            audio, commitment = student.audio_inputs(student.encode(pcm), learn=True)
            our_words, our_pauses = student.say(fed, audio)
        apart = divergence(our_words, words)
        error = functional.mse_loss(audio.float(), wanted.float()) / wanted.float().var()
        loss = 3 * apart + 0.3 * divergence(our_pauses, pauses) + 0.3 * error + 0.1 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*around, *encoder], 1.0)
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            done = [float(x.detach()) for x in (apart, error, commitment)]
            print("{}: words {:.4f}, audio {:.3f}, codes {:.3f}".format(step, *done), flush=True)
    student.mimi.quantizer.refresh()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    speech = Speech(args.data, args.batch, args.frames, args.seed, args.device)
    teacher, student = TrainingModel().to(args.device), TrainingModel().to(args.device)
    load(args.checkpoint, teacher)
    teacher.quantizer.on = False
    load(args.checkpoint, student)
    place(student.eval(), speech)
    distil(teacher, student.train(), speech, args.steps, args.rate)
    save(args.out, student, student.state_dict(), args.steps)


if __name__ == "__main__":
    main()
