"""The log file: it moves on by day and size, and outlives a disk that is full; it knows no logger."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import logging.handlers
import os
import time
from pathlib import Path
from typing import TextIO

from .lines import own_warning

PROBE_BYTES = 4096
"""What must be free on the disk at start."""
REPEAT_SECONDS = 60.0
"""How often a complaint about logging itself is repeated."""


class RotatingFile(logging.handlers.RotatingFileHandler):
    """A file that moves on to ``.1``, ``.2``, ... at midnight and when it would outgrow ``max_bytes``.

    A failure to write is complained of (once a minute) on ``console``; that line is lost, the next is tried again, and
    the first that succeeds is preceded by how many were lost.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_files: int, console: TextIO | None) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=max_files, encoding="utf-8", errors="backslashreplace")
        self._console = console
        self._day = _day(path.stat().st_mtime if path.stat().st_size else time.time())
        self._complained = -REPEAT_SECONDS
        self._lost = 0
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
            if self._lost:  # what was written last may be half a line
                lost = self.format(own_warning("log lines were lost", lines=self._lost))
                text = f"{self.terminator if self._ends_within_a_line() else ''}{lost}{self.terminator}{text}"
            self.stream.write(text)
            self.stream.flush()
            self._lost = 0
        except Exception as error:
            self._lost += 1
            # A stream that failed half-way (full disk) keeps its buffer: drop it, and open anew for the next line.
            stream, self.stream = self.stream, None
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
            self._complain("cannot be written; lines are lost", error)

    def _move_on_if_due(self, now: float, length: int) -> None:
        today = _day(now)
        size = self.stream.tell() if self.stream is not None else 0
        if size and (today > self._day or size + length > self.maxBytes > 0):
            if self.backupCount > 0:
                try:
                    self.doRollover()
                except OSError as error:  # better a file that is too large than no lines
                    self._complain("cannot be moved on; it grows", error)
            elif self.stream is not None:  # no old files are to be kept; the stdlib would go on appending
                self.stream.truncate(0)
        self._day = max(today, self._day)

    def _complain(self, what: str, error: Exception) -> None:
        if time.monotonic() - self._complained < REPEAT_SECONDS or self._console is None:
            return
        self._complained = time.monotonic()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        warning = own_warning(f"the log file {what}", file=self.baseFilename, reason=reason)
        self._console.write(self.format(warning) + "\n")

    def check(self) -> None:
        """Take as much room as a line may need and give it back.

        Raises:
            OSError: there is no room, or the file cannot be written.
        """
        size = Path(self.baseFilename).stat().st_size
        with open(self.baseFilename, "ab", buffering=0) as file:
            try:
                if file.write(b" " * PROBE_BYTES) != PROBE_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(size)

    def _ends_within_a_line(self) -> bool:
        with contextlib.suppress(OSError), open(self.baseFilename, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) not in (b"\n", b"")
        return False


def _day(seconds: float) -> tuple[int, int]:
    local = time.localtime(seconds)
    return local.tm_year, local.tm_yday
