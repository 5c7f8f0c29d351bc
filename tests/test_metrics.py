"""What a scrape says: upstream's names, types, labels and buckets, character for character."""

from __future__ import annotations

import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moshi_server.metrics import Metrics, SlotReading, SystemReading

UPSTREAM = {
    "asr_connect": ("untyped", {"handler": "all"}),
    "asr_open_channels": ("gauge", {"handler": "all"}),
    "py_connect": ("untyped", {"handler": "all"}),
    "py_total_steps": ("untyped", {"handler": "all"}),
    "py_active_steps": ("untyped", {"handler": "all"}),
    "py_missing_words_steps": ("untyped", {"handler": "all"}),
    "py_could_have_run_steps": ("untyped", {"handler": "all"}),
    "py_open_channels": ("gauge", {"handler": "all"}),
    "py_post_connect": ("untyped", {"handler": "all"}),
    "warmup_success_total": ("counter", {}),
    "warmup_failure_total": ("counter", {}),
    "warmup_skipped_total": ("counter", {}),
    "asr_words_total": ("counter", {}),
}
HISTOGRAMS = {
    "asr_model_step_duration": ["0.02", "0.03", "0.04", "0.05", "0.06", "0.07", "0.08"],
    "asr_connection_num_steps": [
        *("2.0", "25.0", "125.0", "250.0", "500.0", "750.0"),
        *("1125.0", "1500.0", "2250.0", "3000.0", "4500.0"),
    ],
    "py_model_step_duration": ["0.01", "0.015", "0.02", "0.03", "0.04", "0.05", "0.08"],
    "py_model_connection_num_steps": ["2.0", "25.0", "62.5", "125.0", "250.0", "500.0", "750.0"],
    "py_post_model_duration": ["0.02", "0.03", "0.04", "0.05", "0.06", "0.07", "0.08"],
    "warmup_duration_seconds": ["0.05", "0.1", "0.25", "0.5", "1.0", "2.0", "5.0", "10.0"],
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(metrics: Metrics) -> tuple[dict[str, str], Samples]:
    text = metrics.render().decode()
    # The parser adds `_total` to counters that lack it, so names and types are read from the text itself.
    names = {re.split("[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name if sample.name in names else sample.name.removesuffix("_total")
            assert name in names
            samples[name, tuple(sorted(sample.labels.items()))] = sample.value
    return types, samples


@pytest.mark.parametrize("name", UPSTREAM)
def test_8_counters_and_gauges_have_upstreams_names_types_and_labels(name: str) -> None:
    types, samples = scrape(Metrics())
    kind, labels = UPSTREAM[name]
    assert types[name] == kind
    assert samples[name, tuple(labels.items())] == 0
    assert f"{name}_total" not in types
    assert f"{name}_created" not in types


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_8_histograms_have_upstreams_buckets(name: str) -> None:
    types, samples = scrape(Metrics())
    assert types[name] == "histogram"
    buckets = [dict(labels)["le"] for sample, labels in samples if sample == f"{name}_bucket"]
    assert buckets == [*HISTOGRAMS[name], "+Inf"]
    assert samples[f"{name}_count", ()] == 0
    assert samples[f"{name}_sum", ()] == 0


@pytest.mark.parametrize("kind", ["Asr", "BatchedAsr", "PyBatchedAsr"])
def test_8_speech_to_text_counts(kind: str) -> None:
    metrics = Metrics()
    module = metrics.module(kind)
    module.connected()
    module.connected()
    module.opened()
    module.opened()
    module.stepped(0.025, 2)
    module.closed(30)
    module.warmed_up(0.3, True)
    module.spoke(3)
    module.spoke(4)
    _, samples = scrape(metrics)
    handler = (("handler", "all"),)
    assert samples["asr_connect", handler] == 2
    assert samples["asr_words_total", ()] == 7
    assert samples["asr_open_channels", handler] == 1
    assert samples["asr_model_step_duration_bucket", (("le", "0.02"),)] == 0
    assert samples["asr_model_step_duration_bucket", (("le", "0.03"),)] == 1
    assert samples["asr_connection_num_steps_sum", ()] == 30
    assert samples["warmup_success_total", ()] == 1
    assert samples["warmup_duration_seconds_count", ()] == 1
    assert samples["py_connect", handler] == 0


def test_8_text_to_speech_counts() -> None:
    metrics = Metrics()
    module = metrics.module("Py")
    module.connected()
    module.opened()
    module.stepped(0.012, 1)
    module.stepped(0.001, 0)
    module.warmed_up(3, False)
    _, samples = scrape(metrics)
    handler = (("handler", "all"),)
    assert samples["py_connect", handler] == 1
    assert samples["py_open_channels", handler] == 1
    assert samples["py_total_steps", handler] == 2
    assert samples["py_active_steps", handler] == 1
    assert samples["warmup_failure_total", ()] == 1
    assert samples["asr_connect", handler] == 0


def test_other_module_types_count_their_warmup_only() -> None:
    metrics = Metrics()
    before = scrape(metrics)[1]
    module = metrics.module("Mimi")
    module.connected()
    module.opened()
    module.stepped(1, 1)
    module.closed(1)
    module.warmed_up(1, True)
    changed = {name for (name, labels), value in scrape(metrics)[1].items() if before[name, labels] != value}
    assert {name for name in changed if not name.startswith("process_")} == {
        "warmup_success_total",
        "warmup_duration_seconds_bucket",
        "warmup_duration_seconds_count",
        "warmup_duration_seconds_sum",
    }


def test_8_errors_are_counted_by_their_labels() -> None:
    metrics = Metrics()
    metrics.auth_errors.inc("invalid_key")
    metrics.connection_errors.inc("capacity", 'a "quoted"\n\\ name')
    for code in (4000, 4000, 1000, 4999, 3210):
        metrics.closed(code)
    types, samples = scrape(metrics)
    assert types["auth_error_total"] == types["ws_close_total"] == types["connection_error_total"] == "counter"
    assert samples["auth_error_total", (("error_type", "invalid_key"),)] == 1
    assert samples["connection_error_total", (("error_type", "capacity"), ("module", 'a "quoted"\n\\ name'))] == 1
    assert samples["ws_close_total", (("code", "4000"), ("reason", "at_capacity"))] == 2
    assert samples["ws_close_total", (("code", "1000"), ("reason", "normal"))] == 1
    assert samples["ws_close_total", (("code", "other"), ("reason", "other"))] == 2


def test_8_gpu_gauges_appear_with_a_reading() -> None:
    assert not any(name.startswith("system_") for name in scrape(Metrics())[0])
    assert not any(name.startswith("system_") for name in scrape(Metrics(lambda: None))[0])
    types, samples = scrape(Metrics(lambda: SystemReading(1e9, 7e9, 8e9, 42)))
    assert types["system_free_vram_bytes"] == "gauge"
    assert samples["system_free_vram_bytes", ()] == 1e9
    assert samples["system_used_vram_bytes", ()] == 7e9
    assert samples["system_total_vram_bytes", ()] == 8e9
    assert samples["system_gpu_utilization_percent", ()] == 42


def test_each_modules_slots_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    slots = [SlotReading("asr", "BatchedAsr", used=1, total=64, free=63, waiting=2)]
    metrics.watch_slots(lambda: slots)
    slots.append(SlotReading("tts", "Py", used=0, total=8, free=0, waiting=0))
    types, samples = scrape(metrics)
    assert types["module_slots"] == types["module_slots_used"] == "gauge"
    assert samples["module_slots", (("module", "asr"), ("type", "BatchedAsr"))] == 64
    assert samples["module_slots_used", (("module", "asr"), ("type", "BatchedAsr"))] == 1
    assert samples["module_slots", (("module", "tts"), ("type", "Py"))] == 8
    assert samples["module_slots_free", (("module", "asr"), ("type", "BatchedAsr"))] == 63
    assert samples["module_slots_waiting", (("module", "asr"), ("type", "BatchedAsr"))] == 2


@pytest.mark.parametrize("kind", ["BatchedAsr", "Tts", "Mimi", "PyPost"])
def test_streams_of_every_type_are_counted_by_module(kind: str) -> None:
    metrics = Metrics()
    module = metrics.module(kind, "mine")
    labels = (("module", "mine"), ("type", kind))
    assert scrape(metrics)[1]["module_streams_opened_total", labels] == 0
    module.opened()
    module.opened()
    module.closed(3)
    types, samples = scrape(metrics)
    assert types["module_streams_opened_total"] == types["module_streams_closed_total"] == "counter"
    assert samples["module_streams_opened_total", labels] == 2
    assert samples["module_streams_closed_total", labels] == 1


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.module("Asr").connected()
    assert scrape(second)[1]["asr_connect", (("handler", "all"),)] == 0


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = Metrics()
    module = metrics.module("Asr")

    def count() -> None:
        for _ in range(2000):
            module.connected()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scrape(metrics)[1]["asr_connect", (("handler", "all"),)] == 8000
