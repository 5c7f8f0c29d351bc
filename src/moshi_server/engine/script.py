"""A user's Python script in the model thread: loaded, called, watched; it knows no contract beyond ``init``.

A script shares this process. What it raises becomes a `ScriptError` that names its line; a call that does not come back
is noticed from outside, so that the module's clients learn of it and other modules go on.
"""

from __future__ import annotations

import importlib.util
import linecache
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from ..errors import ScriptError

LOOKS_PER_TIMEOUT: Final = 8
"""How often, within the time that a call may take, somebody looks whether it has come back."""


class Script:
    """One module's script. Every method but `close` is called on the model thread.

    Args:
        path: the Python file.
        module: the name of the server's module that it serves.
        seconds: how long a call of the script's object may take; ``init`` may take as long as it likes.
        methods: what the object that ``init`` returns must have.
    """

    def __init__(self, path: Path, module: str, *, seconds: float, methods: tuple[str, ...]) -> None:
        self.path = path
        self.on_hang: Callable[[ScriptError], None] = lambda error: None
        self._name = f"moshi_server_script_{module}"
        self._seconds = seconds
        self._methods = methods
        self._object: Any = None
        self._call: tuple[str, float, int] | None = None
        self._closed = threading.Event()

    def init(self, *arguments: Any) -> None:
        """Run the file, then its ``init``.

        Raises:
            ScriptError: the file, ``init``, or what it returns is not what is needed.
        """
        try:
            module = self._load()
            init = getattr(module, "init", None)
            if not callable(init):
                raise self._error("it has no function init", hint="docs/scripts.md says what a script must have")
            self._object = init(*arguments)
        except ScriptError:
            raise
        except BaseException as error:
            raise self._raised(error, "it cannot be started") from error
        missing = [name for name in self._methods if not callable(getattr(self._object, name, None))]
        if missing:
            kind = type(self._object).__name__
            raise self._error(
                f"init returned a {kind} without {' and '.join(missing)}", hint="docs/scripts.md shows each contract"
            )
        threading.Thread(target=self._watch, name=f"watch-{self._name}", daemon=True).start()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the script's object.

        Raises:
            ScriptError: it raised.
        """
        self._call = (method, time.monotonic(), threading.get_ident())
        try:
            return getattr(self._object, method)(*arguments)
        except BaseException as error:  # sys.exit() of a script is no end of the server's
            raise self._raised(error, f"{method} failed") from error
        finally:
            self._call = None

    def wrong(self, what: str) -> ScriptError:
        """The error of a script that gave something that its contract does not allow."""
        return self._error(what, hint="docs/scripts.md says what each array may hold")

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _load(self) -> Any:
        spec = importlib.util.spec_from_file_location(self._name, self.path)
        if spec is None or spec.loader is None:
            raise self._error("it is no Python file", hint="script must name a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[self._name] = module  # dataclasses, pickle and the like look their module up
        try:
            spec.loader.exec_module(module)
        except FileNotFoundError as error:
            if error.filename == str(self.path):
                raise self._error("it is not there") from None
            raise
        return module

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds / LOOKS_PER_TIMEOUT):
            call = self._call
            if call is None or time.monotonic() - call[1] < self._seconds:
                continue
            method, _, thread = call
            line = _line_of_frame(sys._current_frames().get(thread), str(self.path))
            where = f", line {line}" if line else ""
            self.on_hang(
                ScriptError(
                    f"script {self.path.name}{where}: {method} has not come back for {self._seconds:g} s",
                    hint="raise script_timeout_seconds if it needs so long; the worker must be started anew",
                )
            )
            return

    def _error(self, what: str, *, hint: str = "") -> ScriptError:
        return ScriptError(f"script {self.path.name}: {what}", hint=hint)

    def _raised(self, error: BaseException, what: str) -> ScriptError:
        line = _line_of_traceback(error.__traceback__, str(self.path))
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            line = error.lineno
        where = f", line {line}" if line else ""
        reason = " ".join(str(error).split())
        hint = linecache.getline(str(self.path), line).strip() if line else ""
        return ScriptError(
            f"script {self.path.name}{where}: {what}: {type(error).__name__}{': ' if reason else ''}{reason}",
            hint=f"the line is: {hint}" if hint else "",
        )


def _line_of_traceback(traceback: TracebackType | None, path: str) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _line_of_frame(frame: FrameType | None, path: str) -> int | None:
    while frame is not None:
        if frame.f_code.co_filename == path:
            return frame.f_lineno
        frame = frame.f_back
    return None
