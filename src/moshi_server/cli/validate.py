"""``moshi-server validate``: every fault of the given files, without weights, network or torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config import Config
    from ..errors import ConfigError


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="TOML files to check, or names of shipped ones.", show_default=False),
    ],
) -> None:
    """Check configuration files: keys, types, variables and local paths. Downloads nothing."""
    from ..config import check_config
    from . import error_line
    from .configs import locate
    from .environment import load_dotenv

    load_dotenv()
    failed = False
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
    if failed:
        raise typer.Exit(1)


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
