"""Times Mimi's encoding of one 80 ms frame, ours against the `moshi` package, in turn within one process.

    python benchmarks/mimi_step.py

Run it where `moshi` 0.2.13 is installed beside torch (as for tests/golden), and llvmlite for the fast kernels. Both get
the same seeded weights of the published shape in f32 and the same noise, and the codes are compared first. Then ours
alone: how the cost grows with the active streams, and whether slots that are configured but idle cost anything. Blocks
are timed in turn; printed are medians and ratios. Absolute times mean nothing from one machine to the next.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from moshi.models import loaders  # noqa: E402

from moshi_server.engine.cpu import keep_freed_memory  # noqa: E402
from moshi_server.model.mimi import Mimi  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402
from moshi_server.model.weights_mimi import load_mimi  # noqa: E402

FRAME = 1920
Step = Callable[[torch.Tensor], torch.Tensor]


def ours(mimi: Mimi, streams: int, slots: int) -> Step:
    state, index = mimi.init_encoder_state(slots), torch.arange(streams)

    @torch.inference_mode()
    def step(pcm: torch.Tensor) -> torch.Tensor:
        return mimi.encode_step(pcm, state, index)

    return step


def theirs(path: Path, codebooks: int, streams: int) -> Step:
    mimi = loaders.get_mimi(path, num_codebooks=codebooks)
    mimi.streaming_forever(streams)

    @torch.inference_mode()
    def step(pcm: torch.Tensor) -> torch.Tensor:
        return mimi.encode(pcm[:, None])[..., 0]

    return step


def milliseconds(step: Step, streams: int, options: argparse.Namespace) -> float:
    clock = time.thread_time if options.cpu_time else time.perf_counter
    times = []
    for _ in range(options.frames):
        pcm = 0.1 * torch.randn(streams, FRAME)
        start = clock()
        step(pcm)
        times.append(clock() - start)
    return float(np.median(times)) * 1000


def compare(name: str, first: tuple[Step, int], second: tuple[Step, int], options: argparse.Namespace) -> None:
    for step, streams in (first, second):
        milliseconds(step, streams, options)
    pairs = [(milliseconds(*first, options), milliseconds(*second, options)) for _ in range(options.blocks)]
    ratios = sorted(a / b for a, b in pairs)
    a, b = np.median(pairs, axis=0)
    print(f"{name}: {a:.1f} ms, {b:.1f} ms; ratio {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def same_codes(first: Step, second: Step, frames: int) -> float:
    """The share of equal codes over noise that grows louder."""
    torch.manual_seed(0)
    inputs = [0.01 * (index + 1) * torch.randn(1, FRAME) for index in range(frames)]
    return float(torch.stack([first(pcm) == second(pcm) for pcm in inputs]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codebooks", type=int, default=32, help="the 1B model hears all 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--frames", type=int, default=10, help="of each block")
    parser.add_argument("--cpu-time", action="store_true", help="not of the clock, on a busy machine; one thread only")
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time counts one thread: add --threads 1")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mimi.safetensors"
        write_mimi(path)
        mimi = load_mimi(path, num_codebooks=options.codebooks, decoder=False)
        peer = theirs(path, options.codebooks, 1)
        share = same_codes(ours(mimi, 1, 1), theirs(path, options.codebooks, 1), 30)
        print(f"{options.codebooks} codebooks, f32, {options.threads} threads; equal codes over 30 frames: {share:.2%}")
        one = ours(mimi, 1, 1)
        compare("one stream, ours and the moshi package", (one, 1), (peer, 1), options)
        compare("8 active streams, then one", (ours(mimi, 8, 8), 8), (one, 1), options)
        compare("1 active of 64 slots, then 1 of 1", (ours(mimi, 1, 64), 1), (one, 1), options)


if __name__ == "__main__":
    main()
