"""Explicit streaming state kept by slot: a step reads and updates the rows of the slots that run; it knows no model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Every leaf has one row per slot, and a row of zeros is always the state of a stream that has not begun.
State = dict[str, "Tensor | State"]


class StreamingModule(nn.Module):
    """A layer that computes a whole sequence at once (``forward``) or a piece of it per call (``step``).

    Both give the same numbers. ``forward`` starts from the zero state, keeps none, and is differentiable.
    A module without state of its own inherits ``init_state``: the states of its streaming children, by name.
    """

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """All-zero state for ``slots`` streams; device and dtype are those of the parameters unless given."""
        state: State = {}
        for name, child in self.named_children():
            child_state = _child_state(child, slots, device, dtype)
            if child_state:
                state[name] = child_state
        return state

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """Advance the streams ``slots`` (B,), int64 and distinct, by ``x`` (B, ...); others stay untouched."""
        raise NotImplementedError

    def placement(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> tuple[torch.device, torch.dtype]:
        """Where this module's state lives: what was asked for, else what its first parameter has."""
        parameter = next(self.parameters(), None)
        default = torch.zeros(0) if parameter is None else parameter
        return torch.device(device) if device is not None else default.device, dtype or default.dtype


def _child_state(child: nn.Module, slots: int, device: torch.device | str | None, dtype: torch.dtype | None) -> State:
    if isinstance(child, StreamingModule):
        return child.init_state(slots, device=device, dtype=dtype)
    state: State = {}
    for name, grandchild in child.named_children():
        inner = _child_state(grandchild, slots, device, dtype)
        if inner:
            state[name] = inner
    return state


def leaf(state: State, name: str) -> Tensor:
    """The tensor ``state[name]``."""
    value = state[name]
    assert isinstance(value, Tensor), f"state {name!r} is not a tensor"
    return value


def branch(state: State, name: str) -> State:
    """The nested state ``state[name]``; empty where that child keeps none."""
    value = state.get(name, {})
    assert isinstance(value, dict), f"state {name!r} is a tensor"
    return value


def leaves(state: State) -> Iterator[Tensor]:
    """Every tensor of ``state``, depth first."""
    for value in state.values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from leaves(value)


_RINGS = ("ring.", "scales.")


def reset_state(state: State, slots: Tensor, *, rings: bool = True) -> None:
    """Put the rows ``slots`` (N,), int64, of every leaf back to the beginning of a stream.

    Without ``rings`` keys and values stay as they are: whoever reads no more of a ring than was written need not clear
    it, and it is nearly all of the state.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            reset_state(value, slots, rings=rings)
        elif rings or not name.startswith(_RINGS):
            value.index_fill_(0, slots, 0)


def state_bytes(state: State) -> int:
    """Bytes that ``state`` takes on its device, all slots together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in leaves(state))
