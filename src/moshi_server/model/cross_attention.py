"""Attention of a stream to something it is told once, such as a speaker's voice; it knows not what that is.

Names and arithmetic follow upstream (``moshi/modules/transformer.py``, ``moshi-core/src/transformer.rs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_GATHER_BYTES = 1 << 18


@dataclass(frozen=True)
class CrossSpec:
    """What a transformer attends to beside itself: ``length`` vectors of ``source_width`` (of its own width if None).

    ``length`` is how many each slot has room for, all of which are attended to.
    """

    length: int
    source_width: int | None = None
    norm: Literal["rms_norm", "layer_norm"] = "layer_norm"


class CrossAttention(nn.Module):
    """Queries from the stream, keys and values from its slot's source."""

    def __init__(self, width: int, heads: int, spec: CrossSpec, *, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.kv_proj = nn.Linear(spec.source_width or width, 2 * width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def keys_values(self, source: Tensor) -> Tensor:
        """(B, length, source width) -> (B, 2, H, length, D)."""
        y: Tensor = self.kv_proj(source)
        return y.view(*source.shape[:2], 2, self.heads, self.head_dim).permute(0, 2, 3, 1, 4)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        """(B, T, D_model) and (B, 2, H, length, D) -> (B, T, D_model)."""
        q = self.q_proj(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)
        keys, values = keys_values.unbind(1)
        y = functional.scaled_dot_product_attention(q, keys, values)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def step(self, x: Tensor, held: Tensor, slots: Tensor, rows: tuple[int, ...] | None) -> Tensor:
        """(B, 1, D_model) -> same; ``held`` (slots, 2, H, length, D), of which the slots' rows are read.

        ``rows`` are the same slots for the host, where reading them in place saves copying what they hold.
        """
        q = self.q_proj(x).view(len(x), self.heads, 1, self.head_dim).to(held.dtype)
        if rows is not None and held.dtype is torch.float32 and rows == tuple(range(rows[0], rows[0] + len(rows))):
            keys, values = held[rows[0] : rows[0] + len(rows)].unbind(1)
            y = functional.scaled_dot_product_attention(q, keys, values)
        elif rows is None or (len(rows) > 1 and held[0].nbytes <= _GATHER_BYTES):
            keys, values = held.index_select(0, slots).unbind(1)
            y = functional.scaled_dot_product_attention(q, keys, values)
        else:
            q = q * self.head_dim**-0.5
            y = torch.stack([_attend(q[row], held[slot]) for row, slot in enumerate(rows)])
        out: Tensor = self.out_proj(y.view(len(x), 1, -1).to(x.dtype))
        return out


def _attend(q: Tensor, keys_values: Tensor) -> Tensor:
    """Scaled queries (H, 1, D) -> (H, 1, D)."""
    keys, values = keys_values.unbind(0)
    weights = torch.bmm(q, keys.transpose(1, 2)).float().softmax(-1)
    return torch.bmm(weights.to(values.dtype), values)
