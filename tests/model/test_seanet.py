"""SEANet encoder and decoder: frame by frame is the whole, and gradients reach the first convolution."""

from __future__ import annotations

import pytest
import torch

from moshi_server.model.seanet import Chain, Elu, SeanetDecoder, SeanetEncoder, SeanetSpec

SPEC = SeanetSpec(dimension=8, filters=2, ratios=(4, 3, 2), residual_layers=2)
FRAMES = 6


@pytest.mark.parametrize(
    ("network", "channels", "hop_in", "hop_out", "out"),
    [(SeanetEncoder(SPEC), 1, SPEC.hop, 1, 8), (SeanetDecoder(SPEC), 8, 1, SPEC.hop, 1)],
)
def test_frame_by_frame_is_the_whole(network: Chain, channels: int, hop_in: int, hop_out: int, out: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, channels, FRAMES * hop_in)
    state = network.init_state(4)
    slots = torch.tensor([3, 1])
    with torch.no_grad():
        whole = network(x)
        assert whole.shape == (2, out, FRAMES * hop_out)
        pieces = [network.step(piece, state, slots) for piece in x.split(hop_in, dim=-1)]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole)


def test_it_is_causal() -> None:
    torch.manual_seed(1)
    network = SeanetEncoder(SPEC)
    x = torch.randn(1, 1, FRAMES * SPEC.hop)
    later = x.clone()
    later[..., 3 * SPEC.hop :] = 0
    with torch.no_grad():
        assert torch.equal(network(x)[..., :3], network(later)[..., :3])


def test_gradients_reach_the_first_convolution() -> None:
    network = SeanetEncoder(SPEC)
    network(torch.randn(1, 1, FRAMES * SPEC.hop)).square().sum().backward()
    first = next(network.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0


def test_large_and_small_inputs_get_the_same_unit() -> None:
    x = torch.linspace(-30, 100, 20_000).view(2, 100, 100)
    want = torch.where(x > 0, x, torch.expm1(x))
    torch.testing.assert_close(Elu()(x), want, atol=1e-7, rtol=0)
    torch.testing.assert_close(Elu()(x[:, :1, :1]), want[:, :1, :1], atol=1e-7, rtol=0)
    traced = x.clone().requires_grad_(True)
    Elu()(traced).sum().backward()
    assert traced.grad is not None
    torch.testing.assert_close(traced.grad, x.clamp_max(0).exp())
