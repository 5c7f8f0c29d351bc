"""How many GPUs, workers, proxies and Gbit/s do so many streams take, at what price? Arithmetic, with its inputs.

    python benchmarks/scaling.py --price 2.5
    python benchmarks/scaling.py --gpu-streams 750 --audio opus --streams 5000

The inputs are what docs/benchmarks.md measured; each can be given. What a frame weighs is measured here, with the real
encoders on a recording that comes with the package. Nothing is served: what it foretells of many machines was not run.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from moshi_server.audio import read_audio
from moshi_server.audio.opus import OpusEncoder
from moshi_server.cli.demo import samples
from moshi_server.events import Audio, OggOpus, Step
from moshi_server.protocol import asr, asr_client

FRAMES_A_SECOND = 12.5
FRAME = 1920
SEGMENT, SEGMENT_HEADERS = 1448, 66
"""What TCP carries in an Ethernet frame, and what Ethernet, IP and TCP add to it (bytes)."""


@dataclass(frozen=True)
class Inputs:
    """What the arithmetic starts from.

    Attributes:
        gpu_streams: that one GPU carries.
        cpu_seconds: of a worker's process, for 10 000 messages.
        opus_cpu_seconds: of the same, that decoding Opus takes beyond decoding samples (48 against 8 microseconds).
        core: how much of its one core a process is to use.
        used: share of all slots that is taken when the autoscaler is content.
        proxy_gbit: of a proxy's network card, each way; half of it is used.
        proxy_streams: that one proxy holds, two sockets each.
        proxy_cpu_seconds: of the proxy with TLS, for 10 000 messages and their answers.
        proxy_cores: that a proxy has; of each as much is used as of a worker's.
        cell: streams that share proxies and an autoscaler.
        price: of a GPU with its share of a machine, an hour.
    """

    gpu_streams: int = 1373
    cpu_seconds: float = 1.32
    opus_cpu_seconds: float = 0.4
    core: float = 0.7
    used: float = 0.7
    proxy_gbit: float = 10.0
    proxy_streams: int = 20_000
    proxy_cpu_seconds: float = 1.5
    proxy_cores: int = 16
    cell: int = 10_000
    price: float = 1.0


@dataclass(frozen=True)
class Fleet:
    """What so many streams take; Gbit/s from the clients, and how many cores their messages keep busy."""

    streams: int
    gpus: int
    workers: int
    cores: float
    proxy_cores: float
    gbit: float
    proxies: int
    cells: int
    price: float


def streams_a_process(inputs: Inputs) -> int:
    """How many streams one worker's process carries, whatever its GPU could."""
    return int(inputs.core * 10_000 / (inputs.cpu_seconds * FRAMES_A_SECOND))


def fleet(streams: int, inputs: Inputs, bytes_a_frame: float) -> Fleet:
    """The machines for ``streams`` at once, of which each sends ``bytes_a_frame`` on the wire every 80 ms."""
    gpus = math.ceil(streams / (inputs.gpu_streams * inputs.used)) if streams > 1 else 1
    workers = gpus * math.ceil(min(inputs.gpu_streams, streams) / streams_a_process(inputs))
    cells = math.ceil(streams / inputs.cell)
    each = bytes_a_frame * FRAMES_A_SECOND * 8e-9
    a_core = inputs.core * 10_000 / (inputs.proxy_cpu_seconds * FRAMES_A_SECOND)
    proxy = int(min(inputs.proxy_streams, inputs.proxy_gbit / 2 / each, inputs.proxy_cores * a_core))
    in_a_cell = math.ceil(math.ceil(streams / cells) / proxy)
    # One more in each cell than it needs, so that one may fail; a single worker needs none.
    proxies = cells * (in_a_cell + 1) if workers > 1 else 0
    busy = streams * FRAMES_A_SECOND / 10_000
    cores, proxy_cores = busy * inputs.cpu_seconds, busy * inputs.proxy_cpu_seconds if proxies else 0.0
    return Fleet(streams, gpus, workers, cores, proxy_cores, streams * each, proxies, cells, gpus * inputs.price)


def on_the_wire(payload: int, *, masked: bool) -> float:
    """Bytes of a message, with the headers of WebSocket, TCP, IP and Ethernet; without TLS, which adds some 30."""
    size = payload + (2 if payload < 126 else 4) + (4 if masked else 0)
    return size + math.ceil(size / SEGMENT) * SEGMENT_HEADERS


def weights() -> dict[str, float]:
    """Bytes on the wire for each frame: ``pcm`` and ``opus`` from the client, ``step`` from the server."""
    pcm = read_audio(next(path for path in samples() if path.suffix == ".wav"))
    frames = [pcm[at : at + FRAME] for at in range(0, len(pcm) - FRAME, FRAME)]
    encoder = OpusEncoder()
    encoder.header()
    opus = [len(asr_client.encode(OggOpus(encoder.encode(frame)))) for frame in frames]
    return {
        "pcm": on_the_wire(len(asr_client.encode(Audio(frames[0]))), masked=True),
        "opus": float(np.mean([on_the_wire(size, masked=True) for size in opus])),
        "step": on_the_wire(len(asr.encode(Step(1000, (0.1, 0.2, 0.3, 0.4), 0))), masked=False),
    }


def table(counts: list[int], inputs: Inputs, bytes_a_frame: float) -> list[str]:
    """The fleets as rows of a table."""
    made = [
        "| streams | GPUs | workers | cores busy there | from clients | proxies | cores busy there | cells | price |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count in counts:
        it = fleet(count, inputs, bytes_a_frame)
        gbit = f"{rounded(it.gbit)} Gbit/s" if it.gbit >= 1 else f"{rounded(it.gbit * 1000)} Mbit/s"
        row = f"{count:,} | {it.gpus:,} | {it.workers:,} | {rounded(it.cores)} | {gbit} | {it.proxies:,}"
        made.append(f"| {row} | {rounded(it.proxy_cores)} | {it.cells:,} | {it.price:,.0f} |".replace(",", " "))
    return made


def rounded(value: float) -> str:
    """Two digits, or as many as are before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 100, 10_000, 1_000_000])
    parser.add_argument("--audio", choices=["pcm", "opus"], default="pcm")
    for name, default in vars(Inputs()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    counts, audio = options.pop("streams"), options.pop("audio")
    if audio == "opus":
        options["cpu_seconds"] += options["opus_cpu_seconds"]
    inputs, bytes_a_frame = Inputs(**options), weights()
    for name, size in bytes_a_frame.items():
        print(f"{name}: {size:.0f} bytes a frame, {size * FRAMES_A_SECOND * 8 / 1000:.1f} kbit/s")
    print(f"a process carries {streams_a_process(inputs)} streams")
    print("\n".join(table(counts, inputs, bytes_a_frame[audio])))


if __name__ == "__main__":
    main()
