"""Codebooks are placed where latents are, and the model is then brought back to what it says without them."""

import copy
from pathlib import Path

import numpy as np
import torch
from training.distil import Speech, distil, divergence, place
from training.model import TrainingModel
from training.shard import ShardWriter
from training.synth.speech import Speech as Spoken
from training.synth.speech import SpokenWord
from training.unfold import unfold

import moshi_server.demo
from moshi_server.audio import read_audio

DEMO = Path(moshi_server.demo.__file__).parent


def speech(folder: Path, names: tuple[str, ...], seed: int) -> Speech:
    writer = ShardWriter(folder / "train-espeak-1")
    for name in names:
        pcm = read_audio(DEMO / "samples" / name)
        writer.add("espeak", "en+m1", "one", Spoken(pcm / np.abs(pcm).max(), [SpokenWord("one", 0.1, 0.4)]))
    writer.close()
    return Speech([folder], rows=2, frames=50, seed=seed)


def apart(teacher: TrainingModel, student: TrainingModel, pcm: torch.Tensor, text: torch.Tensor) -> tuple[float, float]:
    """Nats between what they say, and the relative error of what the language model is given."""
    with torch.no_grad():
        wanted, _ = teacher.audio_inputs(teacher.encode(pcm), learn=False)
        given, _ = student.audio_inputs(student.encode(pcm), learn=False)
        error = (given - wanted).square().mean() / wanted.var()
        return float(divergence(student(pcm, text).logits, teacher(pcm, text).logits)), float(error)


def test_a_model_with_codebooks_is_brought_closer_to_itself_without_and_its_language_model_stays(tmp_path: Path):
    torch.manual_seed(0)
    teacher = unfold(DEMO).eval()  # without codebooks in use
    heard = speech(tmp_path / "heard", ("joe.wav", "awb.flac", "alice.flac"), seed=1)
    student = copy.deepcopy(teacher)
    place(student, heard, latents=400)  # three a bin, so that much is left to win
    columns = student.acoustic_map.weight.detach()
    assert torch.allclose(columns.t() @ columns, torch.eye(columns.shape[1]), atol=1e-4), (
        "k-means sees what the LM will"
    )
    assert student.quantizer.on
    assert not teacher.quantizer.on
    before = {name: parameter.clone() for name, parameter in student.lm.named_parameters()}
    pcm = torch.from_numpy(read_audio(DEMO / "samples/fenrir.ogg")[None, : 40 * 1920])
    text = teacher.greedy(pcm)
    words, audio = apart(teacher, student, pcm, text)
    distil(teacher, student.train(), heard, steps=12, rate=5e-4)
    fewer, closer = apart(teacher, student.eval(), pcm, text)
    assert 0 < fewer < 0.9 * words
    assert 0 < closer < 0.9 * audio
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.lm.named_parameters())
