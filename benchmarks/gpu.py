"""How many real-time streams one GPU holds: step times, memory and floors, with seeded random weights made on the card.

    python benchmarks/gpu.py --out gpu.json          # all of it, under nine minutes on an H100
    python benchmarks/gpu.py --only stt-1b-en_fr     # parts: parity, mimi, a shape's name, moshi
    python benchmarks/gpu.py --moshi FOLDER          # also the `moshi` package, found in FOLDER, on the same weights

Needs torch 2.11 with CUDA, and no network. Every step is timed on the host, from rows in pinned memory to rows in
pinned memory, with every ring full. A floor is the bytes that a step must read over the bandwidth of a copy measured
in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import benchmarks.bare  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from moshi_server.engine.asr import SttRunner  # noqa: E402
from moshi_server.engine.cuda import CudaSttRunner  # noqa: E402
from moshi_server.engine.cuda_speech import CudaDialogueRunner, CudaTtsRunner  # noqa: E402
from moshi_server.engine.tts import Delivery  # noqa: E402
from moshi_server.gpu import (  # noqa: E402
    CodecShape,
    GpuInfo,
    LmShape,
    ModuleRequest,
    TransformerShape,
    Weights,
    codec_weights,
    lm_weights,
    plan_modules,
    stt_step,
    stt_stream,
)
from moshi_server.model.cross_attention import CrossSpec  # noqa: E402
from moshi_server.model.depformer import DepformerSpec  # noqa: E402
from moshi_server.model.dialogue import DialogueModel, DialogueSpec  # noqa: E402
from moshi_server.model.lm import LmModel, LmSpec  # noqa: E402
from moshi_server.model.mimi import Mimi, MimiSpec  # noqa: E402
from moshi_server.model.quantizer import QuantizerSpec  # noqa: E402
from moshi_server.model.seanet import SeanetSpec  # noqa: E402
from moshi_server.model.streaming import State, leaves  # noqa: E402
from moshi_server.model.stt import SttModel  # noqa: E402
from moshi_server.model.synthetic import SHAPES  # noqa: E402
from moshi_server.model.transformer import TransformerSpec  # noqa: E402
from moshi_server.model.tts import Sampling, TtsModel, TtsSpec  # noqa: E402
from moshi_server.model.weights import save_lm  # noqa: E402
from moshi_server.speech.dialogue import DialogueSettings  # noqa: E402

DEVICE = torch.device("cuda", 0)
FRAME_MS = 80.0
Numbers = dict[str, Any]


# --- measuring ---------------------------------------------------------------------------------------------------


def host_ms(step: Callable[[], Any], repeats: int) -> Numbers:
    """Median, p99 and the number of steps, in milliseconds on the host."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return {"p50": float(np.median(times)), "p99": float(np.percentile(times, 99)), "steps": repeats}


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """A step as one graph."""
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            step()
    return graph.replay


def graph_ms(step: Callable[[], Any], repeats: int = 20) -> float:
    """Median milliseconds, on the device, of a step captured in a graph."""
    replay = captured(step)
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(np.median(times[2:]))


