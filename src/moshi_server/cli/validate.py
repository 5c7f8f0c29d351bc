"""``moshi-server validate``: every fault of the given files, and where each value comes from; it loads nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from ..config import Config, Origin
    from ..errors import ConfigError

HIDDEN: Final = "*hidden*"
VARIABLES: Final = {
    "MOSHI_API_KEY": "none",
    "BETTER_AUTH_SECRET": "none",
    "MOSHI_MODEL_PARAMS_BILLIONS": "as the checkpoint says, else 7.0",
    "MOSHI_PER_BATCH_ITEM_MB": "as the configuration says, else 400",
    "MOSHI_VRAM_RESERVED_MB": "512",
    "HF_TOKEN": "none",
    "HF_HOME": "~/.cache/huggingface",
    "HF_HUB_OFFLINE": "0",
}
"""What the worker reads of the environment, and what holds without it."""

Row = tuple[str, str, str]


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="TOML files to check, or names of shipped ones.", show_default=False),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only which files are right.")] = False,
) -> None:
    """Check configuration files: keys, types, variables and local paths. Downloads nothing.

    Of a file that is right, each value in use is shown with where it comes from: file, .env, environment or default.
    For example: moshi-server validate my.toml
    """
    from ..config import check_config
    from . import error_line
    from .configs import locate
    from .environment import load_dotenv

    from_dotenv = load_dotenv()
    faults = _wrong_variables()
    shown = False
    for fault in faults:
        typer.echo(error_line(fault), err=True)
    failed = bool(faults)
    for file in files:
        config, faults = check_config(locate(file))
        if config is not None:
            faults = _missing_files(config, str(file))
        for fault in faults:
            typer.echo(error_line(fault), err=True)
        failed = failed or bool(faults)
        if config is not None and not faults:
            modules = ", ".join(f"{name} ({module.type})" for name, module in config.modules.items())
            typer.echo(f"{file}: ok: {modules or 'no modules'}")
            if not quiet:
                _print(_rows(locate(file), config, from_dotenv))
                shown = True
    if shown:
        typer.echo("environment:")
        _print(_environment_rows(from_dotenv))
    if failed:
        raise typer.Exit(1)


def _wrong_variables() -> list[ConfigError]:
    """A fault if a variable of the environment makes no sense."""
    from ..errors import ConfigError
    from ..gpu.plan import Overrides

    try:
        Overrides.read(os.environ)
    except ConfigError as fault:
        return [fault]
    return []


def _rows(path: Path, config: Config, from_dotenv: Collection[str]) -> Iterator[Row]:
    from ..config import origins

    for origin in origins(path, config):
        sources = [f"${name} of {_holder(name, from_dotenv)}" for name in origin.variables]
        source = ", ".join(["file", *sources]) if origin.written else "default"
        yield origin.key, _shown(origin), source


def _environment_rows(from_dotenv: Collection[str]) -> Iterator[Row]:
    from ..config import looks_secret

    for name, default in VARIABLES.items():
        value = os.environ.get(name)
        if value is None or not value.strip():
            yield name, default, "default"
        elif name == "MOSHI_API_KEY":
            yield name, _masked(key.strip() for key in value.split(",") if key.strip()), _holder(name, from_dotenv)
        else:
            yield name, HIDDEN if looks_secret(name) else _text(value), _holder(name, from_dotenv)


def _holder(variable: str, from_dotenv: Collection[str]) -> str:
    return ".env" if variable in from_dotenv else "environment"


def _shown(origin: Origin) -> str:
    if origin.key == "authorized_ids":
        return _masked(sorted(origin.value))
    return HIDDEN if origin.secret and origin.value else _text(origin.value)


def _masked(keys: Collection[str] | Iterator[str]) -> str:
    from ..auth import mask

    return ", ".join(map(mask, keys)) or "none"


def _text(value: Any) -> str:
    """A value as TOML would have it, near enough, without anything that moves a terminal's cursor."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value) + '"'
        case list() | tuple() | frozenset():
            return "[" + ", ".join(map(_text, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{name} = {_text(item)}" for name, item in value.items()) + "}"
        case _:
            return str(value)


def _print(rows: Iterator[Row]) -> None:
    table = list(rows)
    keys = max((len(key) for key, _, _ in table), default=0)
    values = min(60, max((len(value) for _, value, _ in table), default=0))
    for key, value, source in table:
        typer.echo(f"  {key:{keys}}  {value:{values}}  {source}")


def _missing_files(config: Config, file: str) -> list[ConfigError]:
    """A fault for each local file that a module reads and that is not here."""
    from .. import hub
    from ..errors import ConfigError

    faults = []
    for name, module in config.modules.items():
        for key, uri in module.files():
            location = hub.parse(uri)
            if isinstance(location, hub.LocalFile) and not location.path.exists():
                hint = "" if location.path.is_absolute() else f"relative paths start from {Path.cwd()}"
                where = f"modules.{name}.{key}"
                faults.append(ConfigError(f"there is no file {location.path}", file=file, key=where, hint=hint))
    return faults
