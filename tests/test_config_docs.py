"""The page on configuration names every key, and its examples are what the program says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from moshi_server.config import Config, DialogueGenerationConfig, TtsGenerationConfig, check_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
LM = (ROOT / "configs" / "config-stt-en_fr-hf.toml").read_text(encoding="utf-8")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def tables(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for child in models_in(field.annotation):
            yield from tables(child)


ALL = sorted(set(tables(Config)) - {TtsGenerationConfig, DialogueGenerationConfig}, key=lambda model: model.__name__)


def test_every_table_is_found() -> None:
    assert len(ALL) == 18


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.__name__)
def test_every_key_is_on_the_page(model: type[BaseModel]) -> None:
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`+[^`]+`+", PAGE))))
    assert set(model.model_fields) - words - {"modules", "model", "py"} == set()


def test_defaults_on_the_page_are_the_defaults() -> None:
    checked = 0
    for model in ALL:
        for name, field in model.model_fields.items():
            row = re.search(rf"^\| `{name}` \| ([\d.]+)[ ;|]", PAGE, re.MULTILINE)
            if row and isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert float(row[1]) == field.default or name == "max_session_seconds", f"{model.__name__}.{name}"
                checked += 1
    assert checked >= 7


@pytest.mark.parametrize("example", re.findall(r"^error: my\.toml: (.*)$", PAGE, re.MULTILINE))
def test_the_examples_of_errors_are_what_is_said(example: str, tmp_path: Path) -> None:
    line = {
        "batch_sise": "batch_sise = 3",
        "d_model": "d_model = 3",
        "dtype_override": 'dtype_override = "fp16"',
    }[example.split(":")[0].rpartition(".")[2]]
    file = tmp_path / "my.toml"
    file.write_text(LM.replace("asr_delay_in_tokens = 6", f"asr_delay_in_tokens = 6\n{line}"))
    config, faults = check_config(file, {})
    assert config is None
    said = f"{faults[0]} ({faults[0].hint})"
    assert said == f"{file}: {example}"
