"""What is exported says the same, token for token, as the model in training."""

import torch
from training.export import export
from training.model import TrainingModel, lm_spec
from training.train import load, save

from moshi_server.model.stt import SttModel
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi


def test_folded_codes_say_what_the_straight_through_model_says(tmp_path):
    torch.manual_seed(0)
    model = TrainingModel().eval()
    frames = 30
    pcm = torch.randn(2, frames * 1920).cumsum(1)
    pcm = 0.3 * pcm / pcm.abs().amax(1, keepdim=True) + 0.02 * torch.randn_like(pcm)
    with torch.no_grad():
        # Louder maps, so that the random model's choices hang on the audio, and half precision decides nothing.
        model.semantic_map.weight.normal_()
        model.acoustic_map.weight.mul_(8)
        model.lm.text_linear.weight.mul_(50)
        model.quantizer.begin(model.encode(pcm).flatten(0, 1).repeat(20, 1))
    save(tmp_path / "checkpoint.pt", model, {k: v.clone() for k, v in model.state_dict().items()}, 0)
    export(tmp_path / "checkpoint.pt", tmp_path / "out")

    stored = TrainingModel().eval()
    load(tmp_path / "checkpoint.pt", stored)
    expected = stored.greedy(pcm)
    assert len(set(expected.flatten().tolist())) > 3
    lm = load_lm(tmp_path / "out/model.safetensors", lm_spec(), dtype=torch.float32)
    stt = SttModel(load_mimi(tmp_path / "out/mimi.safetensors", decoder=False), lm)
    state, slots = stt.init_state(2), torch.arange(2)
    steps = [stt.step(pcm[:, n * 1920 : (n + 1) * 1920], state, slots)[0] for n in range(frames)]
    agreement = (torch.stack(steps, 1) == expected).float().mean()
    assert agreement > 0.95
