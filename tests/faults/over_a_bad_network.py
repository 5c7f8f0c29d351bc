"""One scenario over a bad network: `unshare -n python -m tests.faults.over_a_bad_network lossy`.

Real-time streams of a client that reconnects, over the kernel's TCP; prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from moshi_server.app.module import ClientLimits
from moshi_server.client import ConnectionLost, ConnectionResumed, Reconnect, ReconnectingAsrClient
from moshi_server.events import Step

from ..app.server import KEY, serve, until
from ..client.cutting import wire
from .faulty import speech
from .lossy import HERE, THERE, LossyLink


async def run(scenario: str) -> dict[str, object]:
    link = LossyLink(seed=7)
    words, pcm = speech()
    how = Reconnect(first_seconds=0.05, give_up_seconds=20, stall_seconds=1.0 if scenario == "gone" else 20.0)
    async with serve(limits=ClientLimits(idle_seconds=2.0)) as one, serve() as two, wire(one.port, HERE) as far:
        urls = [f"ws://{THERE}:{far.port}", f"ws://127.0.0.1:{two.port}"]
        late: list[float] = []
        lost: list[str] = []
        resumed: list[float] = []
        begun = down = normal = 0.0

        def watch(event: object) -> None:
            nonlocal normal
            now = time.monotonic()
            match event:
                case ConnectionLost(reason=reason):
                    lost.append(str(reason))
                case ConnectionResumed(seconds=seconds):
                    resumed.append(seconds)
                case Step(step_idx=index):
                    late.append(now - begun - index * 0.08)
                    if down and not normal and now > down + 1.2 and late[-1] < 0.5:
                        normal = now - down

        async def trouble() -> None:
            nonlocal down
            await asyncio.sleep(2)
            if scenario in ("interrupted", "gone"):
                down = time.monotonic()
                link.up = False
            if scenario == "interrupted":
                await asyncio.sleep(1.2)
                link.up = True

        if scenario == "lossy":
            link.loss, link.delay = 0.05, (0.04, 0.02)
        async with ReconnectingAsrClient.connect(urls, api_key=KEY, reconnect=how) as client:
            begun = time.monotonic()
            troubling = asyncio.create_task(trouble())
            transcript = await client.transcribe(pcm, realtime=True, on_event=watch)
            await troubling
        if scenario == "gone":  # nobody told the first server
            await until(lambda: not one.engines[0].slots_used, 10)
        return {
            "right": [word.text for word in transcript.words] == words,
            "losses": lost,
            "resumed": resumed,
            "latest": max(late),
            "normal": normal,
            "packets": [link.passed, link.lost],
            "slots": one.engines[0].slots_used,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1]))))
