"""How long things take to begin: a worker on the embedded model until it is ready, and the client's commands.

    python benchmarks/startup.py

Every start is a process of its own. The peers, started in turn with ours: Python alone, the WebSocket library that our
client uses, and torch, which the client must not pay for. Printed are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from moshi_server.app.worker import listen

PROGRAMS = {
    "python alone": ["-c", "pass"],
    "import websockets": ["-c", "import websockets.asyncio.client"],
    "import torch": ["-c", "import torch"],
    "import moshi_server.client": ["-c", "import moshi_server.client"],
    "moshi-server --help": ["-m", "moshi_server.cli", "--help"],
    "moshi-server transcribe --help": ["-m", "moshi_server.cli", "transcribe", "--help"],
    "moshi-server bench --help": ["-m", "moshi_server.cli", "bench", "--help"],
}


def program(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def worker() -> float:
    """Seconds from the start of a worker's process until it says that streams can be opened."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    command = [sys.executable, "-m", "moshi_server.cli", "worker", "--config", "demo"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--addr", "127.0.0.1", "--port", str(port), "--cpu", "--silent"], cwd=folder
        )
        try:
            while process.poll() is None and time.perf_counter() - start < 120:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
                        if answer.status == 200:
                            return time.perf_counter() - start
                except OSError:
                    pass
                time.sleep(0.01)
            raise SystemExit("the worker has not become ready")
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, arguments in PROGRAMS.items():
            times.setdefault(name, []).append(program(arguments))
        times.setdefault("worker --config demo, until ready", []).append(worker())
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        print(f"{name:36} {value:6.2f} s ({spread}), {value / medians['import torch']:.2f} of importing torch")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(medians, file, indent=1)


if __name__ == "__main__":
    main()
