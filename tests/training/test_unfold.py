"""What is folded into the embedding tables at export comes out of them again."""

from pathlib import Path

import torch
from training.export import export
from training.model import LAYERS, TrainingModel
from training.train import halved
from training.unfold import layers_in, unfold


def test_export_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TrainingModel()
    with torch.no_grad():
        for half in (model.mimi.quantizer.semantic, model.mimi.quantizer.acoustic):
            assert half is not None
            half.codebooks.normal_()
        model.first.normal_()
        model.semantic_map.weight.normal_()
        model.semantic_map.bias.normal_()
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"model": halved(model.state_dict()), "quantized": True, "step": 1}, checkpoint)
    export(checkpoint, tmp_path / "demo")
    assert layers_in(tmp_path / "demo" / "model.safetensors") == LAYERS
    again = unfold(tmp_path / "demo").state_dict()
    forgotten = ("lm.emb", "phone_head", "mel_head", "counts", "sums")
    for name, value in model.state_dict().items():
        if not any(part in name for part in forgotten):
            torch.testing.assert_close(again[name], value, atol=4e-3, rtol=2e-3, msg=name)
