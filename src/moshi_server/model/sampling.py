"""Tokens from logits: greedy, or at a temperature with noise that belongs to the stream and not to the batch."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Scatter the bits of 32-bit numbers held in int64; multipliers under 2**31, so that no product overflows."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x31848BAB), (14, 0x2C1B3C6D)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 16)


def uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """Numbers in (0, 1), f64, (...): each a fixed function of its seed and counter (both int64) on any device."""
    bits = _mix(_mix(seeds & _MASK) ^ _mix((counters + 0x9E3779B9) & _MASK))
    return (bits.double() + 0.5) / (_MASK + 1)


def sample(logits: Tensor, temperature: float, seeds: Tensor, counters: Tensor) -> Tensor:
    """One token for each row of ``logits`` (B, V) f32: (B,) int64.

    Temperature 0 or less takes the largest. Above it, the row's draw depends on its logits, seed and counter alone, so
    that a stream's tokens are the same alone and among others.
    """
    if temperature <= 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).double().cumsum(-1)
    target = uniform(seeds, counters)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def sample_rows(
    logits: Tensor, temperatures: Tensor, top_k: Tensor, seeds: Tensor, counters: Tensor, *, most: int
) -> Tensor:
    """As `sample`, with each row's own temperature (B,) f32 and number of candidates (B,) int64, 1 to ``most``.

    Only the ``top_k`` likeliest tokens of a row are drawn from.
    """
    return choose_rows(logits, temperatures, top_k, uniform(seeds, counters), most=most)


def choose_rows(logits: Tensor, temperatures: Tensor, top_k: Tensor, noise: Tensor, *, most: int) -> Tensor:
    """As `sample_rows`, by ``noise`` (B,), numbers from `uniform`: those of many draws cost as much as those of one."""
    most = min(most, logits.shape[-1])
    values, ids = logits.topk(most, dim=-1)
    # A row that takes the largest is drawn too, at any temperature, so that no shape depends on who is greedy.
    divisors = torch.where(temperatures > 0, temperatures, 1.0)
    weights = ((values - values[:, :1]) / divisors[:, None]).double().exp()
    weights = weights.masked_fill(torch.arange(most, device=logits.device) >= top_k[:, None], 0.0)
    cumulative = weights.cumsum(-1)
    target = noise[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).minimum(top_k[:, None] - 1).clamp_(max=most - 1)
    return torch.where(temperatures > 0, ids.gather(-1, place)[:, 0], ids[:, 0])
