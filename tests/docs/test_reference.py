"""The page of reference is what the program says of itself today."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from moshi_server.cli import app
from moshi_server.cli.worker import worker
from moshi_server.config import BatchedAsrConfig

DOCS = Path(__file__).parents[2] / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
PAGE = (DOCS / "reference.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_generator_writes() -> None:
    assert GENERATE["page"]() == PAGE, "run python docs/generate.py"


def test_every_command_and_its_options_are_there() -> None:
    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert re.findall(r"^### `moshi-server (\w+)", PAGE, re.MULTILINE) == names
    section = GENERATE["command_section"](worker)
    for row in ("| `--port NUMBER`, `-p NUMBER` | `8080` |", "| `--cpu` |  |", "| `--config PATH` | needed |"):
        assert row in section


def test_a_key_has_its_type_its_default_and_its_meaning() -> None:
    section = GENERATE["table_of"](BatchedAsrConfig, "x")
    assert "| `turn_head` | whole number from 0 to 3 | 2 | Ours: which pause decides on turns" in section
    assert '| `batch_size` | whole number or `"auto"` | needed |' in section
    assert "idle_timeout_seconds" not in section  # it is in the table of every type
    assert "| `idle_timeout_seconds` | number above 0 | 20 | A connection" in PAGE
