"""Write dialogue.npz: what the ``moshi`` package says in two conversations, on seeded checkpoints, at temperature 0.

Run in an environment that has ``moshi`` 0.2.13 and torch on a CPU: ``python -m tests.golden.dialogue``.
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
sys.path[:0] = [str(HERE.parents[1] / "src")]

from moshi_server.model.synthetic import write_lm  # noqa: E402
from moshi_server.model.synthetic_mimi import seeded_mimi  # noqa: E402

from .dialogue_spec import CONDITION, DIALOGUE, LM, MIMI, SEED, STEPS, STREAMS, STRIDE, VALUES, sound  # noqa: E402
from .mimi import upstream_config  # noqa: E402


def upstream_model(path: Path) -> Any:
    """The language model in the package, from a checkpoint in its own naming."""
    transformer, depformer = LM.transformer, LM.depformer
    assert depformer is not None
    inner, delay = depformer.transformer, DIALOGUE.acoustic_delay
    assert inner.dim_feedforward != 4 * inner.d_model, "the package's rule for a width of exactly four is another one"
    delays = [0]
    for count in (DIALOGUE.generated_audio_codebooks, DIALOGUE.input_audio_codebooks):
        delays += [0] + [delay] * (count - 1)
    config: dict[str, Any] = {
        "delays": delays,
        "n_q": LM.audio_codebooks,
        "dep_q": depformer.codebooks,
        "card": LM.audio_vocab_size - 1,
        "text_card": LM.text_in_vocab_size - 1,
        "text_card_out": LM.text_out_vocab_size,
        "dim": transformer.d_model,
        "num_heads": transformer.num_heads,
        "num_layers": transformer.num_layers,
        "hidden_scale": transformer.dim_feedforward / transformer.d_model,
        "norm": "rms_norm_f32",
        "gating": "silu",
        "context": transformer.context,
        "max_period": transformer.max_period,
        "positional_embedding": "rope",
        "depformer_dim": inner.d_model,
        "depformer_num_heads": inner.num_heads,
        "depformer_num_layers": inner.num_layers,
        "depformer_dim_feedforward": inner.dim_feedforward,
        "depformer_multi_linear": True,
        "depformer_weights_per_step": True,
        "depformer_pos_emb": "none",
        "depformer_gating": "silu",
        "conditioners": {
            CONDITION: {
                "type": "lut",
                "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop", "possible_values": list(VALUES)},
            }
        },
        "fuser": {"sum": [CONDITION]},
    }
    write_lm(path, LM, seed=SEED, naming="pytorch", dtype=torch.float32)
    return loaders.get_moshi_lm(path, lm_kwargs=config, device="cpu", dtype=torch.float32)


@torch.no_grad()
def run(lm: Any, mimi: Any, heard: Any, value: str) -> dict[str, Any]:
    """Text tokens (STEPS,), the codes of the whole frames (STEPS - delay, K) and their sound, thinned out.

    The first frame is given twice: the package would else lose it to the initial tokens.
    """
    texts: list[int] = []
    conditions = lm.condition_provider.prepare_and_provide([ConditionAttributes(text={CONDITION: value})])
    generator = LMGen(
        lm,
        use_sampling=False,
        condition_tensors=conditions,
        on_text_hook=lambda token: texts.append(int(token[0])),
    )
    frames, pcm = [], []
    with mimi.streaming(1):
        codes = [mimi.encode(torch.from_numpy(frame)[None, None]) for frame in heard]
    with mimi.streaming(1), generator.streaming(1):
        for given in [codes[0], *codes]:
            out = generator.step(given)
            if out is not None:
                frames.append(out[0, 1:, 0].numpy())
                pcm.append(mimi.decode(out[:, 1:])[0, 0].numpy())
    return {
        "text": np.array(texts, dtype=np.int16),
        "codes": np.stack(frames).astype(np.int16),
        "sound": np.concatenate(pcm)[::STRIDE].astype(np.float32),
    }


def main() -> None:
    torch.set_num_threads(1)
    mimi = loaders.get_mimi(None, upstream_config(MIMI), num_codebooks=MIMI.quantizer.codebooks)
    mimi.load_state_dict({name: torch.from_numpy(value) for name, value in seeded_mimi(MIMI, SEED)}, strict=True)
    golden: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        lm = upstream_model(Path(folder) / "model.safetensors")
        for stream in range(STREAMS):
            for key, value in run(lm, mimi, sound(stream), VALUES[-1 - stream]).items():
                golden[f"{stream}.{key}"] = value
            assert len(golden[f"{stream}.text"]) == STEPS
    np.savez_compressed(HERE / "dialogue.npz", **golden)
    for key, array in golden.items():
        print(key, array.shape, len(np.unique(array)), "different values", abs(array).max())


if __name__ == "__main__":
    main()
