"""Which test holds which line of the server's specification: the sections on environment, logs, warm-up and metrics.

The specification says what an operator can observe; this table says who would notice if it were no longer so.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

LINES: dict[str, tuple[str, ...]] = {
    "3 .env is loaded before anything else; variables already set win": (
        "cli/test_commands.py::test_3_dotenv_is_loaded_before_the_configuration_and_what_is_set_wins",
    ),
    "3 .env.example is shipped": ("cli/test_commands.py::test_3_the_example_of_dotenv_names_every_variable",),
    "3 MOSHI_API_KEY: comma-separated, added to authorized_ids": (
        "app/test_worker.py::test_3_keys_come_from_the_file_and_the_environment_and_no_log_has_them",
    ),
    "3 BETTER_AUTH_SECRET: HS256 secret": (
        "app/test_worker.py::test_3_keys_come_from_the_file_and_the_environment_and_no_log_has_them",
        "cli/test_token.py::test_4_the_secret_may_come_from_dotenv",
        "app/test_better_auth.py::test_the_cookies_of_a_sign_up_open_a_stream",
    ),
    "3 MOSHI_MODEL_PARAMS_BILLIONS, MOSHI_PER_BATCH_ITEM_MB, MOSHI_VRAM_RESERVED_MB, with their defaults": (
        "cli/test_commands.py::test_3_validate_shows_where_each_value_comes_from",
        "gpu/test_plan.py::test_the_environment_comes_before_all",
        "gpu/test_plan.py::test_the_documented_defaults",
    ),
    "3 HF_TOKEN, HF_HOME, HF_HUB_OFFLINE as huggingface_hub reads them": (
        "cli/test_commands.py::test_3_validate_shows_where_each_value_comes_from",
        "test_hub.py::test_a_file_is_downloaded_then_served_from_the_cache_with_no_network",
        "test_hub.py::test_offline_and_not_cached_says_so",
        "test_hub.py::test_a_gated_repository_asks_for_a_token",
    ),
    "3 values show their origin, secrets masked": (
        "cli/test_commands.py::test_3_validate_shows_where_each_value_comes_from",
        "cli/test_commands.py::test_3_validate_masks_every_secret",
        "cli/test_commands.py::test_3_validate_refuses_a_variable_that_makes_no_sense",
    ),
    "6 each line: time, level, target, place, message, pairs": (
        "test_log.py::test_6_a_line_has_time_level_target_place_message_and_pairs",
        "test_log.py::test_6_the_standard_library_logs_the_same_line",
    ),
    "6 colour only on a terminal, the file without": (
        "test_log.py::test_6_colour_only_on_a_terminal_and_never_in_the_file",
    ),
    "6 log_dir is created, the file is log.{instance_name}": (
        "test_log.py::test_6_a_line_has_time_level_target_place_message_and_pairs",
    ),
    "6 rotated each day": (
        "test_log.py::test_6_the_file_moves_on_each_day",
        "test_log.py::test_6_midnight_passes_while_running",
    ),
    "6 rotated over --log-max-size-mb, to .1, .2; only --log-max-files kept": (
        "test_log.py::test_6_the_file_moves_on_before_it_is_too_large_and_only_so_many_are_kept",
        "cli/test_worker.py::test_6_the_size_and_number_of_files_of_the_command_line_count",
    ),
    "6 writing never blocks the model loop": (
        "test_log.py::test_6_a_stuck_disk_never_holds_up_a_caller_and_the_loss_is_counted",
    ),
    "6 a full disk or an unwritable folder is an error at start": (
        "test_log.py::test_6_a_full_disk_is_an_error_at_start",
        "test_log.py::test_6_a_folder_that_cannot_be_written_is_an_error_at_start",
        "cli/test_worker.py::test_6_a_full_disk_at_start_is_one_line",
    ),
    "6 and a warning while running, after which the server goes on": (
        "cli/test_worker.py::test_6_a_file_that_can_not_grow_is_a_warning_and_the_server_goes_on",
        "test_log.py::test_6_a_full_disk_is_a_warning_while_running_and_lines_come_again",
        "test_log.py::test_6_a_folder_that_refuses_to_move_the_file_on_costs_no_line",
    ),
    "6 --silent silences the console whole": ("cli/test_worker.py::test_6_silent_says_nothing_on_the_console",),
    "6 each session has an id in all its lines": (
        "cli/test_worker.py::test_6_each_line_of_a_session_has_its_id",
        "test_log.py::test_6_bound_context_is_in_every_line",
        "spec/test_engine_lines.py::test_6_what_the_model_thread_logs_names_its_module_and_session",
    ),
    "6 upstream noise comes in the same format": (
        "test_log.py::test_6_other_loggers_come_in_the_same_format",
        "test_log.py::test_6_warnings_are_logged",
        "test_log.py::test_6_what_python_itself_complains_of_comes_in_the_same_format",
    ),
    "6 --log-json": (
        "test_log.py::test_6_log_json_is_one_object_a_line_with_every_part",
        "cli/test_worker.py::test_6_log_json_makes_every_line_an_object",
    ),
    "7 the real step runs before the server says it is ready": (
        "app/test_http.py::test_7_health_is_red_while_the_model_warms_up",
    ),
    "7 start, end and duration are logged, and counted": (
        "cli/test_worker.py::test_7_warmup_is_logged_with_its_duration_before_the_module_is_ready",
    ),
    "7 failures are errors that say what to do, and are counted": (
        "cli/test_worker.py::test_7_a_warmup_that_fails_ends_the_start_and_says_what_to_do",
        "spec/test_engine_lines.py::test_7_a_warmup_that_fails_is_counted",
    ),
    "7 skips are logged and counted": ("cli/test_worker.py::test_7_a_warmup_that_is_off_is_logged_and_counted",),
    "8 GET /api/build_info, /api/status: no secrets": (
        "app/test_http.py::test_8_build_info_and_status_tell_no_secrets",
    ),
    "8 GET /api/modules_info": ("app/test_http.py::test_8_modules_info_is_upstreams",),
    "8 GET /api/health, 503 while it cannot serve": (
        "app/test_http.py::test_7_health_is_red_while_the_model_warms_up",
        "app/test_worker.py::test_8_a_signal_lets_running_streams_finish",
    ),
    "8 GET /metrics": (
        "app/test_http.py::test_8_metrics_of_a_stream_are_scraped",
        "ops/test_prometheus.py::test_8_a_real_prometheus_scrapes_a_worker_and_answers_for_each_metric",
        "ops/test_prometheus.py::test_8_promtool_finds_nothing_to_say_of_the_metrics",
    ),
    "8 everything else from static_dir, index.html for a folder": (
        "app/test_http.py::test_8_static_files_and_the_index_of_a_folder",
    ),
    "8 SIGTERM: 503, no new session, running ones finish, then 1001": (
        "app/test_worker.py::test_8_a_signal_lets_running_streams_finish",
        "app/test_worker.py::test_8_streams_that_do_not_finish_are_closed_with_1001_after_the_grace_time",
    ),
    "8 names, labels and buckets are upstream's": (
        "test_metrics.py::test_8_counters_and_gauges_have_upstreams_names_types_and_labels",
        "test_metrics.py::test_8_histograms_have_upstreams_buckets",
    ),
    "8 auth_error_total, ws_close_total, connection_error_total": (
        "test_metrics.py::test_8_errors_are_counted_by_their_labels",
    ),
    "8 system_*": ("test_metrics.py::test_8_gpu_gauges_appear_with_a_reading",),
    "8 a dashboard shows every metric": (
        "ops/test_prometheus.py::test_8_dashboard_and_alerts_name_only_metrics_that_exist_and_every_one_specified",
    ),
}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_held_by_tests_that_exist(line: str) -> None:
    for test in LINES[line]:
        file, name = test.split("::")
        assert name in names_in(file), f"{line}: {test} is gone"
    section = line.split()[0]
    assert any(re.match(rf"test_{section}_", test.split("::")[1]) for test in LINES[line])


def test_each_test_of_these_sections_is_in_the_table() -> None:
    """Whoever adds a test by the convention is told to say which line it holds, for the sections' main files."""
    named = {test for tests in LINES.values() for test in tests}
    for file in ("cli/test_worker.py", "app/test_worker.py", "app/test_http.py"):
        numbered = {f"{file}::{name}" for name in names_in(file) if re.match(r"test_[78]_", name)}
        assert numbered - named == set()
