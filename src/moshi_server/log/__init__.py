"""Sets up logging: one line format on the console and in a file that rotates by day and size, written by one thread.

    2026-11-24 06:18:31.042 INFO moshi_server.engine.worker worker.py:171 warmup done module=asr seconds=0.82

or, for machines, one JSON object a line with the same parts. Callers use the standard library's `logging`, or
structlog, and add ``key=value`` pairs: ``logger.info("...", extra={"fields": {...}})`` or
``structlog.get_logger(__name__).info("...", key=value)``. Context variables bound with `structlog.contextvars` stand in
every line. A caller only puts a record on a bounded queue: what cannot be written in time is dropped and counted, never
waited for. Only the command line calls `setup_logging`.
"""

from __future__ import annotations

import copy
import errno
import logging
import logging.handlers
import sys
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from queue import Full, Queue
from typing import Any, TextIO

import structlog

from ..errors import ConfigError
from .file import RotatingFile
from .lines import JsonFormatter, LineFormatter, own_warning

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
QUEUE_LINES = 20_000
NOISY = {
    "httpx": logging.WARNING, "httpcore": logging.WARNING, "asyncio": logging.WARNING, "filelock": logging.WARNING,
    "python_multipart": logging.ERROR,  # it warns of each broken form, and of each part after the end
}  # fmt: skip
"""Libraries whose lower levels are worth reading only when debugging."""
OWN_HANDLERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "huggingface_hub", "websockets", "py.warnings")
"""Libraries that set up output of their own; it is taken from them so that their lines look like ours."""


class _Enqueue(logging.handlers.QueueHandler):
    """Puts records on a bounded queue, complete in themselves, and never waits."""

    queue: Queue[logging.LogRecord]

    def __init__(self, target: Queue[logging.LogRecord]) -> None:
        super().__init__(target)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Copy the record with its message made, its context bound and its traceback as text."""
        record = copy.copy(record)
        record.msg = record.getMessage()
        record.args = None
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        record.fields = {**structlog.contextvars.get_contextvars(), **fields}
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the record, or count it as lost."""
        try:
            self.queue.put_nowait(record)
        except Full:
            self.dropped += 1


class _Writer(logging.handlers.QueueListener):
    """The thread that writes; it reports what was dropped while it could not keep up."""

    def __init__(self, source: _Enqueue, *handlers: logging.Handler) -> None:
        super().__init__(source.queue, *handlers)
        self._source = source

    def enqueue_sentinel(self) -> None:
        """Ask the thread to end after what is queued; here waiting for room is right."""
        self._source.queue.put(None)  # type: ignore[arg-type]

    def handle(self, record: logging.LogRecord) -> None:
        """Write one record, and before it how many were lost."""
        dropped, self._source.dropped = self._source.dropped, 0
        if dropped:
            super().handle(own_warning("log lines were dropped", lines=dropped))
        super().handle(record)


class Logging:
    """Logging as it was set up, until `close`."""

    def __init__(self, writer: _Writer, enqueue: _Enqueue, console: logging.Handler | None, file: RotatingFile) -> None:
        self._writer = writer
        self._enqueue = enqueue
        self._console = console
        self._file = file
        self._closed = False
        self.path = Path(file.baseFilename)
        self._hooks = (threading.excepthook, sys.unraisablehook)
        threading.excepthook, sys.unraisablehook = _thread_failed, _ignored

    def mute_console(self) -> None:
        """From now on write to the file only; an error that the command line prints itself is not said twice."""
        if self._console is not None:
            self._console.addFilter(lambda _: False)

    def close(self) -> None:
        """Write what is queued, then give the root logger back. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        threading.excepthook, sys.unraisablehook = self._hooks
        logging.getLogger().removeHandler(self._enqueue)
        self._writer.stop()
        self._file.close()
        logging.captureWarnings(False)


def setup_logging(
    level: str,
    directory: Path,
    instance_name: str,
    *,
    max_size_mb: float = 100,
    max_files: int = 10,
    silent: bool = False,
    json_lines: bool = False,
    console: TextIO | None = None,
) -> Logging:
    """Send every logger's lines to the console and to ``directory/log.{instance_name}``.

    Args:
        level: one of `LEVELS`.
        directory: made if it is not there.
        instance_name: the end of the file's name.
        max_size_mb: the file moves on before it is larger than this many MiB.
        max_files: how many files that have moved on are kept.
        silent: write nothing to the console.
        json_lines: write JSON objects, one a line, to both.
        console: where console lines go, by default the error output; in colour only if it is a terminal.

    Raises:
        ConfigError: no such level, the file cannot be written, or its disk is full.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"no such log level {level!r}", hint=f"expected one of {', '.join(LEVELS)}")
    out = None if silent else console or sys.stderr
    path = directory.expanduser() / f"log.{instance_name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RotatingFile(path, max_bytes=int(max_size_mb * 2**20), max_files=max_files, console=out)
        try:
            file.check()
        except OSError:
            file.close()
            raise
    except OSError as error:
        message = f"the log file {path} cannot be written: {error.strerror or error}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "make room there, or set log_dir" if full else "set log_dir to a folder that this user may write"
        raise ConfigError(message, key="log_dir", hint=hint) from error
    file.setFormatter(JsonFormatter() if json_lines else LineFormatter(colour=False))
    handlers: list[logging.Handler] = [file]
    screen = None
    if out is not None:
        screen = logging.StreamHandler(out)
        screen.setFormatter(JsonFormatter() if json_lines else LineFormatter(colour=out.isatty()))
        handlers.append(screen)
    enqueue = _Enqueue(Queue(QUEUE_LINES))
    writer = _Writer(enqueue, *handlers)
    _configure_loggers(LEVELS[level.lower()], enqueue)
    _configure_structlog()
    writer.start()
    return Logging(writer, enqueue, screen, file)


def _configure_loggers(level: int, handler: logging.Handler) -> None:
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    for name, least in NOISY.items():
        logging.getLogger(name).setLevel(max(level, least) if level > TRACE else level)
    logging.captureWarnings(True)
    logging.raiseExceptions = False


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit and failure.exc_value is not None:
        name = failure.thread.name if failure.thread else "?"
        logging.getLogger("threading").error("thread %s has failed", name, exc_info=failure.exc_value)


def _ignored(failure: sys.UnraisableHookArgs) -> None:
    logging.getLogger("python").error(
        "%s %r", failure.err_msg or "ignored:", failure.object, exc_info=failure.exc_value
    )


def _to_record(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Turn structlog's last step into a call of the standard library."""
    message = str(event.pop("event", ""))
    keywords = {key: event.pop(key) for key in ("exc_info", "stack_info") if key in event}
    # A percent sign in the text is text: without arguments the standard library does no formatting.
    return (message,), {**keywords, "extra": {"fields": dict(event)}}


def _configure_structlog() -> None:
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.PositionalArgumentsFormatter(), _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
