"""Turns pydantic's findings into sentences that name the key, what stood there, and what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigError
from .modules import Config

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "frozen_set_type": "a list of strings",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_TOML_TYPES = {str: "the string", bool: "", int: "", float: "", list: "a list", dict: "a table"}


def explain(error: ValidationError, table: dict[str, Any], file: str) -> list[ConfigError]:
    """One `ConfigError` for each key at fault, in the order of the file's keys as pydantic met them."""
    faults: dict[tuple[str, ...], ConfigError] = {}
    for details in error.errors(include_url=False):
        path = _path_in_file(details["loc"], table)
        message, hint = _sentence(details, path, table)
        # A union reports one finding for each of its branches: the first is enough.
        faults.setdefault(path, ConfigError(message, file=file, key=".".join(path), hint=hint))
    return list(faults.values())


def _path_in_file(loc: tuple[int | str, ...], table: dict[str, Any]) -> tuple[str, ...]:
    """Drop from ``loc`` what stands for a branch of a union, which the file does not have."""
    path: list[str] = []
    here: Any = table
    for index, part in enumerate(loc):
        if isinstance(here, dict) and (part in here or (index == len(loc) - 1 and part != here.get("type"))):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _sentence(details: ErrorDetails, path: tuple[str, ...], table: dict[str, Any]) -> tuple[str, str]:
    kind = details["type"]
    context = details.get("ctx", {})
    value = details["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, table)
    if kind == "missing":
        return "this key is needed", _purpose(path, table)
    if kind == "union_tag_not_found":
        return "it has no type", f"add type = one of {_tag_names(path, table)}"
    if kind == "union_tag_invalid":
        tags = _tag_names(path, table)
        found = str(context.get("tag", ""))
        return f"unknown type {found!r}: expected one of {tags}", _did_you_mean(found, tags.split(", "))
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        shown = ", ".join(f'"{choice}"' for choice in choices)
        return f"expected one of {shown}, got {_shown(value)}", _did_you_mean(str(value), choices)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_shown(value)}", ""
    if kind == "too_short":
        return "expected at least one item", ""
    if kind.startswith(("greater_than", "less_than", "finite")):
        return f"{details['msg'][0].lower()}{details['msg'][1:]}, got {_shown(value)}", ""
    return details["msg"], ""


def _unknown_key(path: tuple[str, ...], table: dict[str, Any]) -> tuple[str, str]:
    *parents, key = path
    for depth in range(len(parents)):
        if key in _fields_at(tuple(parents[:depth]), table):
            where = ".".join(parents[:depth])
            return "unknown key here", f"it belongs in [{where}]" if where else "it belongs at the top of the file"
    for table_name in _tables_with(key, _models_at(tuple(parents), table)):
        return "unknown key here", f"it belongs in [{'.'.join((*parents, table_name))}]"
    known = sorted(_fields_at(tuple(parents), table))
    near = _did_you_mean(key, known)
    return "unknown key", near or (f"known here: {', '.join(known)}" if len(known) <= 12 else "")


def _did_you_mean(word: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.7)
    return f"did you mean {lower[near[0]]}?" if near else ""


def _tag_names(path: tuple[str, ...], table: dict[str, Any]) -> str:
    """The values that ``type`` may have at ``path``, separated by commas."""
    return ", ".join(sorted(tag for model in _models_at(path, table, tagged=False) for tag in _tags(model)))


def _purpose(path: tuple[str, ...], table: dict[str, Any]) -> str:
    """What a missing key should hold."""
    for model in _models_at(path[:-1], table):
        field = model.model_fields.get(path[-1])
        if field is None:
            continue
        tables = list(_models_in(field.annotation))
        if tables:
            return f"add the table [{'.'.join(path)}]"
        kind = field.annotation
        name = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(kind)  # type: ignore[arg-type]
        if get_origin(kind) is list:
            name = "a list"
        if name:
            return f"expected {name}"
    return ""


def _shown(value: Any) -> str:
    noun = _TOML_TYPES.get(type(value), "")
    if isinstance(value, list | dict):
        return noun
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    if isinstance(value, str):
        text = '"' + (value if len(value) <= 60 else value[:57] + "...") + '"'
    return f"{noun} {text}".strip()


def _fields_at(path: tuple[str, ...], table: dict[str, Any]) -> set[str]:
    return {name for model in _models_at(path, table) for name in model.model_fields}


def _tables_with(key: str, models: list[type[BaseModel]]) -> Iterator[str]:
    """Names of the tables within ``models``, the nearest first, that have this key."""
    level = [(name, child) for model in models for name, child in _children(model)]
    while level:
        yield from (name for name, model in level if key in model.model_fields)
        level = [(f"{name}.{below}", child) for name, model in level for below, child in _children(model)]


def _children(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for child in _models_in(field.annotation):
            yield name, child


def _models_at(path: tuple[str, ...], table: dict[str, Any], *, tagged: bool = True) -> list[type[BaseModel]]:
    """The models that the table at ``path`` may be; its ``type``, if ``tagged``, leaves one of a union."""
    models: list[type[BaseModel]] = [Config]
    annotation: Any = None
    here: Any = table
    for part in path:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if not fields:
                return []
            annotation = _without_none(fields[0].annotation)
        here = here.get(part) if isinstance(here, dict) else None
        models = [] if get_origin(annotation) is dict else list(_models_in(annotation))
        tag = here.get("type") if isinstance(here, dict) else None
        if len(models) > 1 and (tagged or part != path[-1]):
            models = [model for model in models if tag in _tags(model)] or models
    return models


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field else ()


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        rest = [branch for branch in get_args(annotation) if branch is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that ``annotation`` allows for the value itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _models_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for branch in get_args(annotation):
            yield from _models_in(branch)
