"""A dialogue's step without the codec, beside the ``moshi`` package's ``LMGen`` on the same random weights.

Both draw at a temperature, in alternation, in this process: run it in an environment that has ``moshi`` 0.2.13, torch
and this package's source on its path. A scaled-down Moshi: 16 codebooks, 8 of them spoken.

    PYTHONPATH=src python benchmarks/dialogue_step.py
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Imported by the package for quantized models, which this is not.
sys.modules.setdefault("bitsandbytes", ModuleType("bitsandbytes"))
from moshi.models import LMGen, loaders  # noqa: E402

from moshi_server.model.depformer import DepformerSpec  # noqa: E402
from moshi_server.model.dialogue import DialogueModel, DialogueSpec  # noqa: E402
from moshi_server.model.lm import LmSpec  # noqa: E402
from moshi_server.model.mimi import Mimi, MimiSpec  # noqa: E402
from moshi_server.model.synthetic import write_lm  # noqa: E402
from moshi_server.model.transformer import TransformerSpec  # noqa: E402
from moshi_server.model.weights import load_lm  # noqa: E402
from moshi_server.speech.dialogue import DialogueSettings  # noqa: E402

LM = LmSpec(
    text_in_vocab_size=4001,
    text_out_vocab_size=4000,
    audio_vocab_size=2049,
    audio_codebooks=16,
    transformer=TransformerSpec(512, 8, 6, 2052, context=500, gating="silu"),
    depformer=DepformerSpec(8, TransformerSpec(256, 8, 4, 1032, context=8, gating="silu", positional_embedding="none")),
)
DIALOGUE = DialogueSpec(8, 8, 2, text_pad_token=3, text_eop_token=0, text_start_token=4000)
PACKAGE: dict[str, Any] = {
    "delays": [0] + ([0] + [2] * 7) * 2,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "text_card": 4000,
    "text_card_out": 4000,
    "dim": 512,
    "num_heads": 8,
    "num_layers": 6,
    "hidden_scale": 2052 / 512,
    "norm": "rms_norm_f32",
    "gating": "silu",
    "context": 500,
    "max_period": 10000.0,
    "positional_embedding": "rope",
    "depformer_dim": 256,
    "depformer_num_heads": 8,
    "depformer_num_layers": 4,
    "depformer_dim_feedforward": 1032,
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
    "depformer_pos_emb": "none",
    "depformer_gating": "silu",
}


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lm.safetensors"
        write_lm(path, LM, seed=1, naming="pytorch", dtype=torch.float32)
        theirs = loaders.get_moshi_lm(path, lm_kwargs=PACKAGE, device="cpu", dtype=torch.float32)
        ours = load_lm(path, LM, dtype=torch.float32)
        codec = MimiSpec()
        mimi = Mimi(dataclasses.replace(codec, quantizer=dataclasses.replace(codec.quantizer, codebooks=8)))
        model = DialogueModel(mimi, ours, DIALOGUE)
        print("streams  ours ms  LMGen ms  times as fast")
        for count in map(int, arguments.streams.split(",")):
            state, slots = model.init_state(count), torch.arange(count)
            for slot in range(count):
                model.begin(state, slot, DialogueSettings())
            codes = torch.randint(0, 2048, (count, 8))
            generator = LMGen(theirs, use_sampling=True)
            here: list[float] = []
            there: list[float] = []
            with generator.streaming(count):
                for _ in range(arguments.steps):
                    here.append(milliseconds(lambda: model.think(codes, state, slots)))  # noqa: B023
                    there.append(milliseconds(lambda: generator.step(codes[:, :, None])))  # noqa: B023
            warm = arguments.steps // 3
            a, b = statistics.median(here[warm:]), statistics.median(there[warm:])
            print(f"{count:7}  {a:7.1f}  {b:8.1f}  {b / a:13.2f}", flush=True)


if __name__ == "__main__":
    main()
