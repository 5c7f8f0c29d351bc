"""A network that loses, delays and stops: packets between two addresses of this machine pass through this process.

They enter by a TUN device; source and destination are exchanged, so that this machine's own TCP receives what it sent,
as if from another machine (the checksums do not change). It needs root and a network namespace: `unshare -n`.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

HERE, THERE = "10.94.0.1", "10.94.0.2"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


class LossyLink:
    """Packets to `THERE` come back to `HERE` late, or never.

    Attributes:
        loss: the share of packets that vanish, each way.
        delay: seconds, each way; and by how much it may differ.
        up: whether anything passes at all.
    """

    def __init__(self, seed: int = 0) -> None:
        self.loss = 0.0
        self.delay = (0.0, 0.0)
        self.up = True
        self.passed = self.lost = 0
        self._chance = random.Random(seed)
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH14x", b"lossy", IFF_TUN | IFF_NO_PI))
        for line in ("link set lo up", "link set lossy up", f"addr add {HERE}/24 dev lossy"):
            subprocess.run(["ip", *line.split()], check=True)
        threading.Thread(target=self._relay, daemon=True).start()

    def _relay(self) -> None:
        under_way: list[tuple[float, int, bytes]] = []
        number = 0
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            if select.select([self._tun], [], [], wait)[0]:
                packet = os.read(self._tun, 65536)
                if packet[0] >> 4 == 4:
                    if not self.up or self._chance.random() < self.loss:
                        self.lost += 1
                    else:
                        mean, spread = self.delay
                        due = time.monotonic() + mean + self._chance.uniform(-spread, spread)
                        number += 1
                        back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                        heapq.heappush(under_way, (due, number, back))
            while under_way and under_way[0][0] <= time.monotonic():
                self.passed += 1
                os.write(self._tun, heapq.heappop(under_way)[2])
