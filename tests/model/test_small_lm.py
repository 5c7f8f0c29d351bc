"""The short step of a small language model against the plain one, and each stream against itself alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.mimi import Mimi
from moshi_server.model.small_lm import suits
from moshi_server.model.streaming import reset_state
from moshi_server.model.stt import SttModel
from moshi_server.model.transformer import TransformerSpec

from ..golden import mimi_spec

TRANSFORMER = TransformerSpec(32, 4, 2, 128, context=6, gating="silu")
SPEC = LmSpec(11, 10, 9, 3, TRANSFORMER, extra_heads_num=2, extra_heads_dim=2)
SLOTS, STEPS = 9, 30


def make(spec: LmSpec = SPEC) -> LmModel:
    torch.manual_seed(0)
    lm = LmModel(spec)
    for name, parameter in lm.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 2.0)
    return lm.requires_grad_(False)


def pair(spec: LmSpec = SPEC, *, condition: bool = False, temperature: float = 0.0) -> tuple[SttModel, SttModel]:
    """The same model stepped plainly, and prepared."""
    lm = make(spec)
    given = torch.randn(spec.transformer.d_model) if condition else None
    quantizer = dataclasses.replace(mimi_spec.SMALL.quantizer, codebooks=3)
    mimi = Mimi(dataclasses.replace(mimi_spec.SMALL, quantizer=quantizer, decoder=False))
    plain, short = (SttModel(mimi, lm, condition=given, temperature=temperature) for _ in range(2))
    short.prepare()
    return plain, short


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_numbers_whoever_steps_with_whom(heads: int, temperature: float) -> None:
    spec = dataclasses.replace(SPEC, extra_heads_num=heads)
    plain, short = pair(spec, condition=True, temperature=temperature)
    states = plain.init_state(SLOTS), short.init_state(SLOTS)
    runs = tuple(zip((plain, short), states, strict=True))
    # In order from some slot on, out of order, with gaps, and far apart: each is looked at in its own way.
    groups = [[4], list(range(SLOTS)), [2, 3, 4], [3, 2, 4, 1], [1, 3, 4], [0, 8], [8, 0, 5]]
    draw = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        slots = torch.tensor(groups[step % len(groups)])
        codes = torch.randint(0, 8, (len(slots), 3), generator=draw)
        expected, got = (model.step_codes(codes, state, slots) for model, state in runs)
        assert torch.equal(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[2], expected[2], atol=1e-4, rtol=1e-5)
        if step == STEPS // 2:
            for state in states:
                reset_state(state, torch.tensor([4, 8]))


def test_a_reset_stream_hears_nothing_of_the_one_before() -> None:
    _, model = pair()
    state, codes = model.init_state(2), torch.randint(0, 8, (10, 1, 3))
    first = [model.step_codes(code, state, torch.tensor([1]))[2] for code in codes]
    reset_state(state, torch.tensor([1]))
    again = [model.step_codes(code, state, torch.tensor([1]))[2] for code in codes]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 512},
        {"context": 65},
        {"gating": "none"},
        {"norm": "layer_norm"},
        {"positional_embedding": "none"},
        {"kv_repeat": 2},
        {"bias_attn": True},
        {"bias_ff": True},
        {"layer_scale": 0.01},
    ],
)
def test_what_it_does_not_know_steps_plainly(changes: dict[str, object]) -> None:
    assert suits(make())
    assert not suits(make(dataclasses.replace(SPEC, transformer=dataclasses.replace(TRANSFORMER, **changes))))  # type: ignore[arg-type]


def test_other_number_types_step_plainly() -> None:
    assert not suits(make().bfloat16())
