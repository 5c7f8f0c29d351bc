"""Every Prometheus name that the server exports, as upstream and its fork spell them; it knows no engine and no socket.

Upstream's counters have no ``_total`` (``asr_connect``), and dashboards ask for those very names. prometheus-client
insists on the suffix, so counters are kept and written here; histograms and gauges are its own. `promtool` insists
on it too, for whatever is declared a counter: those are declared ``untyped``, which no query can tell apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ALL: Final = {"handler": "all"}
_ASR_STEP: Final = (20e-3, 30e-3, 40e-3, 50e-3, 60e-3, 70e-3, 80e-3)
_ASR_STEPS: Final = (2, 25, 125, 250, 500, 750, 1125, 1500, 2250, 3000, 4500)
_PY_STEP: Final = (10e-3, 15e-3, 20e-3, 30e-3, 40e-3, 50e-3, 80e-3)
_PY_STEPS: Final = (2, 25, 62.5, 125, 250, 500, 750)
_WARMUP: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)

CLOSE_REASONS: Final = {
    1000: "normal",
    1001: "going_away",
    1002: "protocol_error",
    1005: "no_status",
    1006: "connection_lost",
    1011: "internal_error",
    4000: "at_capacity",
    4001: "authentication_failed",
    4002: "session_timeout",
    4003: "invalid_message",
    4004: "rate_limited",
    4005: "resource_not_found",
    4006: "client_timeout",
}
"""The ``reason`` label of each close code. Any other code, which a client may choose freely, counts as "other"."""


class SystemReading(NamedTuple):
    """The state of a GPU: bytes, and percent of the time in use."""

    free_bytes: float
    used_bytes: float
    total_bytes: float
    utilization_percent: float


class SlotReading(NamedTuple):
    """One module's slots."""

    module: str
    kind: str
    used: int
    total: int
    free: int
    waiting: int


class ExactCounter:
    """A counter exported under exactly its name; safe to call from any thread."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self._text = text
        self._labels = tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def inc(self, *values: str, by: float = 1.0) -> None:
        """Count ``by`` more for these label values."""
        assert len(values) == len(self._labels)
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + by

    def lines(self, constant: dict[str, str]) -> Iterator[str]:
        """The exposition text, line by line."""
        with self._lock:
            values = sorted(self._values.items())
        yield f"# HELP {self.name} {self._text}"
        yield f"# TYPE {self.name} {'counter' if self.name.endswith('_total') else 'untyped'}"
        for labels, value in values:
            pairs = [*constant.items(), *zip(self._labels, labels, strict=True)]
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in pairs)
            yield f"{self.name}{{{inside}}} {value}" if inside else f"{self.name} {value}"


class ModuleMetrics:
    """What one module counts: its type's families, if upstream measures that type, and its streams by its name."""

    def __init__(self, metrics: Metrics, family: _Family | None, labels: tuple[str, str] | None = None) -> None:
        self._metrics = metrics
        self._family = family
        self._labels = labels
        if labels is not None:  # so that a module without a stream yet is there, too
            metrics.streams_opened.inc(*labels, by=0)
            metrics.streams_closed.inc(*labels, by=0)

    def connected(self) -> None:
        """A client has come, whether or not there is a slot for it."""
        if self._family:
            self._family.connect.inc()

    def opened(self) -> None:
        """A stream took a slot."""
        if self._labels:
            self._metrics.streams_opened.inc(*self._labels)
        if self._family:
            self._family.open_channels.inc()

    def closed(self, steps: int) -> None:
        """A stream left its slot after ``steps`` steps."""
        if self._labels:
            self._metrics.streams_closed.inc(*self._labels)
        if self._family:
            self._family.open_channels.dec()
            self._family.num_steps.observe(steps)

    def stepped(self, seconds: float, active: int) -> None:
        """One batched step ran for ``active`` streams."""
        if self._family:
            self._family.step_duration.observe(seconds)
            if self._family.total_steps and self._family.active_steps:
                self._family.total_steps.inc()
                self._family.active_steps.inc(by=1.0 if active else 0.0)

    def spoke(self, words: int) -> None:
        """So many words were sent."""
        if self._family and self._family.words:
            self._family.words.inc(by=words)

    def waited(self, missing: int, ready: int) -> None:
        """In one step of text to speech so many streams waited for words, and so many did not."""
        if self._family and self._family.missing_words and self._family.could_have_run:
            self._family.missing_words.inc(by=missing)
            self._family.could_have_run.inc(by=ready)

    def warmed_up(self, seconds: float, ok: bool) -> None:
        """The warm-up ended."""
        self._metrics.warmup_duration.observe(seconds)
        (self._metrics.warmup_success if ok else self._metrics.warmup_failure).inc()


