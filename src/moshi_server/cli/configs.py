"""``moshi-server configs``: the configurations that come with the package."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError


def shipped() -> dict[str, Path]:
    """Each shipped configuration's path, by its name without ``.toml``.

    An installed package holds them beside its modules; a checkout has them at its root, where they are written.
    """
    package = Path(str(resources.files("moshi_server")))
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The path of the shipped configuration ``name``, with or without ``.toml``.

    Raises:
        ConfigError: there is none of that name.
    """
    found = shipped()
    stem = name.removesuffix(".toml")
    if stem in found:
        return found[stem]
    near = difflib.get_close_matches(stem, found, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(found)}"
    raise ConfigError(f"no shipped configuration is named {name!r}", hint=hint)


def locate(file: Path) -> Path:
    """``file`` itself, or the shipped configuration of that name if there is no such file."""
    if not file.exists() and file.name == str(file) and file.name.removesuffix(".toml") in shipped():
        return find(file.name)
    return file


def configs(
    name: Annotated[str | None, typer.Argument(help="Print this one.", show_default=False)] = None,
) -> None:
    """List the shipped configurations, or print one.

    For example: moshi-server configs demo > my.toml
    """
    if name is not None:
        typer.echo(find(name).read_text(encoding="utf-8"), nl=False)
        return
    found = shipped()
    width = max(map(len, found), default=0)
    for stem, path in found.items():
        typer.echo(f"{stem:{width}}  {_summary(path)}")


def _summary(path: Path) -> str:
    """The file's first line, which is a comment that says what it is for."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().lstrip("# ").rstrip()
