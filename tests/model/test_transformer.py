"""The transformer's step against its own parallel form, whatever the slots do meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from moshi_server.model.streaming import State, leaf, leaves, reset_state
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec, Window, visible_keys

SMALL = TransformerSpec(
    d_model=32, num_heads=4, num_layers=2, dim_feedforward=128, context=12, gating="silu", norm="rms_norm"
)
VARIANTS: dict[str, dict[str, Any]] = {
    "lm": {},
    "mimi": {"gating": "none", "norm": "layer_norm", "layer_scale": 0.3},
    "grouped": {"kv_repeat": 2},
    "biased": {"bias_attn": True, "bias_ff": True},
    "no positions": {"positional_embedding": "none"},
    "other width": {"dim_feedforward": 96},
}


def build(**changes: Any) -> StreamingTransformer:
    torch.manual_seed(7)
    model = StreamingTransformer(dataclasses.replace(SMALL, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def run(model: StreamingTransformer, x: Tensor, state: State, slot: int, piece: int = 1) -> Tensor:
    slots = torch.tensor([slot])
    return torch.cat([model.step(part, state, slots) for part in x.split(piece, dim=1)], dim=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_step_equals_forward_past_the_ring(name: str) -> None:
    model = build(**VARIANTS[name])
    x = torch.randn(1, 40, 32)
    got = run(model, x, model.init_state(3), slot=1)
    torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("piece", [2, 5, 12])
def test_several_positions_a_step(piece: int) -> None:
    model = build(context=24)
    x = torch.randn(1, 24, 32)
    got = run(model, x, model.init_state(1), slot=0, piece=piece)
    torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-4)


def test_two_positions_past_the_ring_see_what_upstream_shows_them() -> None:
    # The second key of a pair replaces the oldest before the first one looks: one key less for every even position.
    model = build(num_layers=1)
    x = torch.randn(1, 40, 32)
    got = run(model, x, model.init_state(1), slot=0, piece=2)
    full = model(x)
    short = build(num_layers=1, context=11)(x)
    torch.testing.assert_close(got[:, 13::2], full[:, 13::2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[:, 12::2], short[:, 12::2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_repeat", [1, 2])
@pytest.mark.parametrize("piece", [1, 2, 3])
def test_pieces_stepped_together_are_as_if_one_by_one(piece: int, kv_repeat: int) -> None:
    model = build(kv_repeat=kv_repeat)
    x, slots = torch.randn(2, 60, 32), torch.tensor([2, 0])
    one_by_one, together = model.init_state(3), model.init_state(3)
    # Slot 0 begins later, so that one ring has wrapped and the other has not.
    for state in (one_by_one, together):
        run(model, x[:1], state, slot=2, piece=piece)
    for part in x.split([6, 12, 6, 12, 6, 6, 12], dim=1):
        want = torch.cat([model.step(each, one_by_one, slots) for each in part.split(piece, dim=1)], dim=1)
        got = model.step(part, together, slots, piece=piece)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_streams_that_start_pause_and_reset_do_not_touch_each_other() -> None:
    model = build()
    inputs = torch.randn(4, 60, 32)
    alone = [run(model, inputs[slot : slot + 1], model.init_state(1), 0) for slot in range(4)]
    state, heard, generator = model.init_state(4), [0] * 4, torch.Generator().manual_seed(3)
    for tick in range(140):
        if tick in (30, 75):
            reset_state(state, torch.tensor([2]))
            heard[2] = 0
        order = torch.randperm(4, generator=generator).tolist()
        active = [s for s in order if heard[s] < 60 and tick >= 7 * s and torch.rand(1, generator=generator) < 0.7]
        if not active:
            continue
        x = torch.stack([inputs[s, heard[s]] for s in active])[:, None]
        y = model.step(x, state, torch.tensor(active))
        for row, slot in enumerate(active):
            torch.testing.assert_close(y[row, 0], alone[slot][0, heard[slot]], atol=1e-5, rtol=1e-4)
            heard[slot] += 1
    assert heard[0] == heard[1] == 60
    assert leaf(state, "position").tolist() == heard


def test_the_gathering_path_of_other_devices_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(kv_repeat=2)
    plain = Window.at

    def gathered(start: Tensor, slots: Tensor, steps: int, spec: TransformerSpec, *_: Any, **__: Any) -> Window:
        mask = visible_keys(start + steps - 1, steps, spec.context, spec.context)[:, None]
        return dataclasses.replace(plain(start, slots, steps, spec), spans=None, mask=mask)

    x, slots = torch.randn(2, 40, 32), torch.tensor([3, 1])
    here, there = model.init_state(4), model.init_state(4)
    for part in x.split([1, 2, 3, 1, 1, 12, 2, 1, 5, 12], dim=1):
        want = model.step(part, here, slots)
        with monkeypatch.context() as patch:
            patch.setattr(Window, "at", staticmethod(gathered))
            got = model.step(part, there, slots)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_near_f32(dtype: torch.dtype) -> None:
    model, x = build(), torch.randn(1, 30, 32)
    want = model(x)
    got = run(model.to(dtype), x.to(dtype), model.init_state(1), 0)
    assert got.dtype is dtype
    assert ((got.float() - want).abs().mean() / want.abs().mean()) < (0.03 if dtype is torch.bfloat16 else 0.004)


def test_forward_is_differentiable_and_causal() -> None:
    model = build().requires_grad_(True)
    x = torch.randn(2, 20, 32, requires_grad=True)
    model(x)[:, 15].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 2)) > 0
    # Two layers, each 12 positions wide.
    assert seen.tolist() == [position <= 15 for position in range(20)]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_state_is_zero_at_first_and_after_reset() -> None:
    model = build()
    state = model.init_state(2)
    run(model, torch.randn(1, 3, 32), state, 1)
    assert any(bool(tensor.any()) for tensor in leaves(state))
    reset_state(state, torch.tensor([1]))
    assert not any(bool(tensor.any()) for tensor in leaves(state))


@pytest.mark.parametrize(
    ("d_model", "feed_forward", "hidden"), [(2048, 8192, 5632), (2048, 8448, 5632), (192, 512, 341)]
)
def test_gated_width_rule(d_model: int, feed_forward: int, hidden: int) -> None:
    spec = TransformerSpec(d_model, 4, 1, feed_forward, 10, gating="silu")
    assert spec.hidden == hidden
    assert dataclasses.replace(spec, gated_width=7).hidden == 7


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        dataclasses.replace(SMALL, num_heads=5)
    with pytest.raises(ValueError, match="kv_repeat"):
        dataclasses.replace(SMALL, kv_repeat=3)