def used() -> int:
    """Bytes that are taken on the card, by anyone."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextmanager
def freed() -> Iterator[None]:
    """Give back what the block took."""
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def machine() -> Numbers:
    with torch.inference_mode():
        big = torch.empty(4 << 30, dtype=torch.uint8, device=DEVICE)
        other = torch.empty_like(big)
        copied = 2 * big.numel() / graph_ms(lambda: other.copy_(big)) / 1e6
        rates = {}
        for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=kind) for _ in range(2))
            rates[name] = 2 * 8192**3 / graph_ms(lambda a=a, b=b: a @ b, 8) / 1e9
    return {
        "device": torch.cuda.get_device_name(DEVICE),
        "torch": torch.__version__,
        "memory_gib": torch.cuda.mem_get_info()[1] / 2**30,
        "copy_gb_s": copied,
        "tflop_s": rates,
    }


# --- models ------------------------------------------------------------------------------------------------------


def make_mimi(spec: MimiSpec, device: torch.device = DEVICE, *, prepare: bool = True) -> Mimi:
    with torch.device(device):
        mimi = Mimi(spec)
        for part in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
            if part is not None:
                part.codebooks.normal_()
        mimi.quantizer.refresh()
    mimi.requires_grad_(False).eval()
    if prepare:
        mimi.prepare()
    return mimi


def make_lm(spec: LmSpec, dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE) -> LmModel:
    with torch.device(device):
        lm = LmModel(spec).requires_grad_(False)
    lm.to(dtype)
    lm.text_linear.float()
    return lm.eval()


def stt_mimi(spec: LmSpec) -> MimiSpec:
    return MimiSpec(quantizer=QuantizerSpec(codebooks=spec.audio_codebooks), decoder=False)


def lm_shape(spec: LmSpec) -> LmShape:
    inner = spec.transformer
    shape = TransformerShape(
        inner.d_model, inner.num_heads, inner.num_layers, inner.dim_feedforward, inner.context, gating="silu"
    )
    return LmShape(
        spec.text_in_vocab_size,
        spec.text_out_vocab_size,
        spec.audio_vocab_size,
        spec.audio_codebooks,
        shape,
        spec.extra_heads_num,
        spec.extra_heads_dim,
    )


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def state_bytes(state: State) -> float:
    return sum(tensor.nbytes for tensor in leaves(state))


def fill(state: State) -> None:
    """As after a long time: every ring full of noise, every counter far beyond the context."""
    for tensor in leaves(state):
        if tensor.dtype == torch.int8:
            tensor.random_(-127, 128)
        elif tensor.is_floating_point():
            tensor.uniform_(0, 0.01) if tensor.dtype == torch.float16 else tensor.normal_()
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
        elif tensor.dim() == 1:
            tensor.fill_(3000)  # a counter, or a token that every model knows


# --- parts -------------------------------------------------------------------------------------------------------


def parity() -> Numbers:
    """A small shape in f32, streams in any order that come and go, on the card in graphs and on the CPU one by one."""
    inner = TransformerSpec(64, 4, 3, 256, context=50, gating="silu", max_period=100_000.0)
    spec = LmSpec(49, 48, 65, 4, inner, 4, 6)
    small = MimiSpec(
        seanet=SeanetSpec(dimension=64, filters=4),
        transformer=TransformerSpec(64, 4, 2, 128, 20, norm="layer_norm", layer_scale=0.01),
        quantizer=QuantizerSpec(16, 64, 4),
        decoder=False,
    )
    cpu = torch.device("cpu")
    here = SttModel(make_mimi(small, cpu, prepare=False), make_lm(spec, torch.float32, cpu))
    there = SttModel(make_mimi(small, prepare=False), make_lm(spec, torch.float32))
    there.load_state_dict(here.state_dict())
    there.mimi.quantizer.refresh()
    here.mimi.prepare()
    there.mimi.prepare()
    slots, result = 9, {}
    runners = {
        "reference": SttRunner(here, slots, cpu),
        "graphs": CudaSttRunner(there, slots, DEVICE),
        "graphs_8_bit_kv": CudaSttRunner(there, slots, DEVICE, eight_bit_kv=True),
    }
    told: dict[str, list[Any]] = {}
    for name, runner in runners.items():
        generator = np.random.Generator(np.random.PCG64(1))
        told[name] = []
        for tick in range(150):
            if tick % 40 == 20:
                runner.reset(generator.permutation(slots)[:3].tolist())
            chosen = generator.permutation(slots)[: int(generator.integers(1, slots + 1))].tolist()
            frames = generator.uniform(-0.5, 0.5, (len(chosen), 1920)).astype(np.float32)
            told[name] += runner.step(chosen, list(frames))
    for name in ("graphs", "graphs_8_bit_kv"):
        pairs = list(zip(told[name], told["reference"], strict=True))
        result[name] = {
            "steps": len(pairs),
            "tokens_equal": sum(ours.token == theirs.token for ours, theirs in pairs),
            "largest_error_of_a_probability": max(
                abs(a - b) for ours, theirs in pairs for a, b in zip(ours.prs, theirs.prs, strict=True)
            ),
        }
    return result


def speech_to_text(name: str, copy_gb_s: float, *, eight_bit: bool, profile: Path | None, repeats: int) -> Numbers:
    """One shape with as many slots as the plan gives it: memory, then step time by bucket with full rings."""
    spec = SHAPES[name]
    torch.manual_seed(0)
    before = used()
    model = SttModel(make_mimi(stt_mimi(spec)), make_lm(spec))
    weights = weight_bytes(model)
    few = memory_of_few(model, spec, before, eight_bit)
    plan = plan_for(spec, before, eight_bit)
    planned = plan["stt"]
    slots = planned.batch_size
    gc.collect()
    start = time.perf_counter()
    runner = CudaSttRunner(model, slots, DEVICE, eight_bit_kv=eight_bit)
    captured = used() - before
    runner.warmup()
    ready = time.perf_counter() - start
    taken = used() - before
    foretold = sum(term.bytes for term in plan.weights) + slots * planned.stream_bytes
    fill(runner._state)
    generator = np.random.default_rng(0)
    runner._bucketed.inputs[:, 1:] = generator.uniform(-0.3, 0.3, (slots, 1920))
    each = state_bytes(runner._state) / (slots + 1)
    lm_each = state_bytes(runner._state["lm"]) / (slots + 1)

    def step(count: int) -> Callable[[], Any]:
        def go() -> None:
            runner._bucketed.inputs[:count, 0] = np.arange(count)
            runner._bucketed._written = max(runner._bucketed._written, count)
            runner._bucketed.run(count)

        return go

    rows = []
    for count in runner._bucketed.sizes:
        floor = 1e-6 * (weights + count * each) / copy_gb_s
        rows.append(
            {"streams": count, **host_ms(step(count), repeats if count < slots else 4 * repeats), "floor": floor}
        )
        rows[-1]["times_the_floor"] = rows[-1]["p50"] / floor
    most = max((row["streams"] for row in rows if row["p99"] < FRAME_MS), default=0)
    if most < slots:
        low, high = most, min(row["streams"] for row in rows if row["p99"] >= FRAME_MS)
        while high - low > 8:
            middle = (low + high) // 2
            low, high = (middle, high) if host_ms(step(middle), repeats)["p99"] < FRAME_MS else (low, middle)
        most = low
    if profile is not None:
        profile.write_text(kernels(step(slots)))
    runner._bucketed._graphs.clear()  # makes room for those of the halves
    gc.collect()
    torch.cuda.empty_cache()
    parts = [lm_and_codec(runner, count, copy_gb_s, lm_each) for count in sorted({1, 64, slots})]
    return {
        "slots": slots,
        "kv": "int8" if eight_bit else "bf16",
        "seconds_to_capture": ready,
        "memory": {
            "foretold": foretold,
            "taken": taken,
            "taken_before_warmup": captured,
            "ratio": foretold / taken,
            "free_left": free(),
            "state": state_bytes(runner._state),
            "reserved_by_torch": torch.cuda.memory_reserved(),
            "buckets": len(runner._bucketed.sizes),
        },
        "memory_of_8_slots": few,
        "plan": plan.sum(planned),
        "bytes_a_stream": each,
        "weight_bytes": weights,
        "steps": rows,
        "parts": parts,
        "most_streams_p99_under_80_ms": most,
    }


def memory_of_few(model: SttModel, spec: LmSpec, before: int, eight_bit: bool) -> Numbers:
    """Foretold and taken for eight slots, where what a step takes besides its streams weighs most."""
    plan = plan_for(spec, before, eight_bit, 8)
    with freed():
        runner = CudaSttRunner(model, 8, DEVICE, eight_bit_kv=eight_bit)
        runner.warmup()
        taken = used() - before
        del runner
    foretold = sum(term.bytes for term in plan.weights) + 8 * plan["stt"].stream_bytes
    return {"foretold": foretold, "taken": taken, "ratio": foretold / taken}


def free() -> int:
    return int(torch.cuda.mem_get_info()[0])


def plan_for(spec: LmSpec, before: int, eight_bit: bool, slots: int | Literal["auto"] = "auto") -> Any:
    shape, codec = lm_shape(spec), CodecShape()
    request = ModuleRequest(
        "stt",
        slots,
        "bf16",
        weights=(
            Weights("lm", lm_weights(shape, None)),
            Weights("mimi", codec_weights(codec, "", spec.audio_codebooks)),
            Weights("step", stt_step(shape, codec, slots, eight_bit_kv=eight_bit)),
        ),
        per_stream=stt_stream(shape, codec, "", eight_bit_kv=eight_bit, captured=True),
    )
    total = torch.cuda.mem_get_info()[1]
    gpu = GpuInfo(0, torch.cuda.get_device_name(DEVICE), total, total - before, (9, 0), source="torch")
    return plan_modules([request], gpu, {})


def lm_and_codec(runner: CudaSttRunner, count: int, copy_gb_s: float, lm_each: float) -> Numbers:
    """The two halves of a step by themselves, each in a graph of its own."""
    model, state = runner._model, runner._state
    slots = torch.arange(count, device=DEVICE)
    codes = torch.zeros(count, model.lm.spec.audio_codebooks, dtype=torch.int64, device=DEVICE)
    pcm = torch.rand(count, 1920, device=DEVICE) - 0.5

    lm = graph_ms(lambda: model.step_codes(codes, state, slots))
    floor = 1e-6 * (weight_bytes(model.lm) + count * lm_each) / copy_gb_s
    return {
        "streams": count,
        "lm": lm,
        "lm_floor": floor,
        "lm_times_the_floor": lm / floor,
        "mimi": graph_ms(lambda: model.encode_frames(pcm, state, slots)),
    }


def kernels(step: Callable[[], Any]) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    return str(found.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=110))


def codec(copy_gb_s: float) -> list[Numbers]:
    """Mimi both ways, 32 codebooks, f32."""
    torch.manual_seed(0)
    mimi = make_mimi(MimiSpec())
    rows = []
    for batch in (1, 8, 64, 128, 256, 512):
        with freed():
            rows.append(codec_row(mimi, batch, copy_gb_s))
    return rows


def codec_row(mimi: Mimi, batch: int, copy_gb_s: float) -> Numbers:
    slots = torch.arange(batch, device=DEVICE)
    encoder, decoder = mimi.init_encoder_state(batch), mimi.init_decoder_state(batch)
    fill(encoder)
    fill(decoder)
    pcm = torch.rand(batch, 1920, device=DEVICE) - 0.5
    codes = torch.randint(0, 2048, (batch, 32), device=DEVICE)
    assert mimi.decoder is not None
    return {
        "streams": batch,
        "encode": graph_ms(lambda: mimi.encode_step(pcm, encoder, slots)),
        "encode_floor": 1e-6 * (weight_bytes(mimi.encoder) + state_bytes(encoder)) / copy_gb_s,
        "decode": graph_ms(lambda: mimi.decode_step(codes, decoder, slots)),
        "decode_floor": 1e-6 * (weight_bytes(mimi.decoder) + state_bytes(decoder)) / copy_gb_s,
    }


# As far as its files say; what decides the time of a step are the sizes.
TTS_SCHEDULE = (*range(8), *(8,) * 8, *(9,) * 8, *(10,) * 8)
TTS = LmSpec(
    text_in_vocab_size=8001,
    text_out_vocab_size=8000,
    audio_vocab_size=2049,
    audio_codebooks=32,
    transformer=TransformerSpec(2048, 16, 16, 8192, 500, gating="silu", cross=CrossSpec(625)),
    depformer=DepformerSpec(
        32,
        TransformerSpec(1024, 16, 4, 3072, 32, gating="silu", positional_embedding="none"),
        schedule=TTS_SCHEDULE,
        low_rank=128,
    ),
    two_text_streams=True,
)


TTS_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def text_to_speech(copy_gb_s: float) -> Numbers:
    """The shape of tts-1.6b-en_fr with 24 codebooks: a whole step with sound, and one that has only text yet."""
    torch.manual_seed(0)
    spec = TtsSpec(delay=16, delays=(0, *(2,) * 31), codebooks=24)
    model = TtsModel(make_mimi(MimiSpec()), make_lm(TTS), spec).to(DEVICE)
    assert model.depformer is not None
    rows = []
    for batch in TTS_BATCHES:
        with freed(), torch.inference_mode():
            state = model.init_state(batch, device=DEVICE)
            for slot in range(batch):
                model.begin(state, slot, Sampling(seed=slot))
            fill({"lm": state["lm"], "decoder": state["decoder"]})
            state["steps"].fill_(1000)  # type: ignore[union-attr]
            slots = torch.arange(batch, device=DEVICE)
            nobody = slots[:0]

            def text_only(state: State = state, slots: Tensor = slots, nobody: Tensor = nobody) -> None:
                text, hidden = model.think(state, slots)
                model.speak(text, hidden, state, slots, nobody)

            def whole(state: State = state, slots: Tensor = slots) -> None:
                text, hidden = model.think(state, slots)
                model.sound(model.speak(text, hidden, state, slots, None), state, slots)

            eager = host_ms(whole, 5)["p50"] if batch in (1, 64) else None
            text, full = graph_ms(text_only), graph_ms(whole)
            read = weight_bytes(model.lm) + weight_bytes(model.mimi) + state_bytes(state)
            rows.append(
                {
                    "streams": batch,
                    "step": full,
                    "step_without_sound": text,
                    "first_sound_ms": spec.first_sound * text + full,
                    "floor": 1e-6 * read / copy_gb_s,
                    "step_without_graph": eager,
                }
            )
            del state
    return {
        "steps_to_first_sound": spec.first_sound + 1,
        "parameters": parameters(model.lm),
        "steps": rows,
        "as served": served_speech(model),
    }


class Talker:
    """A stream that always has a word to say."""

    opening: Delivery | None = None

    def ready(self) -> bool:
        return True

    def force(self, sampled: int) -> int:
        return 3


def served_speech(model: TtsModel) -> list[Numbers]:
    """The step that a server makes, two graphs and the host's answer between them; every ring full."""
    with freed():
        start = time.perf_counter()
        runner = CudaTtsRunner(
            model,
            TTS_BATCHES[-1],
            DEVICE,
            begin=lambda state, slot, delivery: model.begin(state, slot, Sampling(seed=slot)),
            default=Delivery(),
        )
        ready = time.perf_counter() - start
        for slot in range(runner.slots):
            model.begin(runner._state, slot, Sampling(seed=slot))
        fill({"lm": runner._state["lm"], "decoder": runner._state["decoder"]})
        runner._state["steps"].fill_(1000)  # type: ignore[union-attr]
        runner._steps = [1000] * runner.slots
        rows: list[Numbers] = []
        for batch in TTS_BATCHES:
            step = partial(runner.step, range(batch), [Talker() for _ in range(batch)])
            rows.append({"streams": batch, **host_ms(step, 20)})
        rows[0]["seconds_to_capture"] = ready
        return rows


