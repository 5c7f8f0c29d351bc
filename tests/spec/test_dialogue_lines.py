"""Which test holds which line of the protocol's section on dialogue."""

from __future__ import annotations

import pytest

from .test_server_lines import names_in

LINES: dict[str, tuple[str, ...]] = {
    "binary frames, the first byte is the kind": ("protocol/test_moshi.py::test_frames_are_these_bytes",),
    "the 9-byte handshake, the Opus header page, then audio and text as they come": (
        "app/test_dialogue.py::test_nine_bytes_then_the_opus_header_then_sound_and_text",
        "app/test_dialogue.py::test_a_real_conversation_over_the_wire_is_what_the_model_says",
        "engine/test_dialogue.py::test_the_first_step_waits_for_no_audio_and_brings_the_header",
    ),
    "3 control: start, end turn, pause, restart": (
        "app/test_dialogue.py::test_controls_over_the_wire",
        "engine/test_dialogue.py::test_pause_holds_the_dialogue_and_start_goes_on",
        "engine/test_dialogue.py::test_after_the_clients_turn_the_model_hears_silence_at_the_pace_of_time",
        "engine/test_dialogue.py::test_restart_begins_anew_with_the_same_settings_and_drops_what_waits",
    ),
    "4 metadata": ("app/test_dialogue.py::test_the_query_sets_the_conversation_and_metadata_tells",),
    "5 error": ("app/test_dialogue.py::test_garbage_gets_an_error_frame_and_frees_the_slot",),
    "unknown kinds are discarded": ("app/test_dialogue.py::test_unknown_kinds_and_frames_not_for_us_are_discarded",),
    "session limits (360 s in Lm) are settings": (
        "test_config.py::test_a_dialogue_draws_tokens_as_upstream_unless_it_is_told_otherwise",
        "app/test_dialogue.py::test_limits_and_refusals",
    ),
    "a malformed message: Error with the reason, close 4003, the slot is free at once": (
        "app/test_dialogue.py::test_garbage_gets_an_error_frame_and_frees_the_slot",
    ),
    "all decoded Opus frames of a message are used": (
        "app/test_dialogue.py::test_several_talk_at_once_and_each_hears_its_own",
    ),
    "a client that sends too fast, or does not read": (
        "app/test_dialogue.py::test_who_speaks_too_fast_is_slowed_down_and_loses_nothing",
        "app/test_dialogue.py::test_who_does_not_read_is_closed_and_disturbs_nobody",
    ),
    "parity with LMGen: two conversations in different slots that begin at different times": (
        "model/test_dialogue.py::test_two_conversations_say_what_the_package_says",
        "engine/test_build_dialogue.py::test_conversations_side_by_side_sound_as_the_package_does",
    ),
    "seeded by session, and independent of the batch": (
        "model/test_dialogue.py::test_a_conversation_drawn_with_its_seeds_is_the_same_alone_and_among_others",
    ),
    "Hibiki's and Moshi's shapes load": (
        "test_config.py::test_2_upstreams_shape_of_hibiki_is_a_dialogues_model",
        "gpu/test_shapes.py::test_a_dialogues_slot_is_what_the_modules_take",
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_held_by_tests_that_exist(line: str) -> None:
    for test in LINES[line]:
        file, name = test.split("::")
        assert name in names_in(file), f"{line}: {test} is gone"
