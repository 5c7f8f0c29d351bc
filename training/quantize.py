"""Learns the split residual quantizer's centroids: k-means, then moving averages under a straight-through pass."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.quantizer import ResidualQuantizer, SplitQuantizer

LATENTS = 60_000
"""That k-means sees: a few hundred a bin."""


class CodebookTrainer(nn.Module):
    """One residual quantizer in training; counts and sums are the moving averages the centroids come from."""

    counts: Tensor
    sums: Tensor

    def __init__(self, quantizer: ResidualQuantizer, decay: float = 0.99) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.decay = decay
        self.register_buffer("counts", torch.ones(quantizer.codebooks.shape[:2]))
        self.register_buffer("sums", torch.zeros_like(quantizer.codebooks))

    @torch.no_grad()
    def begin(self, latents: Tensor, rounds: int = 12) -> None:
        """k-means, level by level, on (N, latent); N should be many times the number of bins."""
        residual = self.quantizer.input_proj(latents).float()
        bins = self.quantizer.codebooks.shape[1]
        for level in range(len(self.quantizer.codebooks)):
            centroids = residual[torch.randperm(len(residual), device=residual.device)[:bins]].clone()
            for _ in range(rounds):
                code = _nearest(residual, centroids)
                counts = torch.bincount(code, minlength=bins).float()
                sums = torch.zeros_like(centroids).index_add_(0, code, residual)
                centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
                empty = counts == 0
                spare = residual[torch.randint(len(residual), (int(empty.sum()),), device=residual.device)]
                centroids[empty] = spare
            code = _nearest(residual, centroids)
            self.quantizer.codebooks[level] = centroids
            share = torch.bincount(code, minlength=bins).float().clamp(min=0.1) / len(residual)
            # As if the average step brought as many latents as there are bins.
            self.counts[level] = share * bins
            self.sums[level] = centroids * self.counts[level][:, None]
            residual = residual - centroids[code]
        self.quantizer.refresh()

    def forward(self, latents: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """(N, latent) -> the sum of the chosen centroids (N, dim), straight through, and the commitment loss."""
        projected = self.quantizer.input_proj(latents).float()
        residual = projected.detach()
        total = torch.zeros_like(residual)
        for level in range(len(self.quantizer.codebooks)):
            centroids = self.quantizer.codebooks[level]
            code = _nearest(residual, centroids)
            chosen = functional.embedding(code, centroids)
            if learn:
                self._update(level, code, residual)
            residual = residual - chosen
            total = total + chosen
        commitment = functional.mse_loss(projected, total) / projected.detach().var().clamp(min=1e-4)
        return projected + (total - projected).detach(), commitment

    @torch.no_grad()
    def _update(self, level: int, code: Tensor, residual: Tensor) -> None:
        bins = self.quantizer.codebooks.shape[1]
        scale = bins / len(code)
        counts = (
            torch.zeros(bins, device=code.device).index_add_(0, code, torch.ones_like(code, dtype=torch.float)) * scale
        )
        sums = torch.zeros_like(self.sums[level]).index_add_(0, code, residual) * scale
        self.counts[level].lerp_(counts, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        fresh = self.sums[level] / self.counts[level].clamp(min=1e-3)[:, None]
        # A centroid that nearly nothing chooses begins again as some latent of this batch.
        dead = self.counts[level] < 0.02
        replacement = residual[torch.randint(len(residual), (bins,), device=residual.device)]
        fresh = torch.where(dead[:, None], replacement, fresh)
        self.counts[level] = torch.where(dead, torch.full_like(self.counts[level], 0.2), self.counts[level])
        self.sums[level] = torch.where(dead[:, None], replacement * 0.2, self.sums[level])
        self.quantizer.codebooks[level] = fresh


class QuantizerTrainer(nn.Module):
    """Both halves of the split quantizer. Before `begin`, latents pass through their projections unquantized."""

    def __init__(self, quantizer: SplitQuantizer) -> None:
        super().__init__()
        assert quantizer.acoustic is not None
        self.quantizer = quantizer
        self.semantic = CodebookTrainer(quantizer.semantic)
        self.acoustic = CodebookTrainer(quantizer.acoustic)
        self.on = False

    def begin(self, latents: Tensor) -> None:
        self.semantic.begin(latents)
        self.acoustic.begin(latents)
        self.on = True

    def forward(self, latents: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, latent) -> what the semantic and the acoustic codebooks make of it (B, T, dim), commitment loss."""
        flat = latents.reshape(-1, latents.shape[-1])
        shape = (*latents.shape[:-1], -1)
        if not self.on:
            zero = latents.new_zeros((), dtype=torch.float32)
            s = self.semantic.quantizer.input_proj(flat)
            a = self.acoustic.quantizer.input_proj(flat)
            return s.view(shape), a.view(shape), zero
        with torch.autocast(latents.device.type, enabled=False):
            s, loss_s = self.semantic(flat.float(), learn)
            a, loss_a = self.acoustic(flat.float(), learn)
        return s.view(shape), a.view(shape), loss_s + loss_a


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return (centroids.square().sum(-1) / 2 - x @ centroids.t()).argmin(-1)
