"""Which test holds which line of the protocol's section on turns."""

from __future__ import annotations

import pytest

from .test_server_lines import names_in

LINES: dict[str, tuple[str, ...]] = {
    "{type: Turn, kind: start or end, time}, only if asked with ?turns=1": (
        "demo/test_turns.py::test_turn_events_are_sent_only_if_asked_with_times_in_the_clients_audio",
    ),
    "hysteresis": ("speech/test_turns.py::test_what_wavers_between_the_thresholds_changes_nothing",),
    "they alternate, and time never goes back": ("speech/test_turns.py::test_they_alternate_and_time_never_goes_back",),
    "thresholds as settings": (
        "demo/test_turns.py::test_hysteresis_and_thresholds_are_settings_a_shorter_pause_ends_a_turn_sooner",
    ),
    "none without extra heads": ("speech/test_turns.py::test_without_heads_there_are_no_turns",),
}


@pytest.mark.parametrize("line", LINES)
def test_every_line_has_its_tests(line: str) -> None:
    for place in LINES[line]:
        file, _, name = place.partition("::")
        assert name in names_in(file), place
