"""The server that `soak.py` runs against: its configuration, its process, and what can be read of both from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the tests' small checkpoints

from tests.dialogue_checkpoint import dialogue_toml, write_dialogue  # noqa: E402
from tests.golden import mimi_spec  # noqa: E402
from tests.speaking import py_module, write_candle, write_package  # noqa: E402

from moshi_server.cli.configs import locate  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402

KEY = "a_key_for_the_soak"
EXAMPLES = ROOT / "examples" / "scripts"
SLOTS = {"asr": 6, "single": 3, "loud": 3, "tts": 3, "tones": 3, "speak": 2, "lm": 3}
LIMITS = (
    "idle_timeout_seconds = 20.0\nmessage_timeout_seconds = 20.0\nsend_timeout_seconds = 4.0\npost_wait_seconds = 20.0"
)
SCRIPTS = f"""
[modules.loud]
type = "PyBatchedAsr"
path = "/api/loud"
script = "{EXAMPLES / "asr_loudness.py"}"
batch_size = {SLOTS["loud"]}
text_tokenizer_file = "demo://tokenizer.model"
asr_delay_in_tokens = 1
[modules.loud.py]
threshold = 0.02
[modules.tones]
type = "Py"
path = "/api/tones"
script = "{EXAMPLES / "tts_tones.py"}"
batch_size = {SLOTS["tones"]}
text_tokenizer_file = "demo://tokenizer.model"
text_bos_token = 1
[modules.spectrum]
type = "PyPost"
path = "/api/spectrum"
script = "{EXAMPLES / "post_spectrum.py"}"
"""
ROOMS = """
[modules.rooms]
type = "Mimi"
send_path = "/api/room-send"
recv_path = "/api/room-recv"
audio_tokenizer_file = "{file}"
rooms = ["red", "green", "blue"]
default_room = "red"
"""


def write_config(folder: Path) -> Path:
    """Every module type in one file, on the embedded model, the examples' scripts and small random checkpoints."""
    for name in ("package", "candle", "dialogue"):
        (folder / name).mkdir()
    torch.manual_seed(0)
    write_package(folder / "package")
    spoken = write_candle(folder / "candle").replace("modules.tts", "modules.speak").replace("/api/tts", "/api/speak")
    talk = dialogue_toml(write_dialogue(folder / "dialogue"))
    write_mimi(folder / "rooms.safetensors", mimi_spec.SMALL, seed=mimi_spec.SEED)
    hearing = locate(Path("demo")).read_text()
    hearing = hearing[hearing.index("[modules.asr]") :].replace("batch_size = 16", f"batch_size = {SLOTS['asr']}")
    single = hearing.replace("modules.asr", "modules.single").replace('"BatchedAsr"', '"Asr"')
    single = single.replace("/api/asr-streaming", "/api/asr").replace(f"= {SLOTS['asr']}\n", f"= {SLOTS['single']}\n")
    text = "\n".join(
        (
            f'static_dir = "static"\nlog_dir = "{folder / "logs"}"\ninstance_name = "soak"\nauthorized_ids = ["{KEY}"]',
            "shutdown_grace_seconds = 5.0",
            hearing,
            single,
            SCRIPTS,
            py_module(folder / "package", batch_size=SLOTS["tts"]),
            spoken,
            talk[talk.index("[modules.lm]") :],
            ROOMS.format(file=folder / "rooms.safetensors"),
        )
    )
    path = folder / "soak.toml"
    path.write_text(re.sub(r'^(type = "(?:Asr|BatchedAsr|Py\w*|Tts|Lm|Mimi)")$', rf"\1\n{LIMITS}", text, flags=re.M))
    return path


@dataclass(frozen=True)
class Sample:
    """A process at one time: seconds since the start, resident bytes, open files, threads, tasks; the system load."""

    seconds: float
    rss: int
    files: int
    threads: int
    tasks: int = 0
    load: float = 0.0


class Server:
    """A worker as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.output = folder / "output"
        self._tasks = folder / "tasks.json"
        command = [
            sys.executable,
            str(Path(__file__).with_name("launch.py")),
            "worker",
            "--config",
            str(write_config(folder)),
            "--cpu",
        ]
        command += ["--addr", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "default"}
        environment["SOAK_TASKS"] = str(self._tasks)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        self._begun = time.monotonic()
        self._wait_ready()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _wait_ready(self) -> None:
        while time.monotonic() - self._begun < 120 and self.process.poll() is None:
            try:
                if json.loads(self.read("/api/health"))["status"] == "ok":
                    return
            except OSError:
                pass
            time.sleep(0.2)
        self.process.kill()
        raise SystemExit(f"the server has not started:\n{self.output.read_text()[-3000:]}")

    def read(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=20) as answer:
            return answer.read().decode()

    def used(self) -> dict[str, int]:
        """Slots in use, by module."""
        return {each["name"]: each["used_slots"] for each in json.loads(self.read("/api/status"))["modules"]}

    def metrics(self) -> dict[str, float]:
        """Every sample of the exposition, by its name with labels."""
        rows = (line.rsplit(" ", 1) for line in self.read("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def tasks(self) -> dict[str, int]:
        """The asyncio tasks there are, by what they run."""
        self._tasks.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        for _ in range(1000):
            if self._tasks.exists():
                counted: dict[str, int] = json.loads(self._tasks.read_text())
                return counted
            time.sleep(0.01)
        raise SystemExit("the server's loop does not come round to count its tasks")

    def sample(self) -> Sample:
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return Sample(
            time.monotonic() - self._begun,
            int(status["VmRSS"].split()[0]) * 1024,
            len(os.listdir(proc / "fd")),
            int(status["Threads"]),
            sum(self.tasks().values()),
            os.getloadavg()[0],
        )

    def complaints(self) -> list[str]:
        """Lines that no client, however rude, may cause."""
        bad = re.compile(
            r"Traceback| ERROR | CRITICAL |Exception in|never retrieved|never awaited|ResourceWarning|bug of ours"
        )
        lines = {line for path in self._logs() for line in path.read_text(errors="replace").splitlines()}
        return sorted(line for line in lines if bad.search(line))

    def _logs(self) -> list[Path]:
        return [self.output, *(path for path in (self.folder / "logs").glob("log.soak*"))]

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
