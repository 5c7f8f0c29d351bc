"""Reads a TOML file, puts the environment's variables in, and checks it; every fault found is a `ConfigError`."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from .explain import explain
from .modules import Config

VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


def load_config(path: str | os.PathLike[str], env: Mapping[str, str] | None = None) -> Config:
    """Read and check one file; nothing is downloaded.

    Args:
        path: the TOML file.
        env: where ``$NAME`` and ``${NAME}`` in strings are looked up, by default the process's environment;
            ``$$`` is a plain dollar.

    Raises:
        ConfigError: the first fault, with how many more there are.
    """
    config, faults = check_config(path, env)
    if config is not None:
        return config
    first = faults[0]
    if len(faults) > 1:
        first.args = (f"{first.args[0]} (and {len(faults) - 1} more: see `moshi-server validate {os.fspath(path)}`)",)
    raise first


def check_config(
    path: str | os.PathLike[str], env: Mapping[str, str] | None = None
) -> tuple[Config | None, list[ConfigError]]:
    """Read one file; returns the configuration, or None and every fault."""
    file = os.fspath(path)
    faults: list[ConfigError] = []
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        table = _substitute(raw, os.environ if env is None else env, (), file, faults)
    except OSError as error:
        hint = "`moshi-server configs` lists those that are shipped"
        return None, [ConfigError(_unreadable(error), file=file, hint=hint)]
    except UnicodeDecodeError as error:
        return None, [ConfigError(f"not UTF-8 at byte {error.start}", file=file)]
    except ValueError as error:  # a number of 5000 digits is no TOMLDecodeError
        return None, [ConfigError(f"not valid TOML: {error}", file=file)]
    except RecursionError:
        return None, [ConfigError("tables or arrays are nested too deeply", file=file)]
    config = None
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        faults += explain(error, table, file)
    return (None, faults) if faults else (config, [])


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    return f"cannot be read: {error.strerror}"


def _substitute(value: Any, env: Mapping[str, str], key: tuple[str, ...], file: str, faults: list[ConfigError]) -> Any:
    """Return ``value`` with its variables replaced; a missing one is added to ``faults`` and left as it stands."""
    match value:
        case dict():
            return {name: _substitute(item, env, (*key, name), file, faults) for name, item in value.items()}
        case list():
            return [_substitute(item, env, (*key, str(i)), file, faults) for i, item in enumerate(value)]
        case str():

            def replacement(match: re.Match[str]) -> str:
                escaped, bare, braced = match.groups()
                if escaped:
                    return "$"
                name = bare or braced
                if name in env:
                    return env[name]
                hint = f"set {name} in the environment or in .env, or write $$ for a plain dollar"
                message = f"the environment variable {name} is not set"
                faults.append(ConfigError(message, file=file, key=".".join(key), hint=hint))
                return match.group()

            return VARIABLE.sub(replacement, value)
        case _:
            return value
