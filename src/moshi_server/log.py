"""Sets up logging: one line format on the console and in a file that rotates by day and size, written by one thread.

    2026-11-24 06:18:31.042 INFO moshi_server.engine.worker worker.py:171 warmup of asr done seconds=0.82

Callers use the standard library's `logging`, or structlog, and add ``key=value`` pairs: ``logger.info("...",
extra={"fields": {...}})`` or ``structlog.get_logger(__name__).info("...", key=value)``. Context variables bound with
`structlog.contextvars` stand in every line. A caller only puts a record on a bounded queue: what cannot be written in
time is dropped and counted, never waited for. Only the command line calls `setup_logging`.
"""

from __future__ import annotations

import copy
import glob
import json
import logging
import logging.handlers
import re
import sys
import time
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from queue import Full, Queue
from typing import Any, TextIO

import structlog

from .errors import ConfigError

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
QUEUE_LINES = 20_000
REPEAT_SECONDS = 60.0
"""How often a complaint about logging itself is repeated."""
NOISY = {"httpx": logging.WARNING, "httpcore": logging.WARNING, "asyncio": logging.WARNING, "filelock": logging.WARNING}
"""Libraries whose lower levels are worth reading only when debugging."""
OWN_HANDLERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "huggingface_hub", "websockets", "py.warnings")
"""Libraries that set up output of their own; it is taken from them so that their lines look like ours."""

_COLOURS = {"TRACE": "35", "DEBUG": "34", "INFO": "32", "WARN": "33", "ERROR": "31"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_VALUE = re.compile(r"[^\s\"'=\x00-\x1f\x7f-\x9f]+")


def level_name(number: int) -> str:
    """The level as a line shows it; critical counts as an error, as upstream has no such level."""
    for name, bound in (("ERROR", logging.ERROR), ("WARN", logging.WARNING), ("INFO", logging.INFO), ("DEBUG", 10)):
        if number >= bound:
            return name
    return "TRACE"


class LineFormatter(logging.Formatter):
    """One record, one line; a traceback follows, indented, on lines of its own."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line or lines, without a newline at the end."""
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        stamp = f"{seconds}.{int(record.created * 1000) % 1000:03d}"
        level = level_name(record.levelno)
        target = record.name
        place = f"{record.filename}:{record.lineno}"
        message = _one_line(record.getMessage())
        pairs = [(key, _value(value)) for key, value in getattr(record, "fields", {}).items()]
        if self._colour:
            stamp, target, place = (_paint(text, "2") for text in (stamp, target, place))
            level = _paint(level, _COLOURS[level])
            text = " ".join([stamp, level, target, place, message, *(f"{_paint(k, '3')}={v}" for k, v in pairs)])
        else:
            text = " ".join([stamp, level, target, place, message, *(f"{k}={v}" for k, v in pairs)])
        if record.exc_text:
            text += "".join(f"\n    {_one_line(line)}" for line in record.exc_text.splitlines())
        return text


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def _one_line(text: str) -> str:
    """Return ``text`` with control characters written out, so that no client can forge a line or colour a terminal."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else _one_line(json.dumps(text, ensure_ascii=False))


class RotatingFile(logging.handlers.RotatingFileHandler):
    """A file that moves on to ``.1``, ``.2``, ... at midnight and when it would outgrow ``max_bytes``.

    A failure to write is complained of (once a minute) on ``console``; that line is lost, the next is tried again.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_files: int, console: TextIO | None) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=max_files, encoding="utf-8", errors="backslashreplace")
        self._console = console
        self._day = _day(path.stat().st_mtime if path.stat().st_size else time.time())
        self._complained = -REPEAT_SECONDS
        for old in path.parent.glob(f"{glob.escape(path.name)}.*"):
            if (number := old.name.removeprefix(f"{path.name}.")).isdecimal() and int(number) > max_files:
                old.unlink()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, after moving on if the day or the size asks for it."""
        try:
            text = self.format(record) + self.terminator
            self._move_on_if_due(record.created, len(text.encode("utf-8", "backslashreplace")))
            if self.stream is None:
                self.stream = self._open()
            self.stream.write(text)
            self.stream.flush()
        except Exception as error:
            self._complain(error)

    def _move_on_if_due(self, now: float, length: int) -> None:
        today = _day(now)
        size = self.stream.tell() if self.stream is not None else 0
        if size and (today > self._day or size + length > self.maxBytes > 0):
            if self.backupCount > 0:
                self.doRollover()
            elif self.stream is not None:  # no old files are to be kept; the stdlib would go on appending
                self.stream.truncate(0)
        self._day = max(today, self._day)

    def _complain(self, error: Exception) -> None:
        # A stream that failed half-way (full disk) keeps its buffer: drop it, and open anew for the next line.
        stream, self.stream = self.stream, None
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass
        if time.monotonic() - self._complained < REPEAT_SECONDS or self._console is None:
            return
        self._complained = time.monotonic()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._console.write(f"warning: the log file {self.baseFilename} cannot be written: {reason}; lines are lost\n")


def _day(seconds: float) -> tuple[int, int]:
    local = time.localtime(seconds)
    return local.tm_year, local.tm_yday


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
            lost = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log lines were dropped", None, None)
            lost.fields = {"lines": dropped}
            super().handle(lost)
        super().handle(record)


class Logging:
    """Logging as it was set up, until `close`."""

    def __init__(self, writer: _Writer, enqueue: _Enqueue, console: logging.Handler | None, file: RotatingFile) -> None:
        self._writer = writer
        self._enqueue = enqueue
        self._console = console
        self._file = file
        self.path = Path(file.baseFilename)

    def mute_console(self) -> None:
        """From now on write to the file only; an error that the command line prints itself is not said twice."""
        if self._console is not None:
            self._console.addFilter(lambda _: False)

    def close(self) -> None:
        """Write what is queued, then give the root logger back."""
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
        console: where console lines go, by default the error output; in colour only if it is a terminal.

    Raises:
        ConfigError: no such level, or the file cannot be written.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"no such log level {level!r}", hint=f"expected one of {', '.join(LEVELS)}")
    out = None if silent else console or sys.stderr
    path = directory.expanduser() / f"log.{instance_name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RotatingFile(path, max_bytes=int(max_size_mb * 2**20), max_files=max_files, console=out)
    except OSError as error:
        message = f"the log file {path} cannot be written: {error.strerror or error}"
        raise ConfigError(message, key="log_dir", hint="set log_dir to a folder that this user may write") from error
    file.setFormatter(LineFormatter(colour=False))
    handlers: list[logging.Handler] = [file]
    screen = None
    if out is not None:
        screen = logging.StreamHandler(out)
        screen.setFormatter(LineFormatter(colour=out.isatty()))
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
