"""The split residual quantizer: nearest centroids level by level, and their sum back."""

from __future__ import annotations

import pytest
import torch

from moshi_server.model.quantizer import QuantizerSpec, SplitQuantizer

LATENT = 12
SPEC = QuantizerSpec(dimension=6, bins=40, codebooks=5, semantic=1)


def quantizer(spec: QuantizerSpec = SPEC, *, decoder: bool = True) -> SplitQuantizer:
    torch.manual_seed(3)
    made = SplitQuantizer(LATENT, spec, decoder=decoder)
    for half in (made.semantic, made.acoustic):
        if half is not None:
            half.codebooks.normal_()
    made.refresh()
    return made


@torch.no_grad()
def test_codes_are_the_nearest_centroids_of_what_is_left() -> None:
    made = quantizer()
    latents = torch.randn(2, 7, LATENT)
    codes = made.encode(latents)
    assert codes.shape == (2, 7, 5)
    assert codes.dtype == torch.int64
    assert made.acoustic is not None
    for half, found in ((made.semantic, codes[..., :1]), (made.acoustic, codes[..., 1:])):
        residual = half.input_proj(latents)
        for level, centroids in enumerate(half.codebooks):
            assert torch.equal(torch.cdist(residual, centroids[None]).argmin(-1), found[..., level])
            residual = residual - centroids[found[..., level]]


@torch.no_grad()
def test_equal_distances_give_the_first() -> None:
    made = quantizer()
    made.semantic.codebooks[0, 1:] = made.semantic.codebooks[0, :1]
    made.refresh()
    assert not made.encode(torch.randn(30, LATENT))[:, 0].any()


@torch.no_grad()
def test_decode_sums_the_centroids_of_as_many_codebooks_as_are_given() -> None:
    made = quantizer()
    codes = torch.randint(0, SPEC.bins, (2, 7, 5))
    first = made.semantic.codebooks[0, codes[..., 0]] @ made.semantic.output_proj.weight.t()  # type: ignore[union-attr]
    torch.testing.assert_close(made.decode(codes[..., :1]), first)
    assert made.acoustic is not None
    rest = sum(made.acoustic.codebooks[level, codes[..., level + 1]] for level in range(2))
    expected = first + rest @ made.acoustic.output_proj.weight.t()  # type: ignore[union-attr]
    torch.testing.assert_close(made.decode(codes[..., :3]), expected)


@torch.no_grad()
def test_fewer_codebooks_are_a_prefix() -> None:
    full = quantizer()
    fewer = SplitQuantizer(LATENT, QuantizerSpec(dimension=6, bins=40, codebooks=3), decoder=False)
    fewer.semantic.codebooks.copy_(full.semantic.codebooks)
    assert fewer.acoustic is not None
    assert full.acoustic is not None
    fewer.acoustic.codebooks.copy_(full.acoustic.codebooks[:2])
    fewer.semantic.input_proj.load_state_dict(full.semantic.input_proj.state_dict())
    fewer.acoustic.input_proj.load_state_dict(full.acoustic.input_proj.state_dict())
    fewer.refresh()
    latents = torch.randn(9, LATENT)
    assert torch.equal(fewer.encode(latents), full.encode(latents)[:, :3])


def test_semantic_codebooks_alone() -> None:
    made = quantizer(QuantizerSpec(dimension=6, bins=40, codebooks=1))
    assert made.acoustic is None
    codes = made.encode(torch.randn(4, LATENT))
    assert made.decode(codes).shape == (4, LATENT)


def test_an_encoder_has_no_way_back() -> None:
    with pytest.raises(AssertionError, match="encode only"):
        quantizer(decoder=False).decode(torch.zeros(1, 5, dtype=torch.int64))
