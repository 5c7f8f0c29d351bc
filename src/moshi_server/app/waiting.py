"""Several coroutines of which the first that ends decides; it knows nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run these together until one ends, cancel the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        for task in tasks:
            if task in done:
                task.result()
    finally:
        # What is raised holds this frame, and a task holds what it raised: without this they would keep each other,
        # and all that the coroutines held, until the garbage collector comes.
        tasks.clear()
        done.clear()
        del task