DIALOGUE = LmSpec(
    text_in_vocab_size=32001,
    text_out_vocab_size=32000,
    audio_vocab_size=2049,
    audio_codebooks=16,
    transformer=TransformerSpec(4096, 32, 32, 16896, 3000, gating="silu"),
    depformer=DepformerSpec(8, TransformerSpec(1024, 16, 6, 4224, 8, gating="silu", positional_embedding="none")),
)


def dialogue() -> Numbers:
    """The shape of Moshi (7B), as far as it is known: a step as a server makes it, with and without graphs."""
    torch.manual_seed(0)
    mimi_spec = MimiSpec(quantizer=QuantizerSpec(codebooks=8))
    model = DialogueModel(make_mimi(mimi_spec), make_lm(DIALOGUE), DialogueSpec(8, 8, 1, 3, 0, 32000)).to(DEVICE)
    frame = np.random.default_rng(0).uniform(-0.5, 0.5, 1920).astype(np.float32)
    most = 16
    rows: dict[int, Numbers] = {batch: {"streams": batch} for batch in (1, 2, 4, 8, 16)}
    found: Numbers = {"parameters": parameters(model.lm), "steps": list(rows.values())}
    for graphs in (False, True):
        with freed():
            start = time.perf_counter()
            runner = CudaDialogueRunner(model, most, DEVICE, condition=lambda values: None, graphs=graphs)
            found["seconds_to_capture"] = time.perf_counter() - start
            for slot in range(most):
                model.begin(runner._state, slot, DialogueSettings())
            fill({name: runner._state[name] for name in ("lm", "encoder", "decoder")})
            runner._state["steps"].fill_(5000)  # type: ignore[union-attr]
            runner._steps = [5000] * most
            for batch, row in rows.items():
                if graphs or batch in (1, most):
                    step = partial(runner.step, range(batch), [frame] * batch)
                    row["captured" if graphs else "eager"] = host_ms(step, 10)["p50"]
            found["bytes_a_stream"] = state_bytes(runner._state) / (most + 1)
            del runner
    return found


