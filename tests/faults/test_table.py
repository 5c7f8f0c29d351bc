"""The page's table of faults is the one that the tests give, and each row has its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .table import ELSEWHERE, MODULES, Fault, faults, table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_page_has_the_table() -> None:
    assert table() in PAGE, "python -m tests.faults.table prints it"


@pytest.mark.parametrize("one", faults(), ids=lambda one: one.name)
def test_each_row_has_its_test(one: Fault) -> None:
    file, _, name = one.test.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)
    assert one.said or one.within


def test_each_test_of_this_folder_that_injects_a_fault_is_a_row() -> None:
    named = {one.test.partition("::")[2] for one in faults()}
    for module in MODULES:
        source = (ROOT / "tests" / "faults" / f"{module}.py").read_text(encoding="utf-8")
        injecting = set(re.findall(r"^(?:async )?def (test_\w+)\([^)]*\boutage: Outage", source, re.MULTILINE))
        assert injecting
        assert injecting <= named


def test_no_fault_is_told_twice() -> None:
    names = [one.name for one in faults()]
    assert len(names) == len(set(names)) > len(ELSEWHERE)
