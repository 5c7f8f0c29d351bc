"""Tables of learnt vectors by token."""

from __future__ import annotations

from torch import nn


class TokenTable(nn.Embedding):
    """An embedding that draws no values on the meta device, where doing so costs seconds of imports for nothing."""

    def reset_parameters(self) -> None:
        """Normal values, unless there is no memory to hold them."""
        if not self.weight.is_meta:
            super().reset_parameters()
