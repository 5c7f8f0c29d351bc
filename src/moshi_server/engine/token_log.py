"""What speech to text heard and wrote, as tokens, into files that upstream's tools read; it knows no model.

Two shapes, as upstream: `SessionLog` (type `Asr`) saves each stream when it ends, `PeriodicLog` (``log_frequency_s``)
saves whole batches, part by part. Files are written on a thread of their own, never on the model's.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from .asr import AsrOutput, SttRunner

logger = logging.getLogger(__name__)

MAX_STEPS: Final = 1_000_000
"""Steps of one stream, or between two writes, that are kept (22 hours); what comes after is left out."""
CLOSE_SECONDS: Final = 10.0
"""How long the last files may take to be written when the server ends."""

Codes = NDArray[np.int64]


class TokenLog(Protocol):
    """What is told of each stream, and of each step."""

    def begin(self, slot: int, caller: str) -> None:
        """A stream took this slot; on an event loop."""

    def end(self, slot: int) -> None:
        """It has left; on an event loop."""

    def step(self, slots: Sequence[int], tokens: Sequence[int], codes: Codes) -> None:
        """The token (n,) and the codes (n, K) of one step of these slots; on the model thread."""

    def close(self) -> None:
        """Write what is left, and end."""


class RecordingRunner:
    """An `SttRunner` whose steps are told to a `TokenLog`."""

    def __init__(self, runner: SttRunner, log: TokenLog) -> None:
        self._runner = runner
        self._log = log

    @property
    def slots(self) -> int:
        """How many streams have state here."""
        return self._runner.slots

    def reset(self, slots: Sequence[int]) -> None:
        """As the runner."""
        self._runner.reset(slots)

    def step(self, slots: Sequence[int], inputs: Sequence[Any]) -> list[AsrOutput]:
        """As the runner."""
        outputs = self._runner.step(slots, inputs)
        self._log.step(slots, [output.token for output in outputs], self._runner.last_codes(slots))
        return outputs

    def warmup(self) -> None:
        """As the runner; it is not recorded."""
        self._runner.warmup()


class _Stream:
    """The tokens of one stream so far."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.text = array("I")
        self.audio = array("I")


