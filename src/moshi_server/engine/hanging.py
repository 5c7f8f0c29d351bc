"""Notices a model step that does not come back; it knows no model, and cannot end the step."""

from __future__ import annotations

import logging
from typing import Final

from ..errors import EngineFailedError
from .worker import Engine

logger = logging.getLogger(__name__)

LONGEST_LOOK: Final = 1.0
"""What one look may count for: if the watcher itself stood still, so perhaps did the step (a suspended machine)."""


class HangWatch:
    """Looks at one engine from time to time, and gives up on it once a step has been seen to run for too long.

    Args:
        engine: whose steps.
        seconds: how long one may take; 0 for ever.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._step: int | None = None
        self._seen = 0.0
        self._last = 0.0

    def look(self, now: float) -> None:
        """Look, at ``now`` (monotonic s). To be called more often than once a second."""
        step = self._engine.step_in_flight
        if step is None or step != self._step:
            self._step, self._seen = step, 0.0
        else:
            self._seen += min(now - self._last, LONGEST_LOOK)
        self._last = now
        if self._seconds and self._seen >= self._seconds and self._engine.status != "failed":
            self._engine.abandon(
                EngineFailedError(
                    f"a model step has not come back for {self._seconds:g} s",
                    hint="see what the device does (nvidia-smi, dmesg), then start the worker again; "
                    "step_timeout_seconds is the limit",
                )
            )
