"""Write lm.npz: what the ``moshi`` package makes of seeded checkpoints and of random codes, f32, temperature 0.

Run in an environment that has ``moshi`` 0.2.13 and torch on a CPU: ``python tests/golden/lm.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

# Imported by the package for quantized models, which this is not.
sys.modules.setdefault("bitsandbytes", ModuleType("bitsandbytes"))
from moshi.conditioners import ConditionAttributes  # noqa: E402
from moshi.models import LMGen, loaders  # noqa: E402

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE)]

from lm_spec import (  # noqa: E402
    CONDITION,
    CONDITIONED,
    CONDITIONED_STEPS,
    SEED,
    SMALL,
    STEPS,
    STREAMS,
    codes,
)

from moshi_server.model.lm import LmSpec  # noqa: E402
from moshi_server.model.synthetic import write_lm  # noqa: E402


def upstream_config(spec: LmSpec) -> dict[str, Any]:
    """What the package calls the sizes of ``spec``."""
    transformer = spec.transformer
    # The package's rule for a width of exactly four is another one; a little more gives the width we have.
    scale = 1.5 * transformer.hidden / transformer.d_model
    config: dict[str, Any] = {
        "delays": [0] * (spec.audio_codebooks + 1),
        "n_q": spec.audio_codebooks,
        "dep_q": 0,
        "card": spec.audio_vocab_size - 1,
        "text_card": spec.text_in_vocab_size - 1,
        "text_card_out": spec.text_out_vocab_size,
        "dim": transformer.d_model,
        "num_heads": transformer.num_heads,
        "num_layers": transformer.num_layers,
        "hidden_scale": scale,
        "norm": "rms_norm_f32",
        "gating": "silu",
        "context": transformer.context,
        "max_period": transformer.max_period,
        "positional_embedding": "rope",
        "kv_repeat": transformer.kv_repeat,
        "depformer_multi_linear": True,
        "extra_heads_num_heads": spec.extra_heads_num,
        "extra_heads_dim": spec.extra_heads_dim,
    }
    if spec.conditioners:
        (name, conditioner), *_ = spec.conditioners.items()
        lut = {
            "n_bins": conditioner.n_bins,
            "dim": conditioner.dim,
            "tokenizer": "noop",
            "possible_values": list(conditioner.possible_values),
        }
        config["conditioners"] = {name: {"type": "lut", "lut": lut}}
        config["fuser"] = {"sum": [name]}
    return config


def upstream_model(spec: LmSpec, folder: str) -> Any:
    """The same model in the package, from a checkpoint in its own naming."""
    path = Path(folder) / "model.safetensors"
    write_lm(path, spec, seed=SEED, naming="pytorch", dtype=torch.float32)
    return loaders.get_moshi_lm(path, lm_kwargs=upstream_config(spec), device="cpu", dtype=torch.float32)


@torch.no_grad()
def run(model: Any, stream: Any, conditions: Any = None) -> dict[str, Any]:
    """Tokens (T,), logits (T, V) and extra heads (T, H) of one stream.

    The first frame is given twice: the package would else lose it to the initial tokens.
    """
    logits: list[Any] = []
    generator = LMGen(
        model,
        use_sampling=False,
        condition_tensors=conditions,
        on_text_logits_hook=lambda x: logits.append(x[0, 0, 0].clone()),
        support_out_of_sync=True,
    )
    tokens, heads = [], []
    with generator.streaming(1):
        for frame in [stream[0], *stream[:-1]]:
            out, probabilities = generator.step_with_extra_heads(torch.from_numpy(frame)[None, :, None])
            tokens.append(int(out[0, 0, 0]))
            heads.append([float(head[0, 0, 0]) for head in probabilities])
    return {
        "tokens": np.array(tokens, dtype=np.int16),
        "logits": torch.stack(logits).numpy().astype(np.float32),
        "heads": np.array(heads, dtype=np.float32),
    }


def main() -> None:
    torch.set_num_threads(1)
    golden: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = upstream_model(SMALL, folder)
        for stream in range(STREAMS):
            for key, value in run(model, codes(SMALL, stream, STEPS)).items():
                golden[f"small.{stream}.{key}"] = value
        model = upstream_model(CONDITIONED, folder)
        for label, value in (("value", "bad"), ("padding", None)):
            attributes = ConditionAttributes(text={CONDITION: value})
            conditions = model.condition_provider.prepare_and_provide([attributes])
            for key, array in run(model, codes(CONDITIONED, 0, CONDITIONED_STEPS), conditions).items():
                golden[f"conditioned.{label}.{key}"] = array
    np.savez_compressed(HERE / "lm.npz", **golden)
    for key, array in golden.items():
        if key.endswith("tokens"):
            print(key, len(array), "tokens,", len(np.unique(array)), "of them different")


if __name__ == "__main__":
    main()
