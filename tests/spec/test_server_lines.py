"""Which test holds which line of the server's specification.

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
    "1 worker --config, with its options and their defaults": (
        "cli/test_commands.py::test_1_worker_has_the_options_of_upstream_and_ours",
        "cli/test_worker.py::test_1_a_worker_starts_serves_and_ends_in_order",
        "cli/test_worker.py::test_1_a_shipped_configuration_is_found_by_its_name",
        "test_log.py::test_6_the_command_line_offers_every_level",
    ),
    "1 validate FILE...: non-zero exit, and file, key and reason of each error, without loading weights": (
        "cli/test_commands.py::test_1_validate_reports_file_key_and_reason_of_each_fault",
        "cli/test_commands.py::test_1_validate_accepts_published_files",
        "cli/test_commands.py::test_1_validate_names_a_local_file_that_is_not_there",
        "cli/test_commands.py::test_a_light_command_loads_nothing_heavy",
    ),
    "1 configs [NAME]": (
        "cli/test_commands.py::test_1_configs_lists_all_that_are_shipped",
        "cli/test_commands.py::test_1_configs_prints_one_exactly",
        "cli/test_commands.py::test_1_configs_of_an_unknown_name_says_what_was_meant",
    ),
    "1 an error at start is one clear line and exit 1, never a traceback": (
        "cli/test_commands.py::test_1_a_wrong_key_is_one_line",
        "cli/test_commands.py::test_1_a_log_folder_that_cannot_be_made_is_one_line",
        "cli/test_worker.py::test_1_a_bug_is_one_line_and_its_traceback_is_in_the_log",
    ),
    "1 the port already taken": ("cli/test_worker.py::test_1_a_taken_port_is_one_line_on_the_console_and_in_the_log",),
    "1 a missing file": (
        "cli/test_commands.py::test_1_a_missing_configuration_is_one_line",
        "engine/test_build.py::test_what_cannot_be_loaded_names_the_module_and_the_file",
    ),
    "1 an unreadable checkpoint, a shape mismatch": (
        "spec/test_start_lines.py::test_1_a_checkpoint_that_cannot_be_used_is_one_line",
        "engine/test_build.py::test_a_checkpoint_of_another_shape_lists_what_does_not_fit",
    ),
    "2 the published files load unchanged": (
        "test_config.py::test_2_a_published_file_loads_unchanged",
        "test_config.py::test_the_published_files_are_all_here",
        "test_config.py::test_values_of_the_1b_model",
        "test_config.py::test_the_fork_file_has_no_keys_of_its_own_but_a_number_type",
    ),
    "2 top level: static_dir, log_dir, instance_name, authorized_ids, [warmup], [modules.NAME]": (
        "test_config.py::test_2_what_a_file_may_leave_out",
    ),
    "2 $VAR in a string is replaced from the environment": (
        "test_config.py::test_2_variables_come_from_the_environment",
        "test_config.py::test_a_variable_that_is_not_set_is_named",
        "test_config.py::test_a_lone_dollar_stays",
    ),
    "2 hf:// is downloaded, with a progress bar, resumed, cached, offline when cached": (
        "test_hub.py::test_a_file_is_downloaded_then_served_from_the_cache_with_no_network",
        "test_hub.py::test_a_download_that_broke_off_is_resumed_where_it_stopped",
        "spec/test_start_lines.py::test_2_a_download_shows_its_progress_on_a_terminal",
    ),
    "2 hf-snapshot:// downloads what matches": (
        "test_hub.py::test_2_a_snapshot_downloads_only_what_matches",
        "test_hub.py::test_a_snapshot_that_matches_nothing_is_an_error",
    ),
    "2 type is one of eight": (
        "test_config.py::test_2_every_module_type_is_read",
        "engine/test_build.py::test_a_module_that_is_not_served_yet_is_named",
    ),
    "2 modules share weights that are the same file": (
        "engine/test_build.py::test_2_modules_that_name_the_same_files_share_their_weights",
    ),
    "2 [modules.NAME.model]: vocabularies, transformer, depformer, extra_heads, conditioners": (
        "test_config.py::test_2_conditioners_cross_attention_and_depformer",
        "test_config.py::test_values_of_the_1b_model",
    ),
    "2 the gated width follows upstream, or the checkpoint's own shapes": (
        "model/test_weights.py::test_2_the_gated_width_may_be_that_of_either_rule",
        "model/test_transformer.py::test_gated_width_rule",
    ),
    "2 an unknown key or a wrong type is named": (
        "test_config.py::test_2_a_wrong_line_is_named_with_what_was_meant",
        "test_config.py::test_a_wrong_value_is_named",
        "test_config.py::test_every_fault_is_found_at_once",
    ),
    "2 a key that upstream ignores is accepted": (
        "spec/test_start_lines.py::test_2_a_key_that_upstream_ignores_is_accepted",
    ),
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
        "app/test_better_auth.py::test_4_the_cookies_of_a_sign_up_open_a_stream",
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
    "4 header, then auth_id (key or JWT), then Bearer, then cookies": (
        "test_auth.py::test_4_the_first_credential_present_decides",
        "test_auth.py::test_a_key_is_taken_from_the_header_or_the_query",
        "test_auth.py::test_a_token_is_taken_from_the_query_the_bearer_header_and_the_cookies",
    ),
    "4 401 before the upgrade, four fields, counted": (
        "app/test_stream.py::test_401_before_the_upgrade",
        "test_auth.py::test_the_refusal_has_exactly_four_fields",
        "spec/test_start_lines.py::test_4_a_refusal_is_a_warning_and_no_error",
    ),
    "4 codes: invalid_key, expired_token, missing_credentials, jwt_validation_failed": (
        "test_auth.py::test_4_a_wrong_key_is_refused",
        "test_auth.py::test_an_expired_session_is_refused",
        "test_auth.py::test_what_is_empty_or_of_another_scheme_is_not_present",
        "test_auth.py::test_a_token_that_is_not_better_auths_is_refused",
    ),
    "4 keys are compared in constant time": (
        "spec/test_start_lines.py::test_4_every_key_is_compared_whichever_is_right",
    ),
    "4 keys are never logged whole: first 6 and last 4, or *hidden*": (
        "test_auth.py::test_4_masking",
        "test_auth.py::test_notes_mask_keys_and_warn_of_a_short_secret",
        "app/test_stream.py::test_the_key_is_in_no_log_line",
    ),
    "4 HS256 only, with session and user": (
        "test_auth.py::test_a_token_that_is_not_better_auths_is_refused",
        "cli/test_token.py::test_4_a_minted_token_has_better_auths_claims",
    ),
    "4 refused once session.expiresAt or exp has passed": (
        "test_auth.py::test_an_expired_session_is_refused",
        "test_auth.py::test_exp_may_be_absent_and_the_session_still_ends",
        "cli/test_token.py::test_4_a_minted_token_is_refused_once_its_time_has_passed",
    ),
    "4 the cookies of a real Better Auth server, all forms": (
        "app/test_better_auth.py::test_4_the_cookies_of_a_sign_up_open_a_stream",
        "app/test_better_auth.py::test_the_cookies_of_a_secure_server",
        "app/test_better_auth.py::test_a_session_too_large_for_one_cookie",
        "app/test_better_auth.py::test_forgeries_of_a_real_token_are_refused",
        "test_auth.py::test_a_cookie_cut_in_chunks_is_put_together",
    ),
    "4 nothing random gets in or crashes": (
        "test_auth.py::test_4_no_random_header_cookie_or_query_gets_in_or_crashes",
        "test_auth.py::test_signed_nonsense_never_crashes",
    ),
    "4 with no key and no secret all is refused, and the log says how to set one": (
        "app/test_worker.py::test_4_with_no_key_and_no_secret_a_warning_says_how_to_set_one",
        "test_auth.py::test_with_nothing_configured_everything_is_refused_and_the_notes_say_how",
    ),
    "4 /metrics, health and static files are open": (
        "spec/test_start_lines.py::test_4_metrics_health_and_files_are_open_and_streams_are_not",
    ),
    "4 each module has auth": (
        "app/test_stream.py::test_4_a_module_may_be_open",
        "test_config.py::test_2_every_module_type_is_read",
    ),
    "5 the GPU is read with NVML": (
        "gpu/test_probe.py::test_5_one_gpu_whole",
        "gpu/test_probe.py::test_two_gpus_are_told_apart_and_read_together",
    ),
    "5 without NVML or a GPU it says so once and uses the configured values": (
        "gpu/test_probe.py::test_5_without_a_library_one_line_says_so",
        "gpu/test_probe.py::test_a_library_without_a_gpu",
        "gpu/test_probe.py::test_a_note_is_logged_once",
        "gpu/test_plan.py::test_without_known_memory_the_configured_values_stand",
    ),
    "5 available = free - reserved - weights; max_batch_size = available / per_item": (
        "gpu/test_plan.py::test_5_the_most_is_what_is_left_divided_by_a_stream",
    ),
    "5 terms come from the environment, exact arithmetic, the documented defaults, in this order": (
        "gpu/test_plan.py::test_5_the_environment_may_say_one_thing_only",
        "gpu/test_plan.py::test_the_documented_defaults",
        "gpu/test_sizing.py::test_a_header_wins_over_the_configuration",
    ),
    "5 arithmetic is exact: weights and state of a slot": (
        "gpu/test_shapes.py::test_5_weights_are_what_the_modules_take",
        "gpu/test_shapes.py::test_a_slots_state_is_what_the_modules_take",
        "gpu/test_shapes.py::test_memory_really_taken_on_this_machine_is_as_foretold",
    ),
    "5 a batch_size that exceeds it is lowered with every term and its origin; one that fits is left alone": (
        "gpu/test_plan.py::test_5_one_that_does_not_is_lowered_with_every_term_and_its_origin",
        "gpu/test_plan.py::test_a_batch_size_that_fits_is_left_alone",
    ),
    "5 batch_size = auto takes the maximum": (
        "gpu/test_sizing.py::test_5_auto_is_what_fits_or_a_fixed_number_without_a_gpu",
        "gpu/test_plan.py::test_auto_takes_what_the_configured_ones_leave",
        "engine/test_build.py::test_auto_takes_a_number_of_slots",
    ),
    "5 several modules on one GPU are planned together": (
        "gpu/test_plan.py::test_5_modules_are_lowered_in_proportion",
        "gpu/test_plan.py::test_modules_with_the_same_file_count_it_once",
    ),
    "5 halve and retry when memory is really taken": (
        "engine/test_build.py::test_5_memory_that_cannot_be_taken_halves_the_slots_until_it_can",
        "gpu/test_plan.py::test_memory_that_cannot_be_taken_is_halved_until_one",
    ),
    "5 if not even 1 fits, say what is needed and what there is": (
        "gpu/test_plan.py::test_5_not_even_one_says_what_is_needed_and_what_there_is",
        "cli/test_plan.py::test_what_does_not_fit_is_one_line_and_status_1",
    ),
    "5 dtype_override, else by compute capability": (
        "engine/test_number_types.py::test_5_without_an_override_the_policy_decides",
        "gpu/test_dtypes.py::test_the_type_follows_the_compute_capability",
        "gpu/test_dtypes.py::test_dtype_override_wins_everywhere",
    ),
    "5 f16 keeps norms, softmax, RoPE and logits in f32": (
        "model/test_number_types.py::test_5_half_types_give_the_tokens_of_f32_over_400_steps",
        "model/test_number_types.py::test_5_attention_scores_do_not_overflow_f16",
        "model/test_number_types.py::test_5_norms_of_large_values_are_taken_in_f32",
        "model/test_lm.py::test_logits_are_f32_in_every_type",
    ),
    "5 on a CPU what measures fastest": (
        "gpu/test_dtypes.py::test_5_a_cpu_takes_bf16_only_where_it_has_the_instructions",
    ),
    "5 a checkpoint in another type is converted at load": (
        "engine/test_number_types.py::test_5_dtype_override_converts_at_load_and_the_module_runs",
    ),
    "5 a value that overflows f16 names the tensor": (
        "engine/test_number_types.py::test_5_a_value_beyond_f16_names_the_module_and_the_tensor",
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
        "app/test_life.py::test_8_what_outlasts_the_grace_time_is_closed_with_1001_in_every_protocol",
        "app/test_life.py::test_8_a_recording_posted_before_the_end_is_answered_and_one_after_it_is_503",
    ),
    "1 worker --drain-seconds, --exit-on-failure": (
        "cli/test_worker.py::test_1_drain_seconds_of_the_command_line_count",
        "cli/test_worker.py::test_1_exit_on_failure_of_the_command_line_counts_and_the_log_is_whole",
    ),
    "8 running streams are told of SIGTERM if they asked": (
        "app/test_life.py::test_8_a_stream_that_asked_for_notices_is_told_that_the_server_ends_and_goes_on",
        "app/test_life.py::test_8_text_to_speech_is_told_in_its_message_formats_only",
        "app/test_life.py::test_8_a_dialogue_is_told_by_metadata",
        "app/test_life.py::test_8_a_rooms_producer_and_listeners_are_told_if_they_asked",
        "app/test_life.py::test_8_a_realtime_session_is_told_by_an_event",
    ),
    "8 a model that failed for good, or hangs, ends the worker if asked": (
        "app/test_worker.py::test_8_a_model_that_fails_for_good_ends_the_worker_with_a_status_of_its_own",
        "app/test_worker.py::test_8_a_step_that_hangs_is_noticed_and_ends_the_worker",
        "app/test_worker.py::test_8_without_being_asked_a_failed_worker_stays_and_says_so",
    ),
    "8 /live and /ready": (
        "app/test_life.py::test_8_ready_says_why_not_while_it_warms_up",
        "app/test_life.py::test_8_ready_counts_slots_and_says_full",
        "app/test_life.py::test_8_ready_says_draining_and_live_does_not_mind",
        "app/test_life.py::test_8_live_is_red_once_the_model_has_failed_for_good",
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
    for file in ("cli/test_worker.py", "app/test_worker.py", "app/test_http.py", "app/test_life.py"):
        numbered = {f"{file}::{name}" for name in names_in(file) if re.match(r"test_[178]_", name)}
        assert numbered - named == set()
