"""Write docs/reference.md from the command line and the configuration models; it explains nothing they do not say.

Run it after a change of either: ``python docs/generate.py``. A test compares the page with what this would write.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from moshi_server.cli import app
from moshi_server.config import Config, Module, ModuleConfig, WarmupConfig
from moshi_server.config.speech import SpeechOptions

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

Every command with its options, then every table of the configuration with its keys, as the program itself has them
(`python docs/generate.py` writes this page; a test holds it to the program). What they are for is told in
[configuration.md](configuration.md), [operations.md](operations.md) and the pages by task. A running server describes
its HTTP routes at `/api/openapi.json`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Commands\n"]
    parts += [command_section(command.callback) for command in app.registered_commands if command.callback]
    parts += ["## Configuration\n", table_of(Config, "The top level")]
    parts += [table_of(Module, "`[modules.NAME]`: every type")]
    parts += [table_of(model, heading) for model, heading in tables()]
    return "\n".join(parts)


def command_section(command: Callable[..., Any]) -> str:
    """One command: its line, its help, its arguments and options; read from its signature, as Typer does."""
    rows, words = [], []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, info = get_args(hints[name])[:2]
        if isinstance(info, ArgumentInfo):
            word = info.metavar or name.upper()
            words.append(f"[{word}]" if parameter.default is None and "[" not in word else word)
            rows.append((f"`{words[-1]}`", "", info.help or ""))
        elif not info.hidden:
            # Within Annotated, Typer takes the first spelling for a default and puts that right later.
            spelt = [it for it in (info.default, *(info.param_decls or ())) if isinstance(it, str)]
            spelt = [f"`{spelling}{value_name(annotation, info)}`" for spelling in spelt or [f"--{name}"]]
            rows.append((", ".join(spelt), default_of(parameter.default), info.help or ""))
    has_options = any(row[0].startswith("`-") for row in rows)
    line = " ".join(["moshi-server", command.__name__, *(["[OPTIONS]"] if has_options else []), *words])
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n".join([f"### `{line}`", "", text, "", *grid(("", "default", "what"), rows), ""])


def value_name(annotation: Any, info: OptionInfo) -> str:
    """What follows an option: nothing for a flag."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    kind = (get_args(kinds[0]) or (kinds[0],))[0]
    if kind is bool:
        return ""
    if info.metavar:
        return f" {info.metavar}"
    if issubclass(kind, Enum):
        return f" {'|'.join(str(choice.value) for choice in kind)}"
    return f" {({int: 'NUMBER', float: 'NUMBER', Path: 'PATH'}).get(kind, 'TEXT')}"


def default_of(value: Any) -> str:
    """A default as one would type it; nothing for flags that are off and for what has none."""
    if value is inspect.Parameter.empty:
        return "needed"
    value = getattr(value, "value", value)
    return "" if value is None or value is False or value == "" else f"`{value}`"


def tables() -> Iterator[tuple[type[BaseModel], str]]:
    """Each table once, with its place in the file: modules first, what hangs on them after."""
    seen: dict[type[BaseModel], str] = {}

    def visit(model: type[BaseModel], place: str) -> None:
        if model in seen:
            return
        seen[model] = place
        for name, field in model.model_fields.items():
            for child in models_in(field.annotation):
                mapping = "dict" in str(field.annotation)
                visit(child, f"{place}.{name}{'.NAME' if mapping else ''}")

    visit(WarmupConfig, "warmup")
    for module in get_args(ModuleConfig):
        (kind,) = get_args(module.model_fields["type"].annotation)
        seen[module] = f'modules.NAME`, `type = "{kind}"'
    for module in get_args(ModuleConfig):
        for name, field in module.model_fields.items():
            for child in models_in(field.annotation):
                visit(child, f"modules.NAME.{name}")
    yield from ((model, f"`[{place}]`" if "`" not in place else bracketed(place)) for model, place in seen.items())
    yield SpeechOptions, '`[modules.NAME.py]` of `type = "Py"` without a `script`'


def bracketed(place: str) -> str:
    """``modules.NAME`, `type = "X"`` as a heading."""
    name, _, kind = place.partition("`, `")
    return f"`[{name}]`, `{kind}`"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a key's type has in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def table_of(model: type[BaseModel], heading: str) -> str:
    """One table of the configuration: its keys, in the order of the models."""
    schema = model.model_json_schema()
    documented = key_texts(model)
    rows = []
    for name, field in model.model_fields.items():
        common = Module.model_fields.get(name) if issubclass(model, Module) and model is not Module else None
        if common is not None and (name == "type" or common.default == field.default):
            continue  # it is in the table of every type
        shown = kind_of(schema["properties"][name], schema.get("$defs", {}))
        default = "needed" if field.is_required() else value_of(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", shown, default, documented.get(name, "")))
    text = " ".join(inspect.cleandoc(model.__doc__ or "").replace("``", "`").split())
    return "\n".join([f"### {heading}", "", text, "", *grid(("key", "type", "default", "meaning"), rows), ""])


def value_of(value: Any) -> str:
    """A default as the file would write it."""
    if value is None or isinstance(value, BaseModel) or value in ({}, frozenset()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f'`"{value}"`' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def kind_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A key's type in words, from its JSON schema."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        shown = [kind_of(choice, definitions) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(shown))
    if "$ref" in schema or "properties" in schema:
        return "table"
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' for value in schema["enum"])
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    kind = {"integer": "whole number", "array": "list", "object": "table", "boolean": "true or false"}.get(
        schema.get("type", "any"), schema.get("type", "any")
    )
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}"}
    return " ".join([kind, *(form.format(f"{schema[key]:g}") for key, form in bounds.items() if key in schema)])


def key_texts(model: type[BaseModel]) -> dict[str, str]:
    """The strings under the fields of a model and of its bases, which Python itself does not keep."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("moshi_server.")):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(str(text.value.value).replace("``", "`").split())
    return texts


def grid(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table in Markdown; nothing where there are no rows."""
    if not rows:
        return []
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
