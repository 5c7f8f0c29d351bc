"""Every fenced block of README.md and docs/ is run or checked: here, or by the test that this file names.

Console lines run where a worker on the embedded model, this machine and no network will do; of the others every command
of ours is read by the real command line, which knows its options. A kind of block that nobody looks at is a failure.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from moshi_server.cli import app
from moshi_server.cli.configs import shipped
from moshi_server.cli.demo import API_KEY, running_worker, samples
from moshi_server.config import check_config

from .blocks import BLOCKS, PAGES, ROOT, Block, lines_of, of, simple_commands

HERE = "tests/docs/test_blocks.py"
CHECKED = {
    ("*", "console"): f"{HERE}::test_each_command_exists",
    ("*", "toml"): f"{HERE}::test_each_configuration_is_valid",
    ("*", "json"): f"{HERE}::test_json_is_json",
    ("*", ""): f"{HERE}::test_what_has_no_language_is_no_command",
    ("README.md", "python"): f"{HERE}::test_each_program_runs",
    ("openai.md", "python"): f"{HERE}::test_each_program_runs",
    ("client.md", "python"): "tests/client/test_docs.py::test_each_example_runs",
    ("protocols.md", "python"): "tests/client/test_docs.py::test_each_example_runs",
    ("tutorial.md", "python"): "tests/client/test_docs.py::test_each_example_runs",
    ("tts.md", "python"): "tests/client/test_tts_docs.py::test_the_example_runs",
    ("dialogue.md", "python"): "tests/app/test_dialogue.py::test_the_example_on_the_page_runs",
    ("livekit.md", "python"): f"{HERE}::test_what_needs_a_package_that_is_not_here_is_at_least_python",
    ("operations.md", "sh"): "tests/ops/test_operations_page.py::test_a_shell_can_read_every_block",
    ("protocols.md", "sh"): "tests/client/test_docs.py::test_the_curl_line_posts_a_file",
    ("tts.md", "sh"): "tests/client/test_tts_docs.py::test_the_curl_line_works",
    ("protocols.md", "hex"): "tests/client/test_docs.py::test_the_bytes_are_those_of_the_message",
}
"""Page and language to the test that runs or checks such blocks; `*` is every page."""

KNOWN_PROGRAMS = {
    "apt-get", "caddy", "curl", "docker", "ffmpeg", "fortune", "git", "haproxy", "install", "kubectl", "ln", "nginx",
    "openssl", "printf", "promtool", "python3", "sed", "serve", "set", "sleep", "systemctl", "useradd",
}  # fmt: skip
PLACEHOLDER = re.compile(r"\b(HOST|KEY|FILE|IN|OUT)\b")
TOP = 'static_dir = "static"\nlog_dir = "logs"\ninstance_name = "page"\n'
COMMANDS = [(block, line) for block in of("console", "sh") for line in lines_of(block)]
SPOKEN = next(path for path in samples() if path.suffix == ".wav")


def name_of(value: object) -> str:
    return value if isinstance(value, str) else str(value)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_somebody_looks_at_every_block(block: Block) -> None:
    test = CHECKED.get((block.page, block.language)) or CHECKED.get(("*", block.language))
    assert test, f"{block}: no test runs or checks `{block.language}` here: write one, and name it in CHECKED"


@pytest.mark.parametrize(("place", "test"), CHECKED.items(), ids=name_of)
def test_the_tests_that_are_named_exist_and_read_the_page(place: tuple[str, str], test: str) -> None:
    file, _, name = test.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)
    assert place[0] in ("*", *(block.page for block in BLOCKS))
    assert place[0] == "*" or f'"{place[0]}"' in source


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=name_of)
def test_each_command_exists(block: Block, line: str) -> None:
    subprocess.run(["sh", "-n"], input=line, text=True, check=True, timeout=10)
    for program, *words in simple_commands(line):
        match Path(program).name or program:
            case "moshi-server":
                our_command(words)
            case "make":
                for target in (word for word in words if "=" not in word):
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
            case "pip":
                extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                assert set(re.findall(r"moshi-server\[(\w+)\]", line)) <= set(extras)
            case "python" | "cp":
                assert (ROOT / words[0]).is_file()
            case ".":
                assert words[0] in (".venv/bin/activate", "/etc/moshi-server/env")
            case name:
                assert name in KNOWN_PROGRAMS, name


def our_command(words: list[str]) -> None:
    """Let the command line read these words, without doing what they say."""
    group = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words == ["--help"]
        return
    name, *rest = (word.replace("$MOSHI_API_KEY", "KEY") for word in words)
    command = group.commands[name]
    with command.make_context(name, rest) as context:
        config = context.params.get("config")
    named = str(config or (context.params.get("name") if name == "configs" else None) or "")
    assert named.endswith(".toml") or named in ("", "FILE", *shipped()), f"there is no configuration {named}"


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    with running_worker("demo") as url:
        yield url.removeprefix("ws://")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(SPOKEN, tmp_path / "talk.wav")
    subprocess.run(["ffmpeg", "-v", "error", "-i", SPOKEN, tmp_path / "talk.m4a"], check=False)
    return tmp_path


def runs(line: str) -> bool:
    """Whether this line can be run to its end with a worker on the embedded model, no network and no sound card."""
    if PLACEHOLDER.search(line) or any(part in line for part in (":9090", "/etc/", "ops/", "/api/tts")):
        return False
    for program, *words in simple_commands(line):
        if program == "moshi-server":
            config = words[words.index("--config") + 1] if "--config" in words else "demo"
            if words[0] not in ("--help", "configs", "doctor", "token", "transcribe") or config != "demo":
                return False
        elif program not in ("curl", "ffmpeg"):
            return False
    return "talk.mp3" not in line


FIRST = "moshi-server transcribe talk.wav"
RUN = list(dict.fromkeys(line for _, line in COMMANDS if runs(line)))


def test_most_of_what_a_beginner_types_is_run() -> None:
    assert len(RUN) >= 10
    assert FIRST in RUN
    assert {simple_commands(line)[0][0] for line in RUN} == {"moshi-server", "ffmpeg", "curl"}


@pytest.mark.parametrize("line", RUN)
def test_each_command_that_can_be_run_is(line: str, demo: str, folder: Path) -> None:
    missing = [
        words[0] for words in simple_commands(line) if words[0] in ("curl", "ffmpeg") and not shutil.which(words[0])
    ]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "BETTER_AUTH_SECRET": "a-secret-for-the-examples-of-the-pages",
        "MOSHI_API_KEY": API_KEY,
        "NO_PROXY": "127.0.0.1",
    }
    if "moshi-server transcribe" in line and "--url" not in line and line != FIRST:
        # One model in a process of its own will do; the others take long to load.
        line = line.replace("transcribe ", f"transcribe --url ws://{demo} ")
    done = subprocess.run(
        ["sh", "-c", line.replace("127.0.0.1:8080", demo)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "talk." in line or "*.wav" in line:
        written = done.stdout + "".join(path.read_text() for path in folder.rglob("talk.[svt][rt]t"))
        heard = re.findall(r"[a-z]+", re.sub(r'"(?!text)\w+":', "", written.lower()))
        assert set(SPOKEN.with_suffix(".txt").read_text().split()) <= set(heard)
    else:
        assert done.stdout.strip() or any(path.stat().st_size for path in folder.glob("*.toml"))


@pytest.mark.parametrize(
    "block",
    [it for it in of("python") if CHECKED.get((it.page, "python"), "").endswith("::test_each_program_runs")],
    ids=str,
)
def test_each_program_runs(block: Block, demo: str, folder: Path) -> None:
    assert "127.0.0.1:8080" in block.text
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text.replace("127.0.0.1:8080", demo)],
        cwd=folder, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"[a-z]+", done.stdout) == SPOKEN.with_suffix(".txt").read_text().split()


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_what_needs_a_package_that_is_not_here_is_at_least_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_each_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "page.toml"
    file.write_text(block.text if "instance_name" in block.text else TOP + block.text)
    config, faults = check_config(file, {})
    assert faults == []
    assert config is not None
    assert config.modules


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    text = re.sub(r",? ?\.\.\.(?=\])", "", block.text.replace('b"..."', '"..."'))
    for value in [text] if block.text.startswith("[") or "\n" not in text.strip() else text.splitlines():
        json.loads(value)


@pytest.mark.parametrize("block", of(""), ids=str)
def test_what_has_no_language_is_no_command(block: Block) -> None:
    assert not re.search(r"^(\$ |moshi-server |curl |pip |make |python )", block.text, re.MULTILINE), (
        "call it `console`"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)", path.read_text(encoding="utf-8")
    ):
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor[1:] in slugs, f"{target}{anchor}"


def test_every_page_is_named_in_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert {path.name for path in PAGES[1:] if f"docs/{path.name}" not in readme} == set()