class _PostMetrics(ModuleMetrics):
    """What `PyPost` counts."""

    def connected(self) -> None:
        """A request has come."""
        self._metrics.post_connect.inc()

    def stepped(self, seconds: float, active: int) -> None:
        """One recording was answered."""
        self._metrics.post_duration.observe(seconds)


class _Family(NamedTuple):
    connect: ExactCounter
    open_channels: Gauge
    num_steps: Histogram
    step_duration: Histogram
    total_steps: ExactCounter | None = None
    active_steps: ExactCounter | None = None
    words: ExactCounter | None = None
    missing_words: ExactCounter | None = None
    could_have_run: ExactCounter | None = None


class Metrics:
    """All metrics of one server.

    Args:
        system: read at each scrape for the ``system_*`` gauges; those are left out while it is None or returns None.
    """

    def __init__(self, system: Callable[[], SystemReading | None] | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._handler_counters: list[ExactCounter] = []
        self._counters: list[ExactCounter] = []
        ProcessCollector(registry=self.registry)
        if system is not None:
            self.registry.register(_SystemCollector(system))

        self._asr = _Family(
            connect=self._handler_counter("asr_connect", "Connections to speech-to-text modules."),
            open_channels=self._handler_gauge("asr_open_channels", "Speech-to-text streams that hold a slot."),
            num_steps=self._histogram("asr_connection_num_steps", "Steps of a speech-to-text stream.", _ASR_STEPS),
            step_duration=self._histogram(
                "asr_model_step_duration", "Seconds of one batched speech-to-text step.", _ASR_STEP
            ),
            words=self._counter("asr_words_total", "Words that speech to text has sent."),
        )
        self._py = _Family(
            connect=self._handler_counter("py_connect", "Connections to text-to-speech modules."),
            open_channels=self._handler_gauge("py_open_channels", "Text-to-speech streams that hold a slot."),
            num_steps=self._histogram(
                "py_model_connection_num_steps", "Steps of a text-to-speech stream that made data.", _PY_STEPS
            ),
            step_duration=self._histogram(
                "py_model_step_duration", "Seconds of one batched text-to-speech step.", _PY_STEP
            ),
            total_steps=self._handler_counter("py_total_steps", "Turns of the text-to-speech loop."),
            active_steps=self._handler_counter("py_active_steps", "Turns of the loop with some active stream."),
            missing_words=self._handler_counter(
                "py_missing_words_steps", "Steps that a stream missed for want of words."
            ),
            could_have_run=self._handler_counter(
                "py_could_have_run_steps", "Steps for which a stream had enough words."
            ),
        )
        self._lm = _Family(
            connect=self._handler_counter("lm_connect", "Connections to dialogue modules."),
            open_channels=self._handler_gauge("lm_open_channels", "Dialogues that hold a slot."),
            num_steps=self._histogram("lm_connection_num_steps", "Steps of a dialogue.", _ASR_STEPS),
            step_duration=self._histogram("lm_model_step_duration", "Seconds of one batched dialogue step.", _ASR_STEP),
        )
        self.post_connect = self._handler_counter("py_post_connect", "Requests to PyPost modules.")
        self.post_duration = self._histogram("py_post_model_duration", "Seconds of one PyPost run.", _ASR_STEP)

        self.warmup_duration = self._histogram("warmup_duration_seconds", "Seconds of a module's warm-up.", _WARMUP)
        self.warmup_success = self._counter("warmup_success_total", "Warm-ups that succeeded.")
        self.warmup_failure = self._counter("warmup_failure_total", "Warm-ups that failed.")
        self.warmup_skipped = self._counter("warmup_skipped_total", "Warm-ups that were not run.")
        self.auth_errors = self._counter("auth_error_total", "Refused credentials by code.", "error_type")
        self.closes = self._counter("ws_close_total", "WebSockets closed, by code.", "code", "reason")
        self.connection_errors = self._counter(
            "connection_error_total", "Streams that an error ended.", "error_type", "module"
        )
        self.limits = self._counter(
            "limit_refusals_total", "Streams and requests that ran into a limit, by limit.", "limit", "module"
        )
        self.streams_opened = self._counter(
            "module_streams_opened_total", "Streams that took a slot of a module.", "module", "type"
        )
        self.streams_closed = self._counter(
            "module_streams_closed_total", "Streams that gave their slot back.", "module", "type"
        )

    def module(self, kind: str, name: str = "") -> ModuleMetrics:
        """What a module of this type (`BatchedAsr`, `Py`, ...) counts; its streams by themselves if it has a name."""
        families = {"Asr": self._asr, "BatchedAsr": self._asr, "PyBatchedAsr": self._asr, "Py": self._py}
        families |= {"Lm": self._lm, "PocketTts": self._py}
        labels = (name, kind) if name else None
        if kind == "PyPost":
            return _PostMetrics(self, None, labels)
        return ModuleMetrics(self, families.get(kind), labels)

    def watch_slots(self, read: Callable[[], Iterable[SlotReading]]) -> None:
        """Export what this says at each scrape as ``module_slots``, and those used, free and waited for."""
        self.registry.register(_SlotCollector(read))

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Export at each scrape as ``worker_ready`` whether a stream can be opened."""
        gauge = Gauge("worker_ready", "1 if a stream can be opened now, as /ready says.", registry=self.registry)
        gauge.set_function(lambda: float(ready()))

    def closed(self, code: int) -> None:
        """A WebSocket was closed with this code."""
        reason = CLOSE_REASONS.get(code)
        self.closes.inc(str(code) if reason else "other", reason or "other")

    def render(self) -> bytes:
        """The exposition text of `CONTENT_TYPE`."""
        lines = [line for counter in self._handler_counters for line in counter.lines(_ALL)]
        lines += [line for counter in self._counters for line in counter.lines({})]
        return generate_latest(self.registry) + "".join(f"{line}\n" for line in lines).encode()

    def _handler_counter(self, name: str, text: str) -> ExactCounter:
        counter = ExactCounter(name, text)
        self._handler_counters.append(counter)
        return counter

    def _counter(self, name: str, text: str, *labels: str) -> ExactCounter:
        counter = ExactCounter(name, text, labels)
        self._counters.append(counter)
        return counter

    def _handler_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, list(_ALL), registry=self.registry).labels(**_ALL)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)


class _SlotCollector(Collector):
    def __init__(self, read: Callable[[], Iterable[SlotReading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        total = GaugeMetricFamily("module_slots", "Streams that a module can serve at once.", labels=["module", "type"])
        used = GaugeMetricFamily("module_slots_used", "Streams that a module serves.", labels=["module", "type"])
        free = GaugeMetricFamily(
            "module_slots_free",
            "Streams that can be opened now: none while the module warms up, drains or has failed.",
            labels=["module", "type"],
        )
        waiting = GaugeMetricFamily("module_slots_waiting", "Requests that wait for a slot.", labels=["module", "type"])
        for reading in self._read():
            labels = [reading.module, reading.kind]
            total.add_metric(labels, reading.total)
            used.add_metric(labels, reading.used)
            free.add_metric(labels, reading.free)
            waiting.add_metric(labels, reading.waiting)
        yield from (total, used, free, waiting)


class _SystemCollector(Collector):
    def __init__(self, read: Callable[[], SystemReading | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reading = self._read()
        if reading is None:
            return
        yield GaugeMetricFamily("system_free_vram_bytes", "Free GPU memory.", value=reading.free_bytes)
        yield GaugeMetricFamily("system_used_vram_bytes", "Used GPU memory.", value=reading.used_bytes)
        yield GaugeMetricFamily("system_total_vram_bytes", "All GPU memory.", value=reading.total_bytes)
        yield GaugeMetricFamily(
            "system_gpu_utilization_percent",
            "Share of time with the GPU in use.",
            value=reading.utilization_percent,
        )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
