"""The split residual vector quantizer: latent frames to codes and back; it knows nothing of audio or of streaming."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.ring_attention import in_place as has_kernels
from moshi_server.model.search_kernels import Search
from moshi_server.model.split import SplitLinear, SplitWeight, split


@dataclass(frozen=True)
class QuantizerSpec:
    """Sizes of the quantizer; the defaults are Kyutai's Mimi v0.1.

    The first ``semantic`` codebooks quantize their own projection of the latent, the others a second projection.
    """

    dimension: int = 256
    bins: int = 2048
    codebooks: int = 32
    semantic: int = 1


class ResidualQuantizer(nn.Module):
    """A projection, then codebooks that each quantize what the ones before left over.

    ``codebooks`` (K, bins, dim) are the centroids. Call ``refresh`` after changing them in place.
    """

    codebooks: Tensor
    half_norms: Tensor

    def __init__(self, latent: int, spec: QuantizerSpec, codebooks: int, *, decoder: bool) -> None:
        super().__init__()
        self.input_proj = nn.Linear(latent, spec.dimension, bias=False)
        self.output_proj: nn.Linear | SplitLinear | None = None
        if decoder:
            self.output_proj = nn.Linear(spec.dimension, latent, bias=False)
        self.register_buffer("codebooks", torch.zeros(codebooks, spec.bins, spec.dimension))
        self.register_buffer("half_norms", torch.zeros(codebooks, spec.bins), persistent=False)
        self._turned: list[SplitWeight] | None = None
        self._search: Search | None = None

    def prepare(self) -> None:
        """Lay the centroids out for ``encode``. Call it again after they change, or were moved."""
        self._search = Search(self.codebooks) if Search.takes(self.codebooks) else None
        exact = self.codebooks.dtype is torch.float32 and has_kernels(self.codebooks.device)
        self._turned = [split(centroids.t()) for centroids in self.codebooks] if exact else None

    def refresh(self) -> None:
        """Recompute what is derived from the centroids."""
        self.half_norms = self.codebooks.square().sum(-1) / 2

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> codes (N, K) int64: the nearest centroid at each level, the first of equals."""
        residual = self.input_proj(latents).to(self.codebooks.dtype)
        if self._turned is not None and residual.is_cuda:
            return self._encode_on_gpu(residual.contiguous(), self._turned)
        if self._search is not None and residual.is_cpu:
            return self._search(residual)
        codes = []
        for centroids, half_norms in zip(self.codebooks, self.half_norms, strict=True):
            # |x - c|^2 / 2 less the part that is the same for every c, as upstream's server has it.
            code = torch.addmm(half_norms, residual, centroids.t(), alpha=-1).argmin(-1)
            codes.append(code)
            residual = residual - functional.embedding(code, centroids)
        return torch.stack(codes, dim=-1)

    def _encode_on_gpu(self, residual: Tensor, turned: list[SplitWeight]) -> Tensor:
        from moshi_server.model.nearest_kernels import nearest

        codes = torch.empty(len(residual), len(turned), dtype=torch.int64, device=residual.device)
        for level, (centroids, half_norms) in enumerate(zip(self.codebooks, self.half_norms, strict=True)):
            nearest(residual, centroids, turned[level], half_norms, codes[:, level])
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, k) int64, k <= K -> latents (N, latent); k codebooks are summed."""
        assert self.output_proj is not None, "this quantizer was built to encode only"
        levels = torch.arange(codes.shape[-1], device=codes.device)
        summed = self.codebooks[levels, codes].sum(-2)
        if not isinstance(self.output_proj, SplitLinear):
            summed = summed.to(self.output_proj.weight.dtype)
        latents: Tensor = self.output_proj(summed)
        return latents


class SplitQuantizer(nn.Module):
    """A semantic quantizer and an acoustic one beside it, each on the whole latent; their outputs add up."""

    def __init__(self, latent: int, spec: QuantizerSpec, *, decoder: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.semantic = ResidualQuantizer(latent, spec, spec.semantic, decoder=decoder)
        acoustic = spec.codebooks - spec.semantic
        self.acoustic = ResidualQuantizer(latent, spec, acoustic, decoder=decoder) if acoustic else None

    def refresh(self) -> None:
        """Recompute what is derived from the centroids."""
        self.semantic.refresh()
        if self.acoustic is not None:
            self.acoustic.refresh()

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (..., latent) -> codes (..., K) int64, semantic ones first."""
        flat = latents.reshape(-1, latents.shape[-1])
        codes = self.semantic.encode(flat)
        if self.acoustic is not None:
            codes = torch.cat([codes, self.acoustic.encode(flat)], dim=-1)
        return codes.view(*latents.shape[:-1], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., k) int64, semantic <= k <= K, each in 0..bins-1 -> latents (..., latent)."""
        flat = codes.reshape(-1, codes.shape[-1])
        latents = self.semantic.decode(flat[:, : self.spec.semantic])
        if flat.shape[-1] > self.spec.semantic:
            assert self.acoustic is not None
            latents = latents + self.acoustic.decode(flat[:, self.spec.semantic :])
        return latents.view(*codes.shape[:-1], -1)
