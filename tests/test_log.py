"""Section 6 of the server's specification: the line, the file, its rotation, and never waiting."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from moshi_server import log
from moshi_server.cli.worker import Level
from moshi_server.errors import ConfigError

LINE = re.compile(
    r"(?P<stamp>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) (?P<level>TRACE|DEBUG|INFO|WARN|ERROR) (?P<target>[\w.]+)"
    r" (?P<file>[\w.]+\.py):(?P<line>\d+) (?P<rest>.*)"
)


class Screen(io.StringIO):
    """A console, a terminal or not."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = True
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@contextmanager
def logging_to(folder: Path, *, level: str = "info", console: Screen | None = None, **options: Any) -> Iterator[Path]:
    output = log.setup_logging(level, folder, "test", console=console or Screen(), **options)
    try:
        yield folder / "log.test"
    finally:
        output.close()


def only_line(text: str) -> re.Match[str]:
    lines = text.splitlines()
    assert len(lines) == 1, lines
    match = LINE.fullmatch(lines[0])
    assert match, lines[0]
    return match


def test_6_a_line_has_time_level_target_place_message_and_pairs(tmp_path: Path) -> None:
    before = time.time()
    with logging_to(tmp_path / "made" / "for" / "it") as file:
        structlog.get_logger("moshi_server.some").info("a word", session=7, text="two words", seconds=0.123456789)
    match = only_line(file.read_text())
    assert match["level"] == "INFO"
    assert match["target"] == "moshi_server.some"
    assert match["file"] == "test_log.py"
    assert match["rest"] == 'a word session=7 text="two words" seconds=0.123457'
    stamp = time.mktime(time.strptime(match["stamp"][:19], "%Y-%m-%d %H:%M:%S"))
    assert before - 1 <= stamp <= time.time()


def test_6_the_standard_library_logs_the_same_line(tmp_path: Path) -> None:
    with logging_to(tmp_path) as file:
        logging.getLogger("moshi_server.engine").warning("%d of %s", 3, "x", extra={"fields": {"module": "asr"}})
    match = only_line(file.read_text())
    assert (match["level"], match["rest"]) == ("WARN", "3 of x module=asr")
    assert match["file"] == "test_log.py"


def test_6_bound_context_is_in_every_line(tmp_path: Path) -> None:
    with logging_to(tmp_path) as file, structlog.contextvars.bound_contextvars(session=12):
        logging.getLogger("a").info("one")
        structlog.get_logger("b").info("two", session=13)
    one, two = file.read_text().splitlines()
    assert one.endswith("one session=12")
    assert two.endswith("two session=13")


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "uvicorn.access", "huggingface_hub.file_download"])
def test_6_other_loggers_come_in_the_same_format(tmp_path: Path, name: str) -> None:
    noise = Screen()
    own = logging.StreamHandler(noise)
    top = logging.getLogger(name.split(".")[0])
    top.addHandler(own)
    top.propagate = False
    with logging_to(tmp_path) as file:
        logging.getLogger(name).warning("hello")
    assert only_line(file.read_text())["target"] == name
    assert noise.getvalue() == ""


def test_6_warnings_are_logged(tmp_path: Path) -> None:
    with logging_to(tmp_path) as file, warnings.catch_warnings():
        warnings.simplefilter("always")
        log.logging.captureWarnings(True)
        warnings.warn("old way", stacklevel=1)
    assert "old way" in file.read_text()


