"""The fenced blocks of README.md and docs/, and the commands in them; it runs nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    page = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(path.name, page.count("\n", 0, match.start()) + 1, match[1], match[2])


BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def lines_of(block: Block) -> list[str]:
    """The commands of a `console` or `sh` block, one a line, without their prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        assert all(line.startswith("$ ") for line in lines), f"{block}: a line without $"
        lines = [line[2:] for line in lines]
    return [line for line in lines if line.strip()]


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a pipeline; where output goes is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    into_file = False
    for word in lexer:
        if set(word) <= set("|;&"):
            commands.append([])
        elif word in (">", ">>", "<"):
            into_file = True
        elif into_file:
            into_file = False
        else:
            commands[-1].append(word)
    return [command for command in commands if command]
