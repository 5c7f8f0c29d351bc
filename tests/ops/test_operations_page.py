"""The page for operators: its commands exist, its files lie there, and the messages it explains are said."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch

from moshi_server.app.closing import CloseCode
from moshi_server.auth import CODES
from moshi_server.metrics import Metrics, SystemReading
from moshi_server.model.weights import overflow_error

from ..cli.test_commands import ROOT, moshi_server

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_shell_can_read_every_block(block: str) -> None:
    subprocess.run(["sh", "-n"], input=block, text=True, check=True, timeout=10)


@pytest.mark.parametrize("command", ["worker", "validate", "plan", "token", "transcribe", "configs"])
def test_every_option_of_our_commands_exists(command: str, tmp_path: Path) -> None:
    help_text = moshi_server(command, "--help", cwd=tmp_path, COLUMNS="200").stdout
    lines = [line for line in COMMANDS if f"moshi-server {command} " in f"{line} "]
    assert lines
    for line in lines:
        words = shlex.split(line[line.index(f"moshi-server {command}") :], comments=True)
        for option in (word for word in words if word.startswith("--")):
            assert option in help_text, f"{command} has no {option}"


def test_every_file_it_names_is_here() -> None:
    named = set(re.findall(r"\bops/[\w.@-]+", PAGE)) | {
        f"docs/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGE)
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert {f"ops/{path.name}" for path in (ROOT / "ops").iterdir()} - named == set()


def test_the_configuration_is_made_as_the_page_says(tmp_path: Path) -> None:
    (line,) = (line for line in COMMANDS if line.startswith("sed "))
    (name,) = re.findall(r"moshi-server configs (\S+) >", PAGE)
    file = tmp_path / "config.toml"
    file.write_text(moshi_server("configs", name, cwd=tmp_path).stdout)
    subprocess.run([*shlex.split(line)[:-1], str(file)], check=True, timeout=10)
    made = tomllib.loads(file.read_text())
    assert made["log_dir"] == "/var/log/moshi-server"
    assert made["authorized_ids"] == []
    assert moshi_server("validate", "-q", "config.toml", cwd=tmp_path).returncode == 0


SAID = (
    "not even one stream fits",
    "batch_size lowered from",
    "the warmup failed",
    "no free channels",
    "no API key and no secret are configured",
    "is already in use",
    "lines are lost",
)


@pytest.mark.parametrize("message", SAID)
def test_the_messages_of_the_table_are_those_of_the_program(message: str) -> None:
    assert message in PAGE
    assert message in SOURCES


def test_the_row_about_f16_quotes_what_is_said() -> None:
    assert "| `hold values that f16 cannot` |" in PAGE
    error = overflow_error("model.safetensors", ["layers.0.weight"], torch.float16)
    assert "hold values that f16 cannot" in error.message
    assert "65504" in error.message


def test_every_code_of_a_refusal_is_explained() -> None:
    for code in CODES:
        assert f"| 401 `{code}` |" in PAGE
    for number in re.findall(r"close code (\d+)", PAGE):
        assert int(number) in set(CloseCode)


def test_8_the_page_lists_every_metric_and_no_other() -> None:
    metrics = Metrics(lambda: SystemReading(1, 1, 2, 0))
    metrics.watch_slots(list)
    metrics.watch_ready(lambda: True)
    exported = set(re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE))
    table = PAGE.split("| metric | what |")[1].split("\n\n")[0]
    listed = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([a-z_]+)[`{]", row.split("|")[1] if "|" in row else "")
    }
    assert listed == {name for name in exported if not name.startswith("process_")}
