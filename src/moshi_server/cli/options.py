"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import os
from typing import Annotated

import typer

ApiKey = Annotated[
    str | None, typer.Option("--api-key", help="For the server; by default the first key of MOSHI_API_KEY.")
]
ServerOrHere = Annotated[
    str | None,
    typer.Option("--url", help="A running server, such as ws://HOST:8080. Without it the model runs here."),
]
ModelHere = Annotated[
    str | None,
    typer.Option("--config", help="The model to run here: a TOML file or a name that `configs` lists; default demo."),
]
CpuHere = Annotated[bool, typer.Option("--cpu", help="Use no GPU (without --url).")]


def key_for(given: str | None) -> str | None:
    """The key that was given, else the first of ``MOSHI_API_KEY``."""
    return given or os.environ.get("MOSHI_API_KEY", "").split(",")[0].strip() or None


def only_one_place(url: str | None, config: str | None, cpu: bool) -> None:
    """Refuse what is about a model in this process, beside a server.

    Raises:
        typer.BadParameter: both are given.
    """
    if url is not None and (config is not None or cpu):
        raise typer.BadParameter("--config and --cpu are for a model in this process: leave them out, or --url")
