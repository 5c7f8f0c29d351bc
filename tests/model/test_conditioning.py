"""Conditions: upstream's arithmetic, and errors that say what the model knows."""

from __future__ import annotations

import math

import pytest
import torch

from moshi_server.errors import ConfigError
from moshi_server.model.conditioning import ConditionProvider, ContinuousSpec, LutSpec, delay_condition


@pytest.fixture
def provider() -> ConditionProvider:
    torch.manual_seed(0)
    return ConditionProvider({"delay": ContinuousSpec(6, 2.0, 100.0), "control": LutSpec(3, 4, ("good", "bad"))}, 8)


def test_a_number_is_embedded_by_cosines_then_sines(provider: ConditionProvider) -> None:
    weight = provider.conditioners["delay"].output_proj.weight
    phases = [0.75 * 2.0 / 100.0 ** (i / 2) for i in range(3)]
    embedding = torch.tensor([math.cos(p) for p in phases] + [math.sin(p) for p in phases])
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(provider.number("delay", 0.75), weight @ embedding)


def test_a_name_is_looked_up(provider: ConditionProvider) -> None:
    found = provider.conditioners["control"]
    torch.testing.assert_close(provider.named("control", "bad"), found.output_proj.weight @ found.embed.weight[1])


def test_the_delay_is_given_with_its_sign_turned(provider: ConditionProvider) -> None:
    got = delay_condition(provider, 0.5, learnt_padding=False)
    assert got is not None
    torch.testing.assert_close(got, provider.number("delay", -0.5))
    padding = provider.conditioners["delay"].learnt_padding
    assert isinstance(padding, torch.nn.Parameter)
    padding.data.normal_()
    open_delay = delay_condition(provider, None, learnt_padding=True)
    assert open_delay is not None
    assert torch.equal(open_delay, padding.flatten())
    assert not open_delay.requires_grad


def test_a_model_without_conditioners_has_no_condition() -> None:
    assert delay_condition(None, None, learnt_padding=True) is None


def test_what_is_wrong_is_said(provider: ConditionProvider) -> None:
    with pytest.raises(ConfigError, match="both set"):
        delay_condition(provider, 1.0, learnt_padding=True)
    with pytest.raises(ConfigError, match="neither"):
        delay_condition(provider, None, learnt_padding=False)
    with pytest.raises(ConfigError, match="no conditioner 'pace'") as caught:
        provider.learnt_padding("pace")
    assert "delay, control" in caught.value.hint
    with pytest.raises(ConfigError, match="'ugly'") as caught:
        provider.named("control", "ugly")
    assert "good, bad" in caught.value.hint
    with pytest.raises(ConfigError, match="not a number"):
        provider.number("control", 1.0)
    with pytest.raises(ConfigError, match="not a named value"):
        provider.named("delay", "good")
