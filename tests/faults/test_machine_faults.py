"""The machine's faults: its clock jumps, its disk is full."""

from __future__ import annotations

import ast
import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moshi_server.client import AsrClient
from moshi_server.events import Flush, Word

from ..app.server import KEY, serve
from .conftest import Outage
from .faulty import FaultyRunner, speech
from .table import fault

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "moshi_server"
OF_THE_CALENDAR = {
    "log/file.py": "a new file at midnight",
    "app/access.py": "a token's own expiry",
    "app/openai/models.py": "OpenAI's `created`",
    "cli/token.py": "a token's own expiry",
    "engine/token_log.py": "names of files",
}
"""Who may ask what time it is; everybody else asks how much time has passed."""


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
@fault(
    "The clock jumps by a day",
    lost="nothing",
    noticed="nobody",
    within=5,
    said="nothing stops",
)
async def test_a_clock_that_jumps(jump: float, outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    words, pcm = speech()
    real, real_ns = time.time, time.time_ns
    async with (
        serve(FaultyRunner(4)) as server,
        AsrClient.connect(f"ws://127.0.0.1:{server.port}", api_key=KEY) as client,
    ):
        await client.send_audio(pcm[: len(pcm) // 2])
        got = await client.receive()
        outage.begins()
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + round(jump) * 10**9)
        await asyncio.sleep(0.3)  # timers that look at the wrong clock come due, or never
        await client.send_audio(pcm[len(pcm) // 2 :])
        await client.flush()
        while Flush() not in got:
            got += await client.receive()
        outage.ends()
        assert (await server.get("/api/health")).status_code == 200
    assert [event.text for event in got if isinstance(event, Word)] == words


def test_only_calendars_ask_what_time_it_is() -> None:
    asking = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"):
                asking.add(str(path.relative_to(SOURCE)))
    assert asking <= set(OF_THE_CALENDAR), "use time.monotonic(): this clock may jump"


@fault(
    "The disk of saved streams and of the quantized cache is full",
    lost="what would have been kept there",
    noticed="the log: a line for each",
    within=90,
    said="when there is room: at the next stream",
)
def test_a_disk_that_is_full(tmp_path: Path, outage: Outage) -> None:
    if not shutil.which("unshare"):
        pytest.skip("unshare (util-linux) is not here")
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("a small disk of our own needs root")
    outage.begins()
    mount = f"mount -t tmpfs -o size=16k tmpfs {tmp_path}"
    script = f"{mount} && exec {sys.executable} -m tests.faults.on_a_full_disk {tmp_path}"
    command = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    outage.ends()
    assert "tokens could not be written" in done.stderr
    assert "cannot be kept for the next start" in done.stderr
    assert "No space left on device" in done.stderr
