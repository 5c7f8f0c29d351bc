"""A step of text to speech without the codec, beside the ``moshi`` package's ``LMGen`` on the same random weights.

Both draw at a temperature, in alternation, in this process: run it in an environment that has ``moshi`` 0.2.13, torch
and this package's source on its path. A scaled-down ``tts-1.6b-en_fr``: 16 codebooks, a schedule of weights, two
streams of text, five speakers of 125 frames to attend to.

    PYTHONPATH=src python benchmarks/tts_step.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
from moshi.conditioners import ConditionAttributes, TensorCondition  # noqa: E402
from moshi.models import LMGen, loaders  # noqa: E402

from moshi_server.model.mimi import Mimi, MimiSpec  # noqa: E402
from moshi_server.model.package import read_package  # noqa: E402
from moshi_server.model.speaker import SPEAKER_TENSOR, SpeakerSpec, speaker_source  # noqa: E402
from moshi_server.model.synthetic import write_lm  # noqa: E402
from moshi_server.model.tts import Sampling, TtsModel, TtsSpec  # noqa: E402
from moshi_server.model.weights import load_lm  # noqa: E402

CODEBOOKS = 16
LUT = {"n_bins": 2, "dim": 16, "tokenizer": "noop", "possible_values": ["ok", "bad"]}
PACKAGE: dict[str, Any] = {
    "card": 2048,
    "n_q": CODEBOOKS,
    "dep_q": CODEBOOKS,
    "delays": [0, 0] + [2] * (CODEBOOKS - 1),
    "dim": 512,
    "text_card": 4000,
    "text_card_out": 5,
    "num_heads": 8,
    "num_layers": 6,
    "hidden_scale": 4.125,
    "causal": True,
    "context": 500,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 256,
    "depformer_num_heads": 8,
    "depformer_num_layers": 4,
    "depformer_dim_feedforward": 768,
    "depformer_multi_linear": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 5, 6, 7, *[8] * 8],
    "depformer_low_rank_embeddings": 64,
    "demux_second_stream": True,
    "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
        "control": {"type": "lut", "lut": LUT},
    },
    "fuser": {"cross_attention_pos_emb": True, "sum": ["control"], "prepend": [], "cross": ["speaker_wavs"]},
    "tts_config": {"audio_delay": 0.0, "second_stream_ahead": 2, "max_speakers": 5},
}


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def conditions(theirs: Any, voice: torch.Tensor, count: int) -> Any:
    """The package's conditions of ``count`` streams with two speakers of the same voice (1, 512, 125)."""
    vectors, mask = torch.zeros(1, 5, 125, 512), torch.zeros(1, 5, 125, dtype=torch.bool)
    vectors[:, :2], mask[:, :2] = voice.transpose(1, 2)[:, None], True
    tensor = TensorCondition(vectors.view(1, -1, 512), mask.view(1, -1))
    attributes = ConditionAttributes(text={"control": "ok"}, tensor={"speaker_wavs": tensor})
    return theirs.condition_provider.prepare_and_provide([attributes] * count)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    package = read_package(json.dumps(PACKAGE), "the benchmark")
    config = {key: value for key, value in PACKAGE.items() if key != "tts_config"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lm.safetensors"
        write_lm(path, package.lm, seed=1, naming="pytorch", dtype=torch.float32)
        theirs = loaders.get_moshi_lm(path, lm_kwargs=config, device="cpu", dtype=torch.float32)
        ours = load_lm(path, package.lm, dtype=torch.float32)
        codec = MimiSpec()
        mimi = Mimi(dataclasses.replace(codec, quantizer=dataclasses.replace(codec.quantizer, codebooks=CODEBOOKS)))
        model = TtsModel(mimi, ours, TtsSpec(0, package.delays, CODEBOOKS)).eval()
        provider = ours.condition_provider
        assert provider is not None
        voice = torch.randn(1, 512, 125)
        speakers = SpeakerSpec(5, 125, 512, package.position_scale)
        source = speaker_source([voice, voice], provider.vectors(SPEAKER_TENSOR), speakers)
        attended = ours.transformer.keys_values(source)
        condition = provider.named("control", "ok")
        print("streams  ours ms  LMGen ms  times as fast")
        for count in map(int, arguments.streams.split(",")):
            state, slots = model.init_state(count), torch.arange(count)
            for slot in range(count):
                sampling = Sampling(seed=slot)
                pair = (condition, condition)
                model.begin(state, slot, sampling, condition=pair, voice=(attended, attended))

            def step() -> None:
                tokens, hidden = model.think(state, slots)  # noqa: B023
                forced = torch.tensor([3 for _ in tokens.tolist()])
                model.speak(forced, hidden, state, slots, None)  # noqa: B023

            generator = LMGen(
                theirs,
                temp=0.6,
                temp_text=0.6,
                condition_tensors=conditions(theirs, voice, count),
                on_text_hook=lambda tokens: tokens.fill_(3) if tokens.tolist() else None,
            )
            nothing = torch.zeros(count, 0, 1, dtype=torch.long)
            here: list[float] = []
            there: list[float] = []
            with generator.streaming(count):
                for _ in range(arguments.steps):
                    here.append(milliseconds(step))
                    there.append(milliseconds(lambda: generator.step(nothing)))  # noqa: B023
            warm = arguments.steps // 3
            a, b = statistics.median(here[warm:]), statistics.median(there[warm:])
            print(f"{count:7}  {a:7.1f}  {b:8.1f}  {b / a:13.2f}", flush=True)


if __name__ == "__main__":
    main()
