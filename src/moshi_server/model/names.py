"""What a language model's tensors are called in a file, in both of upstream's namings, and how a file's pieces fit.

Upstream's Rust server (``candle``) writes a depth transformer as one model for each codebook, what is shared among them
several times over; the PyTorch package (``pytorch``) by set of weights, older files with all sets in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from moshi_server.model.lm import LmSpec
from moshi_server.model.tensor_file import Shape

Naming = Literal["candle", "pytorch"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a file, or its rows ``start`` to ``stop``."""

    name: str
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return self.name if self.stop is None else f"{self.name}[{self.start}:{self.stop}]"


# From a file's names to ours, whichever naming it has.
_TO_OURS: tuple[tuple[str, str], ...] = (
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.in_proj.\1"),
    (r"\.self_attn\.(in|out)_projs\.0\.(weight|bias)$", r".self_attn.\1_proj.\2"),
    (r"\.cross_attention\.in_proj_(weight|bias)_(q|kv)$", r".cross_attention.\2_proj.\1"),
    (r"\.cross_attention\.out_projs\.0\.", ".cross_attention.out_proj."),
    (r"^extra_heads\.", "heads."),
)
_FROM_OURS: dict[Naming, tuple[tuple[str, str], ...]] = {
    "candle": (
        (r"\.self_attn\.in_proj\.(weight|bias)$", r".self_attn.in_proj_\1"),
        (r"\.cross_attention\.(q|kv)_proj\.(weight|bias)$", r".cross_attention.in_proj_\2_\1"),
        (r"^heads\.", "extra_heads."),
    ),
    "pytorch": (
        (r"\.self_attn\.(in|out)_proj\.", r".self_attn.\1_projs.0."),
        (r"\.cross_attention\.(q|kv)_proj\.", ".cross_attention.in_projs.0."),
        (r"\.cross_attention\.out_proj\.", ".cross_attention.out_projs.0."),
        (r"^heads\.", "extra_heads."),
    ),
}
_CROSS_FUSED = re.compile(r"\.cross_attention\.in_proj(?:s\.0\.|_)(weight|bias)$")

# The depth transformer of the PyTorch package, whose parts are beside it.
_DEPTH_TO_OURS: tuple[tuple[str, str], ...] = (
    (r"^depformer_in\.", "depformer.linear_in."),
    (r"^depformer_(text_emb|emb|norms)\.", r"depformer.\1."),
    (r"^linears\.", "depformer.linears."),
    (r"^(depformer\.layers\.\d+)\.self_attn\.(in|out)_projs\.", r"\1.\2_projs."),
    (r"^(depformer\.layers\.\d+\.gating)\.(linear_)", r"\1.0.\2"),
)
_DEPTH_FROM_OURS: tuple[tuple[str, str], ...] = (
    (r"^depformer\.linear_in\.", "depformer_in."),
    (r"^depformer\.(text_emb|emb|norms)\.", r"depformer_\1."),
    (r"^depformer\.linears\.", "linears."),
    (r"^(depformer\.layers\.\d+)\.(in|out)_projs\.", r"\1.self_attn.\2_projs."),
)
_DEPTH_FUSED = re.compile(r"^(depformer\.layers\.\d+)\.self_attn\.(in|out)_proj[._](weight)$")
_SLICE = re.compile(r"^depformer\.(\d+)\.(.+)$")


def our_name(name: str) -> str:
    """What the tensor ``name`` of a checkpoint is called in `LmModel`, if it is there as it is in the file."""
    for pattern, replacement in (*_DEPTH_TO_OURS, *_TO_OURS):
        name = re.sub(pattern, replacement, name)
    return name


def pieces(shapes: Mapping[str, Shape], spec: LmSpec) -> dict[str, list[Piece]]:
    """Where each of our parameters is in a file whose tensors have these ``shapes``.

    A name of several pieces is there several times, all of which must hold the same. Names of nothing that `LmModel`
    has are kept as they are.
    """
    found: dict[str, list[Piece]] = {}
    for name, shape in shapes.items():
        for ours, piece in _parts(name, shape, spec):
            found.setdefault(ours, []).append(piece)
    return found