@pytest.mark.parametrize(
    ("level", "shown"),
    [("trace", 5), ("debug", 4), ("info", 3), ("warn", 2), ("error", 1), ("INFO", 3)],
)
def test_6_the_level_bounds_what_is_written(tmp_path: Path, level: str, shown: int) -> None:
    with logging_to(tmp_path, level=level) as file:
        logger = logging.getLogger("x")
        for number in (log.TRACE, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(number, "line")
    names = [line.split()[2] for line in file.read_text().splitlines()]
    assert names == ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"][-shown:]


def test_a_broken_form_is_no_line_of_the_log(tmp_path: Path) -> None:
    """Whoever sent it is told; a client must not be able to fill the disk with the parser's warnings."""
    from python_multipart.multipart import MultipartParser

    with logging_to(tmp_path) as file, pytest.raises(ValueError, match="boundary"):
        MultipartParser(b"xyz").write(b"--abc\r\n")
    assert file.read_text() == ""


def test_6_the_command_line_offers_every_level() -> None:
    assert [level.value for level in Level] == list(log.LEVELS)


def test_6_an_unknown_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loud"):
        log.setup_logging("loud", tmp_path, "test")


def test_6_colour_only_on_a_terminal_and_never_in_the_file(tmp_path: Path) -> None:
    for terminal in (True, False):
        screen = Screen(terminal=terminal)
        with logging_to(tmp_path / str(terminal), console=screen) as file:
            logging.getLogger("x").error("bad", extra={"fields": {"k": "v"}})
        assert "\x1b" not in file.read_text()
        assert ("\x1b[31mERROR\x1b[0m" in screen.getvalue()) is terminal
        plain = re.sub(r"\x1b\[\d+m", "", screen.getvalue())
        assert plain == file.read_text()


def test_6_silent_writes_the_file_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = log.setup_logging("info", tmp_path, "test", silent=True)
    logging.getLogger("x").error("bad")
    output.close()
    assert capfd.readouterr() == ("", "")
    assert "bad" in (tmp_path / "log.test").read_text()


def test_a_client_cannot_forge_a_line_or_colour_the_console(tmp_path: Path) -> None:
    screen = Screen()
    with logging_to(tmp_path, console=screen) as file:
        structlog.get_logger("x").info("said \x1b[31mred\nINFO forged", text='a"b\r\nc', plain="é日本")
    match = only_line(file.read_text())
    assert "\x1b" not in screen.getvalue()
    assert match["rest"] == 'said \\x1b[31mred\\nINFO forged text="a\\"b\\r\\nc" plain=é日本'


def test_a_traceback_follows_indented(tmp_path: Path) -> None:
    with logging_to(tmp_path) as file:
        try:
            raise ValueError("the reason")
        except ValueError:
            logging.getLogger("x").exception("failed")
            structlog.get_logger("y").exception("failed too")
    lines = file.read_text().splitlines()
    assert [line for line in lines if not line.startswith("    ")] == [line for line in lines if LINE.fullmatch(line)]
    assert lines.count("    ValueError: the reason") == 2


def rotated(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir() if path != file)


def test_6_the_file_moves_on_before_it_is_too_large_and_only_so_many_are_kept(tmp_path: Path) -> None:
    limit = 4096
    with logging_to(tmp_path, max_size_mb=limit / 2**20, max_files=3) as file:
        for number in range(400):
            logging.getLogger("x").info("number %03d and some text to fill the line", number)
    assert rotated(file) == ["log.test.1", "log.test.2", "log.test.3"]
    files = [file, *(tmp_path / name for name in rotated(file))]
    assert all(path.stat().st_size <= limit for path in files)
    text = "".join(path.read_text() for path in reversed(files))
    numbers = [int(number) for number in re.findall(r"number (\d+)", text)]
    assert numbers == list(range(numbers[0], 400))


def test_6_the_file_moves_on_each_day(tmp_path: Path) -> None:
    file = tmp_path / "log.test"
    file.write_text("yesterday's line\n")
    yesterday = time.time() - 86400
    os.utime(file, (yesterday, yesterday))
    with logging_to(tmp_path):
        logging.getLogger("x").info("today")
        logging.getLogger("x").info("still today")
    assert rotated(file) == ["log.test.1"]
    assert (tmp_path / "log.test.1").read_text() == "yesterday's line\n"
    assert len(file.read_text().splitlines()) == 2


def test_6_midnight_passes_while_running(tmp_path: Path) -> None:
    handler = log.RotatingFile(tmp_path / "log.test", max_bytes=10**6, max_files=5, console=None)
    handler.setFormatter(log.LineFormatter(colour=False))
    now = time.time()
    for day in range(3):
        for _ in range(2):
            record = logging.LogRecord("x", logging.INFO, __file__, 1, f"day {day}", None, None)
            record.created = now + 86400 * day
            handler.emit(record)
    handler.close()
    days = [(tmp_path / name).read_text().count(f"day {day}") for day, name in enumerate(["log.test.2", "log.test.1"])]
    assert days == [2, 2]
    assert (tmp_path / "log.test").read_text().count("day 2") == 2


def test_6_no_old_file_is_kept_if_none_is_asked_for(tmp_path: Path) -> None:
    with logging_to(tmp_path, max_size_mb=1024 / 2**20, max_files=0) as file:
        for number in range(100):
            logging.getLogger("x").info("number %d", number)
    assert rotated(file) == []
    assert file.stat().st_size <= 1024
    assert "number 99" in file.read_text()


def test_6_files_beyond_the_number_to_keep_go_at_start(tmp_path: Path) -> None:
    for number in (1, 2, 3, 12):
        (tmp_path / f"log.test.{number}").write_text("old")
    (tmp_path / "log.test.note").write_text("not ours")
    with logging_to(tmp_path, max_files=2) as file:
        pass
    assert rotated(file) == ["log.test.1", "log.test.2", "log.test.note"]


def test_6_a_folder_that_cannot_be_written_is_an_error_at_start(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        log.setup_logging("info", blocker / "logs", "test")
    assert caught.value.key == "log_dir"
    assert "may write" in caught.value.hint


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


@needs_dev_full
def test_6_a_full_disk_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "log.test").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=os.strerror(errno.ENOSPC)) as caught:
        log.setup_logging("info", tmp_path, "test")
    assert "make room" in caught.value.hint


def test_6_the_look_at_the_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "log.test").write_text("a line of before\n")
    with logging_to(tmp_path) as file:
        pass
    assert file.read_text() == "a line of before\n"


