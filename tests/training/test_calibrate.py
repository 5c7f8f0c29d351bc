"""One direction moves one logit in every frame, and the others not at all."""

import torch
from training.calibrate import constant_direction, hidden_states
from training.model import TrainingModel

from training import targets


def test_silence_becomes_less_likely_everywhere_by_the_same():
    torch.manual_seed(0)
    states = torch.randn(400, 32) * 0.3 + torch.randn(32)
    direction = constant_direction(states)
    output = torch.randn(10, 32)
    moved = output.clone()
    moved[targets.PAD] -= 1.5 * direction
    change = states @ (moved - output).T
    assert change[:, targets.PAD].mean() < -1.4
    assert change[:, targets.PAD].std() < 0.4
    assert not change[:, [n for n in range(10) if n != targets.PAD]].any()


def test_hidden_states_are_those_that_the_output_layer_sees():
    torch.manual_seed(0)
    model = TrainingModel().eval()
    pcm = torch.randn(2, 5 * 1920) * 0.1
    states = hidden_states(model, pcm).view(2, 5, -1)
    with torch.no_grad():
        assert torch.equal((states @ model.lm.text_linear.weight.T).argmax(-1), model.greedy(pcm))
