"""Conditions of a language model: numbers and named values that it adds to its input, and vectors it attends to.

Tensor names and arithmetic follow upstream (``moshi-core/src/conditioner.rs``). Computed once per model, always in f32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moshi_server.errors import ConfigError
from moshi_server.model.embedding import TokenTable


@dataclass(frozen=True)
class ContinuousSpec:
    """A number, scaled, then embedded by ``dim`` sines and cosines with periods up to ``max_period``."""

    dim: int
    scale_factor: float
    max_period: float


@dataclass(frozen=True)
class LutSpec:
    """One learnt vector of width ``dim`` for each of ``possible_values``; the table has ``n_bins + 1`` rows."""

    n_bins: int
    dim: int
    possible_values: tuple[str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """Vectors of width ``dim``, projected."""

    dim: int


ConditionerSpec = ContinuousSpec | LutSpec | TensorSpec


class ContinuousConditioner(nn.Module):
    """Embeds a number."""

    def __init__(self, spec: ContinuousSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.output_proj = nn.Linear(spec.dim, d_model, bias=False)
        self.learnt_padding = nn.Parameter(torch.zeros(1, 1, d_model))

    def forward(self, value: float) -> Tensor:
        """The condition (D_model,) of ``value``."""
        half = self.spec.dim // 2
        weight = self.output_proj.weight
        exponents = torch.arange(half, dtype=torch.float32, device=weight.device) / (half - 1)
        phase = value * self.spec.scale_factor * self.spec.max_period**-exponents
        y: Tensor = self.output_proj(torch.cat((phase.cos(), phase.sin())).to(weight.dtype))
        return y


class LutConditioner(nn.Module):
    """Looks a name up."""

    def __init__(self, spec: LutSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = TokenTable(spec.n_bins + 1, spec.dim)
        self.output_proj = nn.Linear(spec.dim, d_model, bias=False)
        self.learnt_padding = nn.Parameter(torch.zeros(1, 1, d_model))

    def forward(self, value: str) -> Tensor:
        """The condition (D_model,) of ``value``; ConfigError if the model does not know it."""
        if value not in self.spec.possible_values:
            known = ", ".join(self.spec.possible_values)
            raise ConfigError(f"the condition {value!r} is not one that the model knows", hint=f"use one of: {known}")
        y: Tensor = self.output_proj(self.embed.weight[self.spec.possible_values.index(value)])
        return y


class TensorConditioner(nn.Module):
    """Projects vectors that come from elsewhere, such as a speaker's voice."""

    def __init__(self, spec: TensorSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.output_proj = nn.Linear(spec.dim, d_model, bias=False)
        self.learnt_padding = nn.Parameter(torch.zeros(1, 1, d_model))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(T, dim) -> (T, D_model); where not ``present`` (T,) bool, what the model learnt for nothing."""
        y: Tensor = self.output_proj(vectors)
        return torch.where(present[:, None], y, self.learnt_padding[0])


def _build(spec: ConditionerSpec, d_model: int) -> nn.Module:
    match spec:
        case ContinuousSpec():
            return ContinuousConditioner(spec, d_model)
        case LutSpec():
            return LutConditioner(spec, d_model)
        case TensorSpec():
            return TensorConditioner(spec, d_model)


class ConditionProvider(nn.Module):
    """A model's conditioners by name."""

    def __init__(self, specs: Mapping[str, ConditionerSpec], d_model: int) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict({name: _build(spec, d_model) for name, spec in specs.items()})

    def _find(self, name: str) -> ContinuousConditioner | LutConditioner | TensorConditioner:
        if name not in self.conditioners:
            known = ", ".join(self.conditioners) or "none"
            raise ConfigError(f"the model has no conditioner {name!r}", hint=f"those in its configuration: {known}")
        found = self.conditioners[name]
        assert isinstance(found, ContinuousConditioner | LutConditioner | TensorConditioner)
        return found

    def number(self, name: str, value: float) -> Tensor:
        """The condition (D_model,) f32 of a number; ConfigError if ``name`` is no conditioner of numbers."""
        found = self._find(name)
        if not isinstance(found, ContinuousConditioner):
            raise ConfigError(f"the conditioner {name!r} takes {_TAKES[type(found)]}, not a number")
        condition: Tensor = found(value)
        return condition.float()

    def named(self, name: str, value: str) -> Tensor:
        """The condition (D_model,) f32 of a named value; ConfigError if ``name`` or ``value`` is not known."""
        found = self._find(name)
        if not isinstance(found, LutConditioner):
            raise ConfigError(f"the conditioner {name!r} takes {_TAKES[type(found)]}, not a named value")
        condition: Tensor = found(value)
        return condition.float()

    def vectors(self, name: str) -> TensorConditioner:
        """The conditioner of vectors ``name``; ConfigError if there is none."""
        found = self._find(name)
        if not isinstance(found, TensorConditioner):
            raise ConfigError(f"the conditioner {name!r} takes {_TAKES[type(found)]}, not vectors")
        return found

    def learnt_padding(self, name: str) -> Tensor:
        """The condition (D_model,) f32 that stands for no value; ConfigError if there is no such conditioner."""
        return self._find(name).learnt_padding.flatten().float()


_TAKES = {ContinuousConditioner: "a number", LutConditioner: "a named value", TensorConditioner: "vectors"}


def delay_condition(provider: ConditionProvider | None, delay: float | None, learnt_padding: bool) -> Tensor | None:
    """What speech to text adds to every input, (D_model,) f32; None for a model without conditioners, as upstream.

    ``delay`` in seconds is given to the conditioner ``delay`` with its sign turned, as upstream does; or
    ``learnt_padding`` leaves the delay open. ConfigError unless it is exactly one of the two.
    """
    if provider is None:
        return None
    if delay is not None and learnt_padding:
        raise ConfigError("conditioning_delay and conditioning_learnt_padding are both set", hint="remove one of them")
    if delay is not None:
        return provider.number("delay", -delay).detach()
    if learnt_padding:
        return provider.learnt_padding("delay").detach()
    raise ConfigError(
        "the model has conditioners, but neither conditioning_delay nor conditioning_learnt_padding is set",
        hint="set conditioning_learnt_padding = true, or a delay in seconds",
    )
