"""Tables of learnt vectors by token: plain, of low rank, or of two streams of text in one number."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

ZERO_TOKEN = -1
"""Stands for nothing: its vector is zero."""


class TokenTable(nn.Embedding):
    """An embedding that draws no values on the meta device, where doing so costs seconds of imports for nothing."""

    def reset_parameters(self) -> None:
        """Normal values, unless there is no memory to hold them."""
        if not self.weight.is_meta:
            super().reset_parameters()


class TokenEmbedding(TokenTable):
    """A table that knows `ZERO_TOKEN`, for what a model is given and did not always say itself.

    Given ``low_rank``, the table is that narrow and a projection widens it. With ``two_streams`` a token is
    ``(second + 1) * size + first`` of a table of ``size`` rows, and ``second`` is -1 where there is none: each is
    projected by a matrix of its own. Names and arithmetic are those of the PyTorch package.
    """

    def __init__(self, size: int, width: int, *, low_rank: int | None = None, two_streams: bool = False) -> None:
        super().__init__(size, low_rank or width)
        inner = low_rank or width
        # The package makes the projection of a table of low rank even where two streams do without it.
        self.low_rank = None if low_rank is None else nn.Linear(low_rank, width, bias=False)
        self.out1 = nn.Linear(inner, width, bias=False) if two_streams else None
        self.out2 = nn.Linear(inner, width, bias=False) if two_streams else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        known = tokens.clamp(min=0)
        nothing = (tokens < 0)[..., None]
        if self.out1 is not None and self.out2 is not None:
            size = self.num_embeddings
            second = known // size - 1
            first = functional.embedding(known % size, self.weight)
            other: Tensor = self.out2(functional.embedding(second.clamp(min=0), self.weight))
            y: Tensor = self.out1(first) + other.masked_fill((second < 0)[..., None], 0)
            return y.masked_fill(nothing, 0)
        y = functional.embedding(known, self.weight).masked_fill(nothing, 0)
        return y if self.low_rank is None else self.low_rank(y)
