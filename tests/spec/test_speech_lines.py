"""Which test holds which line of the protocol's section on text to speech, and of its better-than-upstream table."""

from __future__ import annotations

import pytest

from .test_server_lines import names_in

LINES: dict[str, tuple[str, ...]] = {
    "Text, Voice, Eos in, MessagePack": (
        "protocol/test_tts.py::test_messages_in",
        "protocol/test_tts.py::test_a_voice",
        "protocol/test_tts.py::test_any_bytes_are_a_message_or_refused",
    ),
    "out: upstream's bytes for the same events (maps, field order, float widths)": (
        "protocol/test_tts.py::test_messages_out_are_upstreams_byte_for_byte",
    ),
    "words may come split over messages": (
        "speech/test_text.py::test_the_end_of_a_message_is_the_end_of_a_word",
        "speech/test_text.py::test_text_cut_anywhere_gives_the_words_of_the_whole",
        "app/test_speech.py::test_text_frames_and_pieces",
    ),
    "Ready first; PcmMessagePack": ("app/test_speech.py::test_ready_then_sound_and_words_then_a_normal_close",),
    "OggOpusMessagePack": ("app/test_speech.py::test_opus_in_messages",),
    "Pcm": ("app/test_speech.py::test_samples_without_messages",),
    "OggOpus is the default, decodes to the right length, no gap at page borders": (
        "app/test_speech.py::test_opus_is_the_default_and_has_no_gap_and_the_right_length",
    ),
    "the socket closes after the last audio": (
        "app/test_speech.py::test_ready_then_sound_and_words_then_a_normal_close",
        "app/test_speech.py::test_a_slow_reader_gets_all_of_it",
        "app/test_speech_engine.py::test_a_stream_from_text_to_the_close",
    ),
    "text is normalized as upstream; <break time/> is a pause of at most 10 s": (
        "speech/test_text.py::test_words_and_pauses",
        "speech/test_text.py::test_pauses_in_frames_and_in_words",
    ),
    "Py: POST path, a streaming wav": (
        "app/test_synthesis.py::test_a_wav_that_streams",
        "app/test_synthesis.py::test_sound_comes_before_all_of_it_is_made",
    ),
    "Tts: POST path, a wav or JSON {wav, transcript}": (
        "app/test_synthesis.py::test_all_of_it_with_its_words",
        "app/test_speech_engine.py::test_the_single_stream_module",
    ),
    "Tts: GET {path}_streaming, text frames are words, a binary \\0 ends the text": (
        "app/test_synthesis.py::test_the_streaming_path_of_a_single_stream_module",
    ),
    "a voice file must stay inside voice_dir": (
        "speech/test_voices.py::test_a_file_must_stay_inside_the_folder",
        "app/test_synthesis.py::test_a_voice_file_stays_in_its_folder",
    ),
    "better: a malformed message: Error with the reason, close 4003": (
        "app/test_speech.py::test_bad_input_ends_this_stream_with_a_reason_and_no_other",
        "app/test_speech_engine.py::test_bad_input_gets_a_reason_and_nobody_else_is_disturbed",
    ),
    "better: a full server: Error + close 4000; POST waits in a queue up to a limit, then 503 with Retry-After": (
        "app/test_speech.py::test_all_slots_taken",
        "app/test_synthesis.py::test_a_full_module_makes_posts_wait_and_then_refuses",
    ),
    "better: an unknown voice: Error naming it and near matches, close 4005; GET /api/voices lists them": (
        "app/test_speech.py::test_an_unknown_voice_is_named_with_near_ones",
        "app/test_speech.py::test_what_is_served_and_which_voices_there_are",
    ),
    "better: a TTS client that answers pings holds its slot for ever: idle limit, close 4006": (
        "app/test_speech.py::test_a_silent_client_loses_its_slot_but_not_while_it_is_spoken_to",
    ),
    "a client that does not read is closed": (
        "app/test_speech.py::test_a_client_that_stops_reading_is_closed_and_disturbs_nobody",
        "app/test_synthesis.py::test_a_client_that_stops_reading_is_cut_off",
    ),
    "1 MB of text in one message, emoji, control characters": (
        "app/test_speech_engine.py::test_a_megabyte_in_one_message_holds_up_nobody",
        "speech/test_text.py::test_a_queue_makes_words_only_as_they_are_pulled",
    ),
    "py_* metrics": (
        "app/test_speech.py::test_metrics_of_speech",
        "app/test_speech_engine.py::test_metrics_of_a_stream",
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_held_by_tests_that_exist(line: str) -> None:
    for test in LINES[line]:
        file, name = test.split("::")
        assert name in names_in(file), f"{line}: {test} is gone"