@needs_dev_full
@pytest.mark.parametrize("json_lines", [False, True])
def test_6_a_full_disk_is_a_warning_while_running_and_lines_come_again(tmp_path: Path, json_lines: bool) -> None:
    screen = Screen()
    path = tmp_path / "log.test"
    handler = log.RotatingFile(path, max_bytes=10**6, max_files=1, console=screen)
    handler.setFormatter(log.JsonFormatter() if json_lines else log.LineFormatter(colour=False))
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "line", None, None)
    handler.emit(record)
    path.write_text(path.read_text() + "half a li")
    handler.close()
    handler.stream, handler.baseFilename = None, "/dev/full"
    for _ in range(3):
        handler.emit(record)
    warning = screen.getvalue()
    assert warning.count(os.strerror(errno.ENOSPC)) == 1
    assert len(warning.splitlines()) == 1
    handler.baseFilename = str(path)
    handler.emit(record)
    handler.emit(record)
    handler.close()
    one, torn, lost, *rest = path.read_text().splitlines()
    assert torn == "half a li"
    if json_lines:
        assert json.loads(warning)["level"] == "WARN"
        assert (json.loads(lost)["message"], json.loads(lost)["lines"]) == ("log lines were lost", 3)
    else:
        assert LINE.fullmatch(warning.strip())
        assert lost.endswith("log lines were lost lines=3")
    assert rest == [one, one]


def test_6_a_folder_that_refuses_to_move_the_file_on_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    screen = Screen()
    monkeypatch.setattr(os, "rename", refuse)
    with logging_to(tmp_path, console=screen, max_size_mb=1024 / 2**20) as file:
        for number in range(100):
            logging.getLogger("x").info("number %d", number)
    assert [int(number) for number in re.findall(r"number (\d+)", file.read_text())] == list(range(100))
    assert screen.getvalue().count("cannot be moved on; it grows") == 1
    assert os.strerror(errno.EACCES) in screen.getvalue()


def test_6_log_json_is_one_object_a_line_with_every_part(tmp_path: Path) -> None:
    screen = Screen(terminal=True)
    with logging_to(tmp_path, json_lines=True, console=screen) as file:
        with structlog.contextvars.bound_contextvars(session=4):
            structlog.get_logger("moshi_server.some").info("a \x1b[31m\nword é", seconds=0.25, path=tmp_path, file="x")
        try:
            raise ValueError("the reason\nof it")
        except ValueError:
            logging.getLogger("y").exception("failed", extra={"fields": {"share": math.nan, "ok": True, "no": None}})
    assert screen.getvalue() == file.read_text()
    assert file.read_text().isascii()
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    stamp = datetime.fromisoformat(first.pop("time"))
    assert abs(stamp.timestamp() - time.time()) < 60
    assert first.pop("line") > 0
    assert first == {
        "level": "INFO", "target": "moshi_server.some", "file": "test_log.py", "message": "a \x1b[31m\nword é",
        "session": 4, "seconds": 0.25, "path": str(tmp_path), "file_": "x",
    }  # fmt: skip
    assert (second["level"], second["share"], second["ok"], second["no"]) == ("ERROR", "nan", True, None)
    assert second["traceback"].endswith("ValueError: the reason\nof it")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_6_what_python_itself_complains_of_comes_in_the_same_format(tmp_path: Path) -> None:
    class Broken:
        def __del__(self) -> None:
            raise RuntimeError("at the end")

    def fail() -> None:
        raise KeyError("in a thread")

    before = threading.excepthook, sys.unraisablehook
    with logging_to(tmp_path) as file:
        thread = threading.Thread(target=fail, name="some-thread")
        thread.start()
        thread.join()
        Broken()
    assert (threading.excepthook, sys.unraisablehook) == before
    lines = [line for line in file.read_text().splitlines() if not line.startswith("    ")]
    assert all(LINE.fullmatch(line) for line in lines)
    assert "ERROR threading" in lines[0]
    assert "thread some-thread has failed" in lines[0]
    assert "ERROR python" in lines[1]
    assert "    RuntimeError: at the end" in file.read_text()


def test_6_a_stuck_disk_never_holds_up_a_caller_and_the_loss_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 50)
    stuck = threading.Event()
    write = log.RotatingFile.emit

    def slow(self: log.RotatingFile, record: logging.LogRecord) -> None:
        stuck.wait(30)
        write(self, record)

    monkeypatch.setattr(log.RotatingFile, "emit", slow)
    with logging_to(tmp_path) as file:
        start = time.perf_counter()
        for number in range(500):
            logging.getLogger("x").info("line %d", number)
        seconds = time.perf_counter() - start
        stuck.set()
        time.sleep(0.2)
        logging.getLogger("x").info("after")
    assert seconds < 5
    text = file.read_text()
    lost = sum(int(number) for number in re.findall(r"log lines were dropped lines=(\d+)", text))
    assert lost + len(re.findall(r" line \d+", text)) == 500
    assert lost >= 400


def test_6_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    with logging_to(tmp_path, level="debug") as file:
        threads = [
            threading.Thread(target=lambda: [logging.getLogger("x").debug("n") for _ in range(500)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(file.read_text().splitlines()) == 2000
