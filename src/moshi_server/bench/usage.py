"""What processes take of the machine: the server's, where it is local, and our own; psutil if it is installed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .socket import is_local

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and its children: CPU as a multiple of one core, and the most memory (MB) that was resident."""

    cores: float
    cpu_seconds: float
    memory_mb: float


class ProcessWatch:
    """Watches a process from `start` on; call `look` now and then, for the memory."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._begun = time.monotonic()
        self._cpu_before = self._cpu()
        self._memory = 0
        self.look()

    def look(self) -> None:
        """Take the memory as it is now."""
        self._memory = max(self._memory, sum(each.memory_info().rss for each in self._family()))

    def usage(self) -> Usage | None:
        """Since `start`; None if the process has ended."""
        import psutil

        try:
            self.look()
            cpu = self._cpu() - self._cpu_before
        except psutil.Error:
            return None
        return Usage(cpu / max(1e-9, time.monotonic() - self._begun), cpu, self._memory / 2**20)

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> float:
        times = [each.cpu_times() for each in self._family()]
        return float(sum(each.user + each.system for each in times))


def watch_server(url: str, pid: int | None = None) -> ProcessWatch | None:
    """The process that serves ``url``, or has this ``pid``; None if it is elsewhere or hidden, or psutil missing."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        if pid is None:
            pid = _listener(url) if is_local(url) else None
        return None if pid is None else ProcessWatch(psutil.Process(pid))
    except psutil.Error:
        return None


def _listener(url: str) -> int | None:
    import psutil

    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return None if connection.pid is None else int(connection.pid)
    return None