def _parts(name: str, shape: Shape, spec: LmSpec) -> Iterator[tuple[str, Piece]]:
    rows = shape[0] if shape else 0
    if _CROSS_FUSED.search(name):
        kind, width = name.rpartition("weight")[1] or "bias", spec.transformer.d_model
        prefix = name[: name.index(".cross_attention.")]
        yield f"{prefix}.cross_attention.q_proj.{kind}", Piece(name, 0, width)
        yield f"{prefix}.cross_attention.kv_proj.{kind}", Piece(name, width, rows)
    elif (fused := _DEPTH_FUSED.match(name)) is not None:
        sets = spec.depformer.weights if spec.depformer is not None else 1
        for index in range(sets):
            part = Piece(name, index * rows // sets, (index + 1) * rows // sets)
            yield f"{fused[1]}.{fused[2]}_projs.{index}.{fused[3]}", part
    elif (sliced := _SLICE.match(name)) is not None and spec.depformer is not None:
        codebook = int(sliced[1])
        known = codebook < spec.depformer.codebooks
        yield _from_slice(codebook, sliced[2], spec) if known else name, Piece(name)
    else:
        yield our_name(name), Piece(name)


def _from_slice(codebook: int, rest: str, spec: LmSpec) -> str:
    """Ours for the tensor ``rest`` of one codebook's model in the Rust server's naming."""
    assert spec.depformer is not None
    weight = spec.depformer.weight_of(codebook)
    gated = spec.depformer.transformer.gating != "none"
    for pattern, replacement in (
        (r"^emb\.", "text_emb." if codebook == 0 else f"emb.{codebook - 1}."),
        (r"^linear_in\.", f"linear_in.{0 if spec.depformer.shared_input else weight}."),
        (r"^linear_out\.", f"linears.{codebook}."),
        (r"^transformer\.(layers\.\d+)\.self_attn\.(in|out)_proj[._]", rf"\1.\2_projs.{weight}."),
        (r"^transformer\.(layers\.\d+\.gating)\.", rf"\1.{weight}." if gated else r"\1."),
        (r"^transformer\.", ""),
    ):
        rest = re.sub(pattern, replacement, rest)
    return f"depformer.{rest}"


def layout(names: Iterable[str], spec: LmSpec, naming: Naming) -> dict[str, tuple[str, ...]]:
    """What a file of this naming holds of our parameters ``names``: each tensor, and which of ours it is made of.

    Several are one below the other.
    """
    out: dict[str, tuple[str, ...]] = {}
    for name in names:
        for theirs in _checkpoint_names(name, spec, naming):
            out[theirs] = (*out.get(theirs, ()), name)
    return out


def checkpoint_name(name: str, naming: Naming) -> str:
    """What the parameter ``name`` of `LmModel` is called in a checkpoint, the depth transformer's aside."""
    for pattern, replacement in _FROM_OURS[naming]:
        name = re.sub(pattern, replacement, name)
    return name


def _checkpoint_names(name: str, spec: LmSpec, naming: Naming) -> Iterator[str]:
    if not name.startswith("depformer.") or spec.depformer is None:
        yield checkpoint_name(name, naming)
    elif naming == "pytorch":
        for pattern, replacement in _DEPTH_FROM_OURS:
            name = re.sub(pattern, replacement, name)
        yield name
    else:
        yield from _slices(name.removeprefix("depformer."), spec)


def _slices(name: str, spec: LmSpec) -> Iterator[str]:
    """The Rust server's names of one of our depth transformer's parameters, one for each codebook that has it."""
    assert spec.depformer is not None
    for codebook in range(spec.depformer.codebooks):
        weight = spec.depformer.weight_of(codebook)
        table = "text_emb." if codebook == 0 else f"emb.{codebook - 1}."
        entry = f"linear_in.{0 if spec.depformer.shared_input else weight}."
        theirs = None
        if name.startswith(table):
            theirs = "emb." + name.removeprefix(table)
        elif name.startswith(entry):
            theirs = "linear_in." + name.removeprefix(entry)
        elif name.startswith(f"linears.{codebook}."):
            theirs = "linear_out." + name.removeprefix(f"linears.{codebook}.")
        elif (found := re.match(rf"^(layers\.\d+)\.(in|out)_projs\.{weight}\.(weight)$", name)) is not None:
            theirs = f"transformer.{found[1]}.self_attn.{'in_proj_' if found[2] == 'in' else 'out_proj.'}{found[3]}"
        elif (found := re.match(rf"^(layers\.\d+\.gating)\.{weight}\.(.+)$", name)) is not None:
            theirs = f"transformer.{found[1]}.{found[2]}"
        elif re.match(r"^layers\.\d+\.(norm|linear)", name):
            theirs = f"transformer.{name}"
        if theirs is not None:
            yield f"depformer.{codebook}.{theirs}"
