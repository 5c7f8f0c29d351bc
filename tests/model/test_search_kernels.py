"""The search in 8 bits with proof in f32: the codes are those of exact distances, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moshi_server.model import jit
from moshi_server.model.quantizer import QuantizerSpec, SplitQuantizer
from moshi_server.model.search_kernels import Search

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs llvmlite and AVX512-VNNI")


def distances(codebooks: Tensor, residual: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """For each level, f64 scores of the codes and the least scores, (N, levels) each, of the residuals before it."""
    chosen, least = [], []
    for centroids, code in zip(codebooks, codes.unbind(1), strict=True):
        exact = centroids.double()
        scores = exact.square().sum(1) / 2 - residual.double() @ exact.t()
        chosen.append(scores.gather(1, code[:, None])[:, 0])
        least.append(scores.min(1).values)
        residual = residual - centroids[code]
    return torch.stack(chosen, 1), torch.stack(least, 1)


@given(
    seed=st.integers(0, 1 << 20),
    rows=st.integers(1, 5),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    alike=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    spread=st.sampled_from([0.0, 3.0]),
    threads=st.integers(1, 2),
)
@settings(deadline=None, max_examples=40)
def test_codes_are_the_nearest(seed: int, rows: int, scale: float, alike: float, spread: float, threads: int) -> None:
    """Also of centroids that nearly agree, which 8 bits cannot tell apart, and of channels of unlike size."""
    torch.manual_seed(seed)
    loud = torch.exp(spread * torch.randn(256))
    codebooks = scale * loud * (torch.randn(3, 1, 256) + alike * torch.randn(3, 512, 256))
    residual = scale * loud * torch.randn(rows, 256)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    codes = Search(codebooks)(residual)
    torch.set_num_threads(before)
    chosen, least = distances(codebooks, residual, codes)
    size = (codebooks.double().norm(dim=2).amax(1) * (residual.double().norm() + codebooks.double().norm())).expand(
        rows, -1
    )
    assert ((chosen - least) <= 1e-14 * size).all()


def test_the_first_of_equals() -> None:
    codebook = torch.randn(1, 512, 256)
    codebook[0, 300] = codebook[0, 77]
    codebook[0, 78] = codebook[0, 77]
    assert Search(codebook)(codebook[0, 77:78] * 1.0).tolist() == [[77]]


def test_no_number_is_no_crash_and_stays_in_its_row() -> None:
    torch.manual_seed(0)
    codebooks = torch.randn(4, 512, 256)
    search, x = Search(codebooks), torch.randn(4, 256)
    alone = search(x[3:])
    x[0], x[1], x[2, 5] = float("nan"), 1e38, float("inf")
    codes = search(x)
    assert ((codes >= 0) & (codes < 512)).all()
    assert torch.equal(codes[3:], alone)


def test_a_prepared_quantizer_gives_the_same_codes() -> None:
    torch.manual_seed(0)
    quantizer = SplitQuantizer(64, QuantizerSpec(dimension=256, bins=512, codebooks=6), decoder=False)
    for part in (quantizer.semantic, quantizer.acoustic):
        assert part is not None
        part.codebooks.normal_()
    quantizer.refresh()
    latents = torch.randn(9, 64)
    with torch.inference_mode():
        want = quantizer.encode(latents)
        quantizer.semantic.prepare()
        assert quantizer.acoustic is not None
        quantizer.acoustic.prepare()
        assert quantizer.acoustic._search is not None
        assert torch.equal(quantizer.encode(latents), want)
