"""Workers behind HAProxy, restarted one by one and killed under load: who is refused, what is lost, what comes back?

    python benchmarks/haproxy.py --phases steady rolling killed

`ops/haproxy/haproxy.cfg` itself (without TLS) before some workers on the embedded model. Clients of the SDK play short
recordings in real time, one after another, at most as many as the workers have slots when one of them is away: whoever
is refused is refused while a slot is free. *Rolling*: each worker gets SIGTERM, has a short time to drain, and is
started again. *Killed*: SIGKILL instead. Exit status 1 if somebody is refused, a session ends without its words, or a
word is missing or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from survive import Worker, differences, words_of

from moshi_server.audio import read_audio
from moshi_server.cli.configs import locate
from moshi_server.cli.demo import API_KEY, samples
from moshi_server.client import ConnectionLost, ConnectionResumed, ReconnectingAsrClient
from moshi_server.errors import MoshiServerError, NoFreeSlotError

CONFIGURATION = Path(__file__).parents[1] / "ops" / "haproxy" / "haproxy.cfg"


@dataclass
class Tally:
    """What the clients saw in one phase; ``longest`` is in seconds without a worker."""

    phase: str
    seconds: float = 0.0
    sessions: int = 0
    refused: int = 0
    given_up: int = 0
    lost: int = 0
    resumed: int = 0
    longest: float = 0.0
    words: int = 0
    wrong: int = 0
    asked_again: int = 0
    why: str = ""

    @property
    def good(self) -> bool:
        return self.sessions > 0 and not (self.refused or self.given_up or self.wrong)


def configured(text: str, folder: Path, port: int, workers: Sequence[int], tls: str = "") -> str:
    """The shipped configuration with these ports; ``tls`` is a certificate's path, or nothing for none."""
    bind = f"bind 127.0.0.1:{port}" + (f" ssl crt {tls} alpn http/1.1" if tls else "")
    text, found = re.subn(r"bind :443 ssl crt \S+ alpn http/1.1", bind, text)
    assert found == 1
    lines = [f"    server gpu{number} 127.0.0.1:{each}\n" for number, each in enumerate(workers)]
    text, found = re.subn(r"(    server gpu\d .*\n)+", "".join(lines), text)
    assert found == 1
    # As its comment asks: one try for each worker.
    text = re.sub(r"\n    retries \d+\n", f"\n    retries {max(1, len(workers) - 1)}\n", text)
    return text.replace("\nglobal\n", f"\nglobal\n    stats socket {folder}/haproxy.sock\n")


