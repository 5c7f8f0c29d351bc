"""``moshi-server convert``: a checkpoint in another number type, once, so that nothing is converted at each start."""

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


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A safetensors file, or its hf://ORG/REPO/PATH.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    dtype: Annotated[NumberType, typer.Option("--dtype", help="The number type to store.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite OUT.")] = False,
) -> None:
    """Write a checkpoint in another number type, in little memory; its names and metadata stay."""
    from .environment import load_dotenv

    if target.is_dir():
        raise ConfigError(f"{target} is a folder", hint="name the file to write")
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already", hint="name another file, or overwrite it with --force")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target}: its folder is missing or not writable", hint="make it first")
    load_dotenv()

    from ..hub import resolve

    path = resolve(source)

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
