"""How one record becomes a line: text for people, JSON for machines; it knows no file and no thread."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from typing import Any

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


class JsonFormatter(logging.Formatter):
    """One record, one JSON object on one line: ``time`` (ISO 8601, UTC), ``level``, ``target``, ``file``, ``line``,
    ``message``, ``traceback`` if there is one, and the record's pairs; a pair may not hide one of these.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without a newline at the end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.created * 1000) % 1000:03d}Z",
            "level": level_name(record.levelno),
            "target": record.name,
            "file": record.filename,
            "line": record.lineno,
            "message": record.getMessage(),
        }
        if record.exc_text:
            line["traceback"] = record.exc_text
        for key, value in getattr(record, "fields", {}).items():
            line[f"{key}_" if key in line else key] = _json_value(value)
        return json.dumps(line)  # ASCII, so that no byte of a client can break a line or a terminal


def _json_value(value: Any) -> Any:
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


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


def own_warning(message: str, **fields: Any) -> logging.LogRecord:
    """A line about logging itself."""
    record = logging.LogRecord("moshi_server.log", logging.WARNING, __file__, 0, message, None, None)
    record.fields = fields
    return record