def asked_again(folder: Path) -> int:
    """How often HAProxy has tried another worker so far."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(f"{folder}/haproxy.sock")
        talk.sendall(b"show stat\n")
        said = b""
        while part := talk.recv(65536):
            said += part
    names, *rows = (line.split(",") for line in said.decode().removeprefix("# ").splitlines() if line)
    columns = names.index("svname"), names.index("wretr")
    return sum(int(row[columns[1]] or 0) for row in rows if row[columns[0]] == "BACKEND")


@dataclass
class Load:
    """Clients that go on until they are told to stop."""

    url: str
    whole: dict[Path, list[str]]
    tally: Tally
    stop: bool = False

    async def client(self, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0, 1))
        while not self.stop:
            path = chance.choice(sorted(self.whole))
            self.tally.sessions += 1
            try:
                await self.session(path)
            except NoFreeSlotError as error:
                self.tally.refused += 1
                self.tally.why = self.tally.why or str(error)
                await asyncio.sleep(0.2)
            except MoshiServerError as error:
                self.tally.given_up += 1
                self.tally.why = self.tally.why or f"{type(error).__name__}: {error}"

    async def session(self, path: Path) -> None:
        tally = self.tally

        def watch(event: object) -> None:
            if isinstance(event, ConnectionLost):
                tally.lost += 1
            elif isinstance(event, ConnectionResumed):
                tally.resumed += 1
                tally.longest = max(tally.longest, event.seconds)

        async with ReconnectingAsrClient.connect(self.url, api_key=API_KEY, timeout=15) as client:
            got = words_of(await client.transcribe(read_audio(path), realtime=True, on_event=watch))
        tally.words += len(self.whole[path])
        tally.wrong += sum(differences(self.whole[path], [text for text, _ in got]))


async def ended(worker: Worker, how: signal.Signals) -> None:
    """Send the signal, wait for the end, start its successor, wait until that is healthy."""
    process = worker._process
    assert process is not None
    process.send_signal(how)
    await asyncio.to_thread(process.wait, 60)
    worker.start()
    await worker.wait_healthy(150)


async def phase(name: str, workers: Sequence[Worker], load: Load, options: argparse.Namespace) -> None:
    """Run the clients through one phase."""
    before, begun = asked_again(options.folder), time.monotonic()
    chances = [random.Random(f"{options.seed} {name} {number}") for number in range(options.clients)]
    clients = [asyncio.create_task(load.client(chance)) for chance in chances]
    await asyncio.sleep(2.0)
    if name == "steady":
        await asyncio.sleep(options.seconds)
    else:
        for worker in workers[options.first :][: options.restarts]:
            await ended(worker, signal.SIGTERM if name == "rolling" else signal.SIGKILL)
            await asyncio.sleep(1.5)  # so that HAProxy has seen it
    load.stop = True
    await asyncio.gather(*clients)
    load.tally.seconds = time.monotonic() - begun
    load.tally.asked_again = asked_again(options.folder) - before


async def measure(options: argparse.Namespace, haproxy: str) -> list[Tally]:
    folder = options.folder
    config = folder / "worker.toml"
    text = locate(Path("demo")).read_text(encoding="utf-8")
    top = f"refuse_before_upgrade = true\nshutdown_grace_seconds = {options.drain}\n"
    config.write_text(top + text.replace("batch_size = 16", f"batch_size = {options.slots}"), encoding="utf-8")
    workers = [Worker(config, number) for number in range(options.workers)]
    front = Worker(config, -1).port
    cfg = folder / "haproxy.cfg"
    cfg.write_text(configured(CONFIGURATION.read_text(), folder, front, [worker.port for worker in workers]))
    proxy: subprocess.Popen[bytes] | None = None
    try:
        for worker in workers:
            worker.start()
        await asyncio.gather(*(worker.wait_healthy(150) for worker in workers))
        with (folder / "haproxy.log").open("wb") as log:
            proxy = subprocess.Popen([haproxy, "-db", "-f", cfg], stdout=log, stderr=log)  # noqa: ASYNC220
        url = f"ws://127.0.0.1:{front}"
        whole = {}
        for path in sorted(samples(), key=lambda path: len(read_audio(path)))[:2]:
            async with ReconnectingAsrClient.connect(workers[0].url, api_key=API_KEY) as client:
                whole[path] = [text for text, _ in words_of(await client.transcribe(path))]
        await asyncio.sleep(1.5)
        tallies = []
        for name in options.phases:
            load = Load(url, whole, Tally(name))
            await phase(name, workers, load, options)
            tallies.append(load.tally)
            print(told(load.tally), flush=True)
        return tallies
    finally:
        if proxy is not None:
            proxy.terminate()
            proxy.wait()
        for worker in workers:
            worker.kill()


def told(tally: Tally) -> str:
    text = (
        f"{tally.phase}: {tally.sessions} sessions in {tally.seconds:.0f} s, {tally.refused} refused,"
        f" {tally.given_up} ended without their words; {tally.lost} times a worker was lost, {tally.resumed} times"
        f" another took over, after {tally.longest:.1f} s at most; {tally.wrong} of {tally.words} words missing or"
        f" doubled; HAProxy asked again {tally.asked_again} times"
    )
    return text + (f" ({tally.why})" if tally.why else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--phases", nargs="+", choices=["steady", "rolling", "killed"], default=["steady", "rolling", "killed"]
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=4, help="of each worker")
    parser.add_argument("--clients", type=int, help="as many as all workers but one have slots, if not given")
    parser.add_argument("--drain", type=float, default=2.0, help="seconds a worker has to drain")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the steady phase")
    parser.add_argument("--restarts", type=int, help="so many workers are ended in a phase; all, if not given")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="keep the figures")
    options = parser.parse_args()
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if haproxy is None:
        raise SystemExit("haproxy is not installed (Debian: apt-get install haproxy)")
    options.clients = options.clients or (options.workers - 1) * options.slots
    print(
        f"{options.workers} workers of {options.slots} slots, {options.clients} clients, seed {options.seed}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        tallies = asyncio.run(measure(options, haproxy))
    if options.json:
        options.json.write_text(json.dumps([asdict(tally) for tally in tallies], indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not all(tally.good for tally in tallies))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
