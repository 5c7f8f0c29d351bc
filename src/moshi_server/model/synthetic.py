"""Seeded random checkpoints of language models, with the real names and shapes, for tests and measuring.

``python -m moshi_server.model.synthetic stt-1b-en_fr model.safetensors`` writes one as large as Kyutai's.
"""

from __future__ import annotations

import argparse
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from moshi_server.model.lm import LmSpec
from moshi_server.model.names import Naming, layout
from moshi_server.model.tensor_file import FORMATS, Shape, nbytes, write_header
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import parameter_shapes, replacing

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_ROWS = 4096
# Random weights of unit gain make logits too even to choose a token by.
_LOGIT_GAIN = 4.0


def _stt(layers: int, heads: int, context: int, text: int, extra_heads: int) -> LmSpec:
    transformer = TransformerSpec(
        2048, heads, layers, 8192, context, gating="silu", norm="rms_norm", max_period=100_000.0
    )
    return LmSpec(text + 1, text, 2049, 32, transformer, extra_heads, 6 if extra_heads else 0)


SHAPES: dict[str, LmSpec] = {
    "stt-1b-en_fr": _stt(16, 16, 750, 8000, 4),
    "stt-2.6b-en": _stt(48, 32, 375, 4000, 0),
}
"""The shapes of Kyutai's published speech-to-text models, by name."""


def random_rows(name: str, shape: Shape, seed: int) -> Iterator[NDArray[np.float32]]:
    """The values of the parameter ``name`` (ours) in pieces along its first dimension; the same in any naming.

    They depend on these three alone, on any machine. Norms are near one; the rest keeps about the scale of its input.
    """
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    is_norm = re.search(r"norm\w*\.(\d+\.)?(alpha|weight)$", name) is not None
    gain = _LOGIT_GAIN if name.startswith(("text_linear.", "depformer.linears.")) else 1.0
    scale = np.float32(0.2 if is_norm else gain * math.sqrt(3 / shape[-1]))
    for start in range(0, shape[0], _ROWS):
        noise = 2 * generator.random((min(_ROWS, shape[0] - start), *shape[1:]), dtype=np.float32) - 1
        yield np.float32(is_norm) + scale * noise


def write_lm(
    path: Path | str, spec: LmSpec, *, seed: int = 0, naming: Naming = "candle", dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a checkpoint of ``spec`` at ``path``; holds no more than one piece of one tensor in memory."""
    shapes = parameter_shapes(spec)
    tensors = layout(shapes, spec, naming)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        heads = {}
        for theirs, ours in tensors.items():
            rows = sum(shapes[name][0] for name in ours)
            shape = (rows, *shapes[ours[0]][1:])
            heads[theirs] = (FORMATS[dtype], shape, nbytes(shape, dtype))
        write_header(file, heads)
        for ours in tensors.values():
            for name in ours:
                for values in random_rows(name, shapes[name], seed):
                    file.write(torch.from_numpy(values).to(dtype).view(torch.uint8).numpy().data)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a seeded random checkpoint of a published model's shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--naming", choices=get_args(Naming), default="candle")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_lm(
        arguments.path,
        SHAPES[arguments.shape],
        seed=arguments.seed,
        naming=arguments.naming,
        dtype=DTYPES[arguments.dtype],
    )


if __name__ == "__main__":
    main()
