"""Who holds which slot, and who waits for one; it touches no tensor."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import deque


class SlotTable:
    """Slots 0 to ``total - 1``. The lowest free one is given first, so that those in use stay close together.

    Safe to call from any thread; those who wait are served in their order.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._lock = threading.Lock()
        self._waiters: deque[asyncio.Future[int]] = deque()

    @property
    def used(self) -> int:
        """How many slots are held."""
        return self.total - len(self._free)

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiters)

    def acquire(self) -> int | None:
        """A free slot, or None if there is none or others wait for it."""
        with self._lock:
            return heapq.heappop(self._free) if self._free and not self._waiters else None

    async def wait(self, seconds: float) -> int | None:
        """A free slot as soon as one is there, or None after ``seconds``."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._free and not self._waiters:
                return heapq.heappop(self._free)
            self._waiters.append(future)
        try:
            await asyncio.wait((future,), timeout=seconds)
        except asyncio.CancelledError:
            self._abandon(future)
            raise
        if future.done():
            return future.result()
        self._abandon(future)
        return None

    def _abandon(self, future: asyncio.Future[int]) -> None:
        with self._lock:
            if future in self._waiters:
                self._waiters.remove(future)
        if future.done():
            self.release(future.result())
        else:
            future.cancel()

    def release(self, slot: int) -> None:
        """Give a slot back, to the first who waits if anyone does."""
        with self._lock:
            heapq.heappush(self._free, slot)
            if self._waiters:
                future = self._waiters.popleft()
                granted = heapq.heappop(self._free)
                future.get_loop().call_soon_threadsafe(self._grant, future, granted)

    def _grant(self, future: asyncio.Future[int], slot: int) -> None:
        if future.done():
            self.release(slot)
        else:
            future.set_result(slot)
