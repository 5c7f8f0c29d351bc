"""The faults that are injected, as one table: `python -m tests.faults.table` prints it for docs/operations.md.

A test of this folder names its fault with `@fault`, and measures with the fixture `outage` how long it takes until all
is normal again. `pytest tests/faults --record-faults` keeps those times in `measured.json`, which the table shows.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
MEASURED = HERE / "measured.json"
MODULES = ("test_model_faults", "test_client_faults", "test_network_faults", "test_machine_faults")
HEAD = "| fault | what is lost | who notices | normal again after | test |\n| --- | --- | --- | --- | --- |"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Fault:
    """One row.

    Attributes:
        name: what is done to whom.
        lost: of what was acknowledged, nothing ever is; so this says what else.
        noticed: who, and by what.
        test: file and function.
        within: seconds until all is normal again, at most; the test fails beyond, so it is generous.
        said: instead of a measured time.
    """

    name: str
    lost: str
    noticed: str
    test: str
    within: float = 0.0
    said: str = ""

    def row(self, measured: dict[str, float]) -> str:
        after = self.said or f"{measured.get(self.name, 0.0):.2g} s"
        return f"| {self.name} | {self.lost} | {self.noticed} | {after} | `{self.test}` |"


def fault(name: str, *, lost: str, noticed: str, within: float, said: str = "") -> Callable[[F], F]:
    """Say which fault a test injects."""

    def mark(test: F) -> F:
        where = f"tests/faults/{test.__module__.rpartition('.')[2]}.py::{test.__name__}"
        test.fault = Fault(name, lost, noticed, where, within, said)  # type: ignore[attr-defined]
        return test

    return mark


ELSEWHERE = (
    Fault(
        "A client does not read",
        "what it was to be told, and its stream",
        "the worker, after `send_timeout_seconds`: close code 4006",
        "tests/app/test_stream.py::test_a_client_that_never_reads_is_closed",
        said="at once: nobody waits for it",
    ),
    Fault(
        "A body trickles",
        "the request",
        "the worker, after `upload_timeout_seconds`: 408",
        "tests/app/test_limits.py::test_a_body_that_trickles_or_is_too_large_has_its_status_and_its_count",
        said="at once",
    ),
    Fault(
        "Broken frames, garbage, NaN",
        "that client's stream",
        "the client: close codes 1002, 4003, and an `Error` message",
        "tests/app/test_stream.py::test_a_bad_message_gets_a_reason_and_frees_the_slot",
        said="at once",
    ),
    Fault(
        "The event loop stands still",
        "nothing; nobody is taken for dead",
        "those who wait",
        "tests/app/test_stream.py::test_an_event_loop_that_stood_still_is_no_fault_of_the_clients",
        said="when it goes on",
    ),
    Fault(
        "The log's disk is full, then not",
        "log lines, which are counted",
        "the console: one warning a minute",
        "tests/test_log.py::test_6_a_full_disk_is_a_warning_while_running_and_lines_come_again",
        said="when there is room: at the next line",
    ),
    Fault(
        "SIGTERM",
        "nothing, with a client that reconnects",
        "clients: notice, then 1001; `/ready` 503",
        "tests/client/test_reconnecting.py::test_a_server_that_goes_away_hands_over",
        said="at once, at another worker",
    ),
    Fault(
        "SIGKILL, and the worker is started again",
        "nothing, with a client that reconnects; else its stream",
        "clients: the connection breaks",
        "tests/client/test_surviving.py::test_a_worker_is_killed_and_every_word_arrives_once",
        said="half a second, at another worker",
    ),
    Fault(
        "Audio that makes every worker fail",
        "that stream, after five losses in a row",
        "the client: the last reason",
        "tests/client/test_reconnecting.py::test_audio_that_ends_every_server_ends_the_stream",
        said="whoever starts the workers decides",
    ),
)


def faults() -> list[Fault]:
    """All rows: those of this folder in their order, then those that other tests inject."""
    found = []
    for name in MODULES:
        module = importlib.import_module(f"{__package__}.{name}")
        found += [test.fault for test in vars(module).values() if hasattr(test, "fault")]
    return [*found, *ELSEWHERE]


def table() -> str:
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    return "\n".join([HEAD, *(one.row(measured) for one in faults())])


if __name__ == "__main__":
    print(table())
