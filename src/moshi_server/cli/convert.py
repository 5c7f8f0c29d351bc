"""``moshi-server convert``: a checkpoint in another type or quantized, once, so that no start has to convert it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError


class NumberType(StrEnum):
    """What weights are stored in."""

    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"


class Bits(StrEnum):
    """What layers are stored in."""

    int8 = "int8"
    int4 = "int4"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A safetensors file, or its hf://ORG/REPO/PATH.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    dtype: Annotated[
        NumberType | None, typer.Option("--dtype", help="The number type to store.", show_default=False)
    ] = None,
    quantize: Annotated[
        Bits | None,
        typer.Option("--quantize", help="Layers in 8 or 4 bits instead, for CPUs.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite OUT.")] = False,
) -> None:
    """Write a checkpoint in another number type, or quantized, in little memory; its names and metadata stay.

    For example: moshi-server convert model.safetensors model-f16.safetensors --dtype f16
    """
    from .environment import load_dotenv

    if (dtype is None) == (quantize is None):
        raise ConfigError("expected either --dtype or --quantize", hint="for example --dtype bf16, or --quantize int8")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder", hint="name the file to write")
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already", hint="name another file, or overwrite it with --force")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target}: its folder is missing or not writable", hint="make it first")
    load_dotenv()

    from ..hub import resolve

    path = resolve(source)
    if dtype is None:
        assert quantize is not None
        _quantize(path, target, quantize)
        return

    import torch

    from ..model.convert import convert_checkpoint

    types = {NumberType.f16: torch.float16, NumberType.bf16: torch.bfloat16, NumberType.f32: torch.float32}
    done = convert_checkpoint(path, target, types[dtype])
    typer.echo(
        f"{target}: {done.changed} tensors in {dtype}, {done.kept} as they were; "
        f"{done.bytes_before / 1e6:.1f} MB became {done.bytes_after / 1e6:.1f} MB"
    )
    if done.is_codec and dtype is not NumberType.f32:
        typer.echo(
            "note: this is a codec; the server computes it in f32 all the same, and its codes will differ a little",
            err=True,
        )


def _quantize(path: Path, target: Path, kind: Bits) -> None:
    from ..model.quantize_cache import convert_quantized

    done = convert_quantized(path, target, kind.value)
    typer.echo(
        f"{target}: {done.layers} layers in {kind}, {done.others} other tensors; "
        f"{done.bytes_before / 1e6:.1f} MB became {done.bytes_after / 1e6:.1f} MB"
    )
