"""Where each value of a configuration comes from: the file, a variable in it, or a default; it hides no secrets."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from .load import VARIABLE
from .modules import Config

_SECRET_NAME: Final = re.compile(r"(?i)(key|token|secret|password|passwd|credential|authorization)s?\d*$")
_SECRET_KEYS: Final = frozenset({"authorized_ids"})


@dataclass(frozen=True, slots=True)
class Origin:
    """One value in use.

    Attributes:
        key: dotted, as errors name it.
        value: as it is used.
        written: whether the file says it; otherwise it is a default.
        variables: names of the environment that are part of it.
        secret: whether it must not be shown whole.
    """

    key: str
    value: Any
    written: bool
    variables: tuple[str, ...] = ()
    secret: bool = False


def origins(path: str | os.PathLike[str], config: Config) -> list[Origin]:
    """Every value of ``config``, which was read from this file, in the order of the documentation."""
    raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return list(_of_table(config, raw, ""))


def looks_secret(name: str) -> bool:
    """Whether a text of this name is better not shown."""
    return bool(_SECRET_NAME.search(name))


def _of_table(model: BaseModel, raw: Mapping[str, Any], prefix: str) -> Iterator[Origin]:
    for name in type(model).model_fields:
        yield from _of_value(getattr(model, name), raw.get(name), name in raw, f"{prefix}{name}")


def _of_value(value: Any, raw: Any, written: bool, key: str) -> Iterator[Origin]:
    inside: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
    if isinstance(value, BaseModel):
        yield from _of_table(value, inside, f"{key}.")
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _of_value(item, inside.get(name), name in inside, f"{key}.{name}")
    else:
        variables = tuple(dict.fromkeys(_variables(raw)))
        name = key.rpartition(".")[2]
        secret = key in _SECRET_KEYS or looks_secret(name) or any(map(looks_secret, variables))
        # A number is a token's id rather than a secret.
        yield Origin(key, value, written, variables, secret and isinstance(value, str | frozenset | list | tuple))


def _variables(raw: Any) -> Iterator[str]:
    match raw:
        case str():
            yield from (bare or braced for _, bare, braced in VARIABLE.findall(raw) if bare or braced)
        case list():
            for item in raw:
                yield from _variables(item)
        case dict():
            for item in raw.values():
                yield from _variables(item)