class SessionLog:
    """Saves each stream, when it ends, as ``{instance}-asr-{secs}-{us}.safetensors`` and ``.json``.

    The safetensors file holds what the language model was fed, the initial tokens first: ``text`` (1, T) u32 and
    ``audio`` (1, K, T) i64. The JSON file names the caller.

    Args:
        folder: where to; made if it is missing.
        instance: the server's name.
        slots: how many streams there are at most.
        start: the initial text token and code.
    """

    def __init__(self, folder: Path, instance: str, slots: int, start: tuple[int, int]) -> None:
        self._folder = folder
        self._instance = instance
        self._start = start
        self._streams: list[_Stream | None] = [None] * slots
        self._writer = _Writer(self._save)

    def begin(self, slot: int, caller: str) -> None:
        """A stream took this slot."""
        self._streams[slot] = _Stream(caller)

    def end(self, slot: int) -> None:
        """Have its tokens written."""
        stream, self._streams[slot] = self._streams[slot], None
        if stream is not None and stream.text:
            self._writer.put(stream)

    def step(self, slots: Sequence[int], tokens: Sequence[int], codes: Codes) -> None:
        """Keep one step."""
        for slot, token, row in zip(slots, tokens, codes.astype(np.uint32), strict=True):
            stream = self._streams[slot]
            if stream is not None and len(stream.text) < MAX_STEPS:
                stream.audio.frombytes(row.tobytes())
                stream.text.append(token)

    def close(self) -> None:
        """Write what is left, and end."""
        for slot in range(len(self._streams)):
            self.end(slot)
        self._writer.close()

    def _save(self, stream: _Stream) -> None:
        text_start, audio_start = self._start
        steps = len(stream.text)
        # The model is fed a step's token and codes at the next one; the first sees the initial ones.
        text = np.array([text_start, *stream.text[: steps - 1]], np.uint32)[None]
        heard = np.frombuffer(stream.audio.tobytes(), np.uint32).reshape(-1, len(stream.audio) // steps)[: steps - 1]
        audio = np.concatenate([np.full((1, heard.shape[1]), audio_start, np.uint32), heard]).T[None]
        base = self._folder / f"{self._instance}-asr-{_stamp()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        _write_json(base, {"auth_id": stream.caller or None})
        _write_tokens(f"{base}.safetensors", text, audio.astype(np.int64))


class PeriodicLog:
    """Saves whole batches every ``seconds``, as ``{instance}-asr-{secs}-{us}.{n}.safetensors``.

    It holds ``text`` (B, T) u32 and ``audio`` (B, K, T) u32, a column for each step; the codes of a slot that did not
    take part are 0, and its text token is its last one.

    Args:
        folder, instance, slots, start: as `SessionLog`.
        seconds: how often.
    """

    def __init__(self, folder: Path, instance: str, slots: int, start: tuple[int, int], seconds: float) -> None:
        self._folder = folder
        self._base = f"{instance}-asr-{_stamp()}"
        self._count = 0
        self._start = start
        self._tokens = np.full(slots, start[0], np.uint32)
        self._codes: NDArray[np.uint32] | None = None
        self._text: list[NDArray[np.uint32]] = []
        self._audio: list[NDArray[np.uint32]] = []
        self._fresh: set[int] = set(range(slots))
        self._lock = threading.Lock()
        self._writer = _Writer(self._save, every=seconds)

    def begin(self, slot: int, caller: str) -> None:
        """A stream took this slot: its first step sees the initial tokens."""
        with self._lock:
            self._fresh.add(slot)

    def end(self, slot: int) -> None:
        """Nothing: what it said is in the batches."""

    def step(self, slots: Sequence[int], tokens: Sequence[int], codes: Codes) -> None:
        """Keep one step of the batch."""
        if self._codes is None:
            self._codes = np.full((len(self._tokens), codes.shape[1]), self._start[1], np.uint32)
        rows = list(slots)
        with self._lock:
            fresh = [slot for slot in rows if slot in self._fresh]
            self._fresh.difference_update(fresh)
            self._tokens[fresh], self._codes[fresh] = self._start
            if len(self._text) < MAX_STEPS:
                heard = np.zeros_like(self._codes)
                heard[rows] = self._codes[rows]
                self._text.append(self._tokens.copy())
                self._audio.append(heard)
        self._tokens[rows] = tokens
        self._codes[rows] = codes

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()

    def _save(self, _: None) -> None:
        with self._lock:
            text, self._text = self._text, []
            audio, self._audio = self._audio, []
        if text:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = self._folder / f"{self._base}.{self._count}.safetensors"
            _write_tokens(str(name), np.stack(text, axis=-1), np.stack(audio, axis=-1))
            self._count += 1


class _Writer:
    """Calls ``save`` on a thread of its own: for each thing put in, or every so many seconds and once at the end."""

    def __init__(self, save: Callable[[Any], None], *, every: float | None = None) -> None:
        self._save = save
        self._every = every
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="token-log", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        self._queue.put(item)

    def close(self) -> None:
        self._queue.put(_CLOSE)
        self._thread.join(timeout=CLOSE_SECONDS)

    def _main(self) -> None:
        closing = False
        while not closing:
            try:
                item = self._queue.get(timeout=self._every)
            except queue.Empty:
                item = None
            closing = item is _CLOSE
            if closing and self._every is None:
                return
            try:
                self._save(None if closing else item)
            except Exception as error:
                logger.error("tokens could not be written: %s", error)


_CLOSE: Final = object()


def _stamp() -> str:
    nanoseconds = time.time_ns()
    return f"{nanoseconds // 10**9}-{nanoseconds % 10**9 // 1000}"


def _write_json(base: Path, fields: dict[str, Any]) -> None:
    Path(f"{base}.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _write_tokens(path: str, text: NDArray[Any], audio: NDArray[Any]) -> None:
    from safetensors.numpy import save_file

    save_file({"text": np.ascontiguousarray(text), "audio": np.ascontiguousarray(audio)}, path)
