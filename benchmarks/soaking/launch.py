"""`moshi-server`; at each SIGUSR1 it writes its asyncio tasks, counted by name, to the file that SOAK_TASKS names."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType


def count(_signal: int, _frame: FrameType | None) -> None:
    """Runs in the main thread, where the loop is, between two of its steps."""
    names: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        work = task.get_coro()
        names[getattr(work, "__qualname__", type(work).__name__)] += 1
    path = Path(os.environ["SOAK_TASKS"])
    path.with_suffix(".new").write_text(json.dumps(names))
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    from moshi_server.cli import main

    signal.signal(signal.SIGUSR1, count)
    main()
