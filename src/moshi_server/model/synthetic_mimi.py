"""Seeded stand-ins for Mimi checkpoints: the real names and shapes, values that give lively codes; nothing learnt."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from moshi_server.model.mimi import MimiSpec
from moshi_server.model.weights_mimi import SPEC_KEY, checkpoint_shapes

Float32 = NDArray[np.float32]


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> Float32:
    """The value of one checkpoint tensor; it depends on these three alone, on any machine.

    Activations keep about the scale of the input through the network, and the centroids that of the residuals,
    so that speech at ordinary loudness spreads over the codes.
    """
    if name.endswith("embedding_sum"):
        usage = seeded_tensor(name.replace("embedding_sum", "cluster_usage"), shape[:1], seed)
        return _centroid_scale(name) * usage[:, None] * _uniform(name, shape, seed)
    noise = _uniform(name, shape, seed)
    if name.endswith("cluster_usage"):
        return 1.25 + 0.75 * noise
    if name.endswith("_initialized"):
        return np.ones(shape, np.float32)
    if name.endswith("scale"):
        return 0.3 + 0.2 * noise
    if "norm" in name:
        return (1.0 if name.endswith("weight") else 0.0) + 0.2 * noise
    if name.endswith("bias"):
        return 0.02 * noise
    if name.startswith("encoder.model.0."):
        # Speech is quiet beside the values inside the network.
        noise = 4 * noise
    return noise * np.float32(math.sqrt(3 / _fan_in(name, shape)))


def seeded_mimi(spec: MimiSpec, seed: int) -> Iterator[tuple[str, Float32]]:
    """Every tensor of a checkpoint of ``spec``, one at a time."""
    for name, shape in checkpoint_shapes(spec).items():
        yield name, seeded_tensor(name, shape, seed)


def write_mimi(path: Path | str, spec: MimiSpec | None = None, *, seed: int = 0) -> None:
    """Write such a checkpoint; ``spec`` goes into its header, except Kyutai's v0.1, whose file carries none."""
    metadata = None if spec is None or spec == MimiSpec() else {SPEC_KEY: spec.to_json()}
    save_file(dict(seeded_mimi(spec or MimiSpec(), seed)), path, metadata=metadata)


def _uniform(name: str, shape: tuple[int, ...], seed: int) -> Float32:
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return 2 * generator.random(shape, dtype=np.float32) - 1


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if "convtr" not in name:
        return math.prod(shape[1:])
    # Each output sample sees two taps of every input channel, the kernel being twice the stride.
    return 2 * (1 if name.startswith("upsample") else shape[0])


def _centroid_scale(name: str) -> np.float32:
    level = int(name.split(".layers.")[1].split(".")[0])
    return np.float32(1.0 * 0.97**level)
