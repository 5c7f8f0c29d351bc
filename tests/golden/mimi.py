"""Write mimi.npz and mimi_v0_1.npz: what the ``moshi`` package makes of seeded checkpoints and of recorded speech.

Run in an environment that has ``moshi`` 0.2.13 and torch on a CPU: ``python tests/golden/mimi.py``.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sphn
import torch
from moshi.models import loaders

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from moshi_server.model.mimi import MimiSpec  # noqa: E402
from moshi_server.model.synthetic_mimi import seeded_mimi  # noqa: E402

sys.path.insert(0, str(HERE))
from mimi_spec import AUDIO, LOUDER, SEED, SMALL, STRIDE, V0_1  # noqa: E402


def upstream_config(spec: MimiSpec) -> dict[str, Any]:
    """The same sizes in the words of the ``moshi`` package."""
    seanet, transformer, quantizer = spec.seanet, spec.transformer, spec.quantizer
    width = seanet.dimension
    return {
        "channels": 1,
        "sample_rate": spec.sample_rate,
        "frame_rate": spec.frame_rate,
        "seanet": {
            "channels": 1,
            "dimension": width,
            "causal": True,
            "n_filters": seanet.filters,
            "n_residual_layers": seanet.residual_layers,
            "compress": seanet.compress,
            "dilation_base": seanet.dilation_base,
            "kernel_size": seanet.kernel_size,
            "residual_kernel_size": seanet.residual_kernel_size,
            "last_kernel_size": seanet.last_kernel_size,
            "pad_mode": "constant",
            "ratios": list(seanet.ratios),
        },
        "quantizer": {
            "dimension": quantizer.dimension,
            "n_q": quantizer.codebooks,
            "bins": quantizer.bins,
            "input_dimension": width,
            "output_dimension": width,
        },
        "transformer": {
            **{
                key: value
                for key, value in asdict(transformer).items()
                if key in ("d_model", "num_heads", "num_layers", "dim_feedforward", "context", "max_period", "norm")
            },
            "layer_scale": transformer.layer_scale,
            "gating": "none",
            "positional_embedding": "rope",
            "causal": True,
            "conv_layout": True,
            "input_dimension": width,
            "output_dimensions": [width],
        },
    }


@torch.no_grad()
def run(spec: MimiSpec, pcm: torch.Tensor) -> dict[str, np.ndarray]:
    """Codes and sound, frame by frame, and the latents of the first frames at once."""
    config = upstream_config(spec)
    if spec == MimiSpec():
        assert config["transformer"] == loaders._mimi_config["transformer"]
        assert config["quantizer"] == loaders._mimi_config["quantizer"]
        assert config["seanet"].items() <= loaders._mimi_config["seanet"].items()
    mimi = loaders.get_mimi(None, config, num_codebooks=spec.quantizer.codebooks)
    mimi.load_state_dict({name: torch.from_numpy(value) for name, value in seeded_mimi(spec, SEED)}, strict=True)
    latents = mimi.encode_to_latent(pcm[..., : 8 * spec.frame_size], quantize=False)[0]
    with mimi.streaming(1):
        frames = pcm.split(spec.frame_size, dim=-1)
        codes = torch.cat([mimi.encode(frame) for frame in frames], dim=-1)
        sound = torch.cat([mimi.decode(codes[..., t : t + 1]) for t in range(codes.shape[-1])], dim=-1)
    return {
        "latents": latents.numpy(),
        "codes": codes[0].to(torch.int16).numpy(),
        "sound": sound[0, 0, ::STRIDE].contiguous().numpy(),
    }


def main() -> None:
    torch.set_num_threads(1)
    samples, rate = sphn.read(str(AUDIO))
    assert rate == 24_000
    for name, spec in (("mimi", SMALL), ("mimi_v0_1", V0_1)):
        whole = samples.shape[-1] // spec.frame_size * spec.frame_size
        golden = run(spec, torch.from_numpy(samples[:1, :whole]).mul(LOUDER)[None])
        np.savez_compressed(HERE / f"{name}.npz", **golden)
        print(name, {key: value.shape for key, value in golden.items()}, [len(set(row)) for row in golden["codes"]])


if __name__ == "__main__":
    main()
