"""Times one 80 ms frame of speech to text, ours against the `moshi` package, in turn within one process.

    python benchmarks/stt_step.py --shape stt-1b-en_fr --streams 1 4

Run it where `moshi` 0.2.13 is installed beside torch (as for tests/golden). Both get the same seeded weights of the
published shape in f32 and the same noise. Blocks are timed in turn, so that a machine whose speed drifts drifts for
both. Printed are the medians and their ratio; absolute times mean nothing from one machine to the next.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from moshi.models import LMGen, loaders  # noqa: E402
from tests.golden.lm import upstream_model  # noqa: E402

from moshi_server.model.mimi import Mimi  # noqa: E402
from moshi_server.model.stt import SttModel  # noqa: E402
from moshi_server.model.synthetic import SHAPES  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402
from moshi_server.model.weights import load_lm  # noqa: E402
from moshi_server.model.weights_mimi import load_mimi  # noqa: E402

Step = Callable[[torch.Tensor], Any]


def ours(mimi: Mimi, lm: Any, streams: int) -> Step:
    model = SttModel(mimi, lm)
    state, slots = model.init_state(streams), torch.arange(streams)
    return lambda pcm: model.step(pcm, state, slots)


def theirs(mimi: Any, lm: Any, streams: int) -> Step:
    generator = LMGen(lm, use_sampling=False)
    mimi.streaming_forever(streams)
    generator.streaming_forever(streams)
    return lambda pcm: generator.step_with_extra_heads(mimi.encode(pcm[:, None]))


def median_ms(step: Step, streams: int, frames: int) -> float:
    times = []
    for _ in range(frames):
        pcm = 0.1 * torch.randn(streams, 1920)
        start = time.perf_counter()
        step(pcm)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="stt-1b-en_fr")
    parser.add_argument("--layers", type=int, help="fewer layers than published, for a quick look")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks of ten frames")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = SHAPES[options.shape]
    if options.layers:
        import dataclasses

        spec = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, num_layers=options.layers))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder)
        write_mimi(path / "mimi.safetensors")
        their_lm = upstream_model(spec, folder)
        our_lm = load_lm(path / "model.safetensors", spec, dtype=torch.float32)
        our_mimi = load_mimi(path / "mimi.safetensors", num_codebooks=spec.audio_codebooks, decoder=False)
        for streams in options.streams:
            their_mimi = loaders.get_mimi(path / "mimi.safetensors", num_codebooks=spec.audio_codebooks)
            steps = {"ours": ours(our_mimi, our_lm, streams), "moshi": theirs(their_mimi, their_lm, streams)}
            for step in steps.values():
                median_ms(step, streams, 10)
            pairs = [
                {name: median_ms(step, streams, 10) for name, step in steps.items()} for _ in range(options.blocks)
            ]
            ratios = sorted(pair["ours"] / pair["moshi"] for pair in pairs)
            print(
                f"{options.shape}, {spec.transformer.num_layers} layers, f32, {streams} streams, "
                f"{options.threads} threads: ours {np.median([pair['ours'] for pair in pairs]):.0f} ms, "
                f"moshi {np.median([pair['moshi'] for pair in pairs]):.0f} ms a frame; "
                f"ratio {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
            for part in (their_mimi, their_lm):
                part._stop_streaming() if hasattr(part, "_stop_streaming") else None


if __name__ == "__main__":
    main()