def parameters(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


def beside_the_package(folder: Path) -> list[Numbers]:
    """The `moshi` package's `LMGen` on the weights that we run, blocks of steps in turn; the language model alone."""
    for name in ("bitsandbytes", "sphn", "sounddevice"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.path.insert(0, str(folder))
    from moshi.models import LMGen, loaders

    spec = SHAPES["stt-1b-en_fr"]
    inner = spec.transformer
    torch.manual_seed(0)
    lm = make_lm(spec)
    model = SttModel(make_mimi(stt_mimi(spec)), lm)
    config = {
        "delays": [0] * (spec.audio_codebooks + 1),
        "n_q": spec.audio_codebooks,
        "dep_q": 0,
        "card": spec.audio_vocab_size - 1,
        "text_card": spec.text_in_vocab_size - 1,
        "text_card_out": spec.text_out_vocab_size,
        "dim": inner.d_model,
        "num_heads": inner.num_heads,
        "num_layers": inner.num_layers,
        "hidden_scale": 1.5 * inner.hidden / inner.d_model,
        "norm": "rms_norm_f32",
        "gating": "silu",
        "context": inner.context,
        "max_period": inner.max_period,
        "positional_embedding": "rope",
        "depformer_multi_linear": True,
        "extra_heads_num_heads": spec.extra_heads_num,
        "extra_heads_dim": spec.extra_heads_dim,
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        save_lm(lm, path, naming="pytorch", dtype=torch.bfloat16)
        theirs = loaders.get_moshi_lm(path, lm_kwargs=config, device=DEVICE, dtype=torch.bfloat16)
    rows = []
    for batch in PACKAGE_BATCHES:
        with freed():
            rows.append(package_row(model, LMGen(theirs, use_sampling=False), batch))
    return rows


PACKAGE_BATCHES = (1, 8, 64, 256)


def package_row(model: SttModel, generator: Any, batch: int) -> Numbers:
    spec = model.lm.spec
    codes = torch.randint(0, spec.audio_vocab_size - 1, (batch, spec.audio_codebooks), device=DEVICE)
    state, slots = model.init_state(batch, device=DEVICE), torch.arange(batch, device=DEVICE)
    fill({"lm": state["lm"]})
    replay = captured(lambda: model.step_codes(codes, state, slots))
    with torch.no_grad(), generator.streaming(batch):
        theirs = codes[:, :, None]
        blocks = [
            (host_ms(replay, 10)["p50"], host_ms(lambda: generator.step_with_extra_heads(theirs), 10)["p50"])
            for _ in range(4)
        ]
    ours, package = (float(np.median(times)) for times in zip(*blocks, strict=True))
    return {"streams": batch, "ours": ours, "moshi": package, "ratio": ours / package}


# --- the command -------------------------------------------------------------------------------------------------


def show(name: str, found: Any) -> None:
    print(f"\n== {name}")
    if isinstance(found, list):
        for row in found:
            show_row(row)
        return
    for key, value in found.items():
        if isinstance(value, list):
            print(f"{key}:")
            for row in value:
                show_row(row)
        else:
            print(f"{key}: {value}")
    sys.stdout.flush()


def show_row(row: Numbers) -> None:
    print(
        "   "
        + "  ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--moshi", type=Path, help="the folder that the `moshi` package is imported from")
    parser.add_argument("--only", nargs="+", help="parts to run")
    parser.add_argument(
        "--repeats", type=int, default=30, help="steps of each bucket; four times as many of the largest"
    )
    parser.add_argument("--profile", type=Path, help="a folder for tables of the largest step's kernels")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    if options.part:
        name, bandwidth, result = options.part
        Path(result).write_text(json.dumps(parts(options, float(bandwidth))[name]()))
        return
    begin = time.perf_counter()
    found: Numbers = {}
    bandwidth = 0.0
    for name in parts(options, 0.0):
        if name != "machine" and options.only and not any(word in name for word in options.only):
            continue
        start = time.perf_counter()
        found[name] = in_a_process(name, bandwidth)
        if name == "machine":
            bandwidth = found[name]["copy_gb_s"]
        show(f"{name} ({time.perf_counter() - start:.0f} s)", found[name])
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))
    print(f"\n{time.perf_counter() - begin:.0f} s in all")
    if failed := [name for name, part in found.items() if "failed" in part]:
        raise SystemExit("failed: " + ", ".join(failed))


def parts(options: argparse.Namespace, bandwidth: float) -> dict[str, Callable[[], Any]]:
    """What can be run, by name."""
    found: dict[str, Callable[[], Any]] = {"machine": machine, "parity": parity, "mimi": lambda: codec(bandwidth)}
    for shape in ("stt-1b-en_fr", "stt-2.6b-en"):
        for eight_bit in (False, True):
            name = f"{shape}, {'8-bit' if eight_bit else 'bf16'} KV"
            table = options.profile / f"{shape}-{'int8' if eight_bit else 'bf16'}.txt" if options.profile else None
            found[name] = lambda shape=shape, eight_bit=eight_bit, table=table: speech_to_text(
                shape, bandwidth, eight_bit=eight_bit, profile=table, repeats=options.repeats
            )
    found["tts-1.6b"] = lambda: text_to_speech(bandwidth)
    found["moshi-7b"] = dialogue
    if options.moshi:
        found["moshi package"] = lambda: beside_the_package(options.moshi)
    return found


def in_a_process(name: str, bandwidth: float) -> Any:
    """Run a part as a server would run, alone: what others left would count as its memory."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--part", name, str(bandwidth), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr[-3000:]}
        return json.loads(result.read_text())


if __name__ == "__main__":
    main()
