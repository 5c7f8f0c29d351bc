"""Layers in 8 and 4 bits on a CPU: speed against the `moshi` package in turn, memory, and how near to f32 they stay.

    python benchmarks/quantize.py --streams 1 2 --threads 2

Run it where `moshi` 0.2.13 is installed beside torch (as for tests/golden); it wants 8 GB, and 4 GB of disk.
The checkpoint is seeded noise of the published shape. A frame is Mimi's encoder and the language model, with rings of
keys and values that are full. Blocks of frames are timed in turn, so that a machine whose speed drifts drifts for all;
printed are medians, the least, and the ratio to the package in f32. Peak memory is that of a process of its own that
loads and steps one stream. Absolute times mean nothing on another machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from moshi_server.engine.cpu import keep_freed_memory  # noqa: E402
from moshi_server.model.lm import LmSpec  # noqa: E402
from moshi_server.model.quantize import Quantize, best_kernel  # noqa: E402
from moshi_server.model.quantize_cache import convert_quantized  # noqa: E402
from moshi_server.model.stt import SttModel  # noqa: E402
from moshi_server.model.synthetic import SHAPES, write_lm  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402
from moshi_server.model.weights import load_lm  # noqa: E402
from moshi_server.model.weights_mimi import load_mimi  # noqa: E402

KINDS: tuple[Quantize, ...] = get_args(Quantize)
FRAMES = 5
"""In one block."""

Step = Callable[[torch.Tensor], Any]


def prepare(folder: Path, spec: LmSpec) -> None:
    """The checkpoint, Mimi, and the checkpoint in each kind, unless they are there."""
    model = folder / "model.safetensors"
    if not model.exists():
        write_lm(model, spec, naming="pytorch", dtype=torch.bfloat16)
        write_mimi(folder / "mimi.safetensors")
    for kind in KINDS:
        if not (folder / f"{kind}.safetensors").exists():
            start = time.perf_counter()
            done = convert_quantized(model, folder / f"{kind}.safetensors", kind)
            spent = time.perf_counter() - start
            print(f"{kind}: {done.bytes_before / 1e6:.0f} MB became {done.bytes_after / 1e6:.0f} MB in {spent:.0f} s")


def ours(folder: Path, spec: LmSpec, kind: Quantize) -> SttModel:
    lm = load_lm(folder / f"{kind}.safetensors", spec, dtype=torch.float32, kind=kind)
    mimi = load_mimi(folder / "mimi.safetensors", num_codebooks=spec.audio_codebooks, decoder=False)
    return SttModel(mimi, lm)


def our_step(model: SttModel, streams: int) -> Step:
    state, slots = model.init_state(streams), torch.arange(streams)
    state["lm"]["transformer"]["position"].fill_(10 * model.lm.spec.transformer.context)  # type: ignore[index,call-overload,union-attr]
    return lambda pcm: model.step(pcm, state, slots)


def their_model(folder: Path, spec: LmSpec) -> Any:
    from moshi.models import loaders
    from tests.golden.lm import upstream_config

    path = folder / "model.safetensors"
    return loaders.get_moshi_lm(path, lm_kwargs=upstream_config(spec), device="cpu", dtype=torch.float32)


def their_step(folder: Path, spec: LmSpec, lm: Any, streams: int) -> Step:
    from moshi.models import LMGen, loaders

    mimi = loaders.get_mimi(folder / "mimi.safetensors", num_codebooks=spec.audio_codebooks)
    generator = LMGen(lm, use_sampling=False)
    mimi.streaming_forever(streams)
    generator.streaming_forever(streams)
    return lambda pcm: generator.step_with_extra_heads(mimi.encode(pcm[:, None]))


def block(step: Step, streams: int) -> list[float]:
    times = []
    for _ in range(FRAMES):
        pcm = 0.1 * torch.randn(streams, 1920)
        start = time.perf_counter()
        step(pcm)
        times.append(1000 * (time.perf_counter() - start))
    return times


def speed(folder: Path, spec: LmSpec, streams: list[int], blocks: int) -> None:
    models = {kind: ours(folder, spec, kind) for kind in KINDS}
    their_lm = their_model(folder, spec)
    print(f"{'streams':>7} {'':10} {'ms median':>9} {'least':>6} {'of moshi':>8}  (over blocks)   of 80 ms")
    for count in streams:
        steps: dict[str, Step] = {"moshi f32": their_step(folder, spec, their_lm, count)}
        steps |= {kind: our_step(model, count) for kind, model in models.items()}
        times: dict[str, list[list[float]]] = {name: [] for name in steps}
        for step in steps.values():
            block(step, count)
        for _ in range(blocks):
            for name, step in steps.items():
                times[name].append(block(step, count))
        base = [np.median(each) for each in times["moshi f32"]]
        for name, found in times.items():
            ratios = sorted(np.median(each) / one for each, one in zip(found, base, strict=True))
            held = np.mean([value < 80 for each in found for value in each])
            print(
                f"{count:7} {name:10} {np.median(found):9.1f} {np.min(found):6.1f} {np.median(ratios):8.2f}  "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})  {100 * held:3.0f} % within",
                flush=True,
            )
        their_lm._stop_streaming() if hasattr(their_lm, "_stop_streaming") else None


def quality(folder: Path, spec: LmSpec, frames: int) -> None:
    """Both fed the same tokens: how far logits are off, relative to their size about the mean, and the same choices."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, spec.text_in_vocab_size, (frames, 1), generator=generator)
    audio = torch.randint(0, spec.audio_vocab_size, (frames, 1, spec.audio_codebooks), generator=generator)

    def logits(file: str, kind: Quantize | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        lm = load_lm(folder / file, spec, dtype=dtype, kind=kind)
        state, slots = lm.init_state(1), torch.arange(1)
        return torch.cat([lm.step(text[n], audio[n], state, slots)[0] for n in range(frames)])

    exact = logits("model.safetensors", None)
    gc.collect()
    size = (exact - exact.mean(-1, keepdim=True)).norm()
    for kind in KINDS:
        found = logits(f"{kind}.safetensors", kind)
        same = (found.argmax(-1) == exact.argmax(-1)).float().mean()
        near = (found.argmax(-1)[:, None] == exact.topk(5, -1).indices).any(-1).float().mean()
        print(
            f"{kind}: logits off by {100 * (found - exact).norm() / size:.1f} %, the same token in {100 * same:.0f} % "
            f"of {frames} steps, one of the first five in {100 * near:.0f} %",
            flush=True,
        )


def memory(folder: Path, spec: LmSpec, kind: Quantize) -> None:
    import resource

    start = time.perf_counter()
    model = ours(folder, spec, kind)
    loaded = time.perf_counter() - start
    step = our_step(model, 1)
    for _ in range(4):
        block(step, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{kind}: peak {peak:.0f} MiB of a process with one stream, loaded in {loaded:.1f} s, {best_kernel(kind).name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="stt-1b-en_fr")
    parser.add_argument("--layers", type=int, help="fewer layers than published, for a quick look")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; by default nowhere")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--frames", type=int, default=100, help="frames of the comparison with f32")
    parser.add_argument("--only", choices=["speed", "quality", "memory"])
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    spec = SHAPES[options.shape]
    if options.layers:
        spec = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, num_layers=options.layers))
    if options.memory_of:
        memory(options.folder, spec, options.memory_of)
        return
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, spec)
        if options.only in (None, "memory"):
            same = [f"--shape={options.shape}", f"--threads={options.threads}", f"--folder={folder}"]
            same += [f"--layers={options.layers}"] if options.layers else []
            for kind in KINDS:
                subprocess.run([sys.executable, __file__, *same, "--memory-of", kind], check=True)
        if options.only in (None, "quality"):
            quality(folder, spec, options.frames)
            gc.collect()
        if options.only in (None, "speed"):
            speed(folder, spec, options.streams, options.blocks)


if __name__ == "__main__":
    main()
