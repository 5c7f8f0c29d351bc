"""The runner for GPUs: on a CPU without graphs, and (marked `gpu`) captured, both against the model stepped alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from moshi_server.audio import read_audio
from moshi_server.config import load_config
from moshi_server.config.modules import BatchedAsrConfig
from moshi_server.engine.asr import AsrOutput, SttRunner
from moshi_server.engine.cuda import CudaSttRunner
from moshi_server.engine.specs import lm_spec as lm_spec_of
from moshi_server.hub import resolve
from moshi_server.model import mimi
from moshi_server.model.mimi import MimiSpec
from moshi_server.model.quantizer import QuantizerSpec
from moshi_server.model.seanet import SeanetSpec
from moshi_server.model.streaming import leaf
from moshi_server.model.stt import SttModel
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi

from ..golden import lm_spec

CPU = torch.device("cpu")
SLOTS = 7
LM = lm_spec.SMALL
MIMI = MimiSpec(
    seanet=SeanetSpec(dimension=64, filters=4),
    transformer=TransformerSpec(64, 4, 2, 128, 20, norm="layer_norm", layer_scale=0.01),
    quantizer=QuantizerSpec(dimension=16, bins=LM.audio_vocab_size - 1, codebooks=LM.audio_codebooks),
)
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.timeout(600),
]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=gpu)]
Heard = dict[int, list[AsrOutput]]


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    write_lm(folder / "lm.safetensors", LM, seed=3, dtype=torch.float32)
    write_mimi(folder / "mimi.safetensors", dataclasses.replace(MIMI, decoder=True), seed=1)
    return folder


def load(folder: Path, device: str, temperature: float = 0.0) -> SttModel:
    codec = load_mimi(folder / "mimi.safetensors", num_codebooks=LM.audio_codebooks, decoder=False, device=device)
    lm = load_lm(folder / "lm.safetensors", LM, dtype=torch.float32, device=device)
    return SttModel(codec, lm, temperature=temperature)


def play(runner: SttRunner, ticks: int = 40) -> Heard:
    """Streams that come, go and pause: what each slot was told since its last reset."""
    generator = np.random.Generator(np.random.PCG64(4))
    heard: Heard = {slot: [] for slot in range(runner.slots)}
    for tick in range(ticks):
        if tick in (12, 25):
            gone = [3, 1] if tick == 12 else [0]
            runner.reset(gone)
            for slot in gone:
                heard[slot] = []
        count = int(generator.integers(1, runner.slots + 1))
        slots = generator.permutation(runner.slots)[:count].tolist()
        frames = generator.uniform(-0.5, 0.5, (count, 1920)).astype(np.float32)
        for slot, output in zip(slots, runner.step(slots, list(frames)), strict=True):
            heard[slot].append(output)
    return heard


def agree(got: Heard, want: Heard, tolerance: float) -> None:
    for slot, outputs in want.items():
        assert [output.token for output in got[slot]] == [output.token for output in outputs], f"slot {slot}"
        for ours, theirs in zip(got[slot], outputs, strict=True):
            assert ours.prs == pytest.approx(theirs.prs, abs=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [2, 512], ids=["codec in parts", "codec at once"])
def test_buckets_tell_every_stream_what_it_hears_alone(
    folder: Path, device: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mimi, "ROWS_AT_ONCE", rows)
    want = play(SttRunner(load(folder, "cpu"), SLOTS, CPU))
    runner = CudaSttRunner(load(folder, device), SLOTS, torch.device(device))
    agree(play(runner), want, 1e-4)
    # The scratch slot's counters are never more than at the beginning.
    assert leaf(runner._state, "steps")[SLOTS] == 0


@pytest.mark.parametrize("device", DEVICES)
def test_warm_streams_draw_the_same_in_a_bucket(folder: Path, device: str) -> None:
    want = play(SttRunner(load(folder, "cpu", 0.7), SLOTS, CPU), 20)
    agree(play(CudaSttRunner(load(folder, device, 0.7), SLOTS, torch.device(device)), 20), want, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_8_bit_keys_and_values_stay_near(folder: Path, device: str) -> None:
    want = play(SttRunner(load(folder, "cpu"), SLOTS, CPU))
    got = play(CudaSttRunner(load(folder, device), SLOTS, torch.device(device), eight_bit_kv=True))
    pairs = [(ours, theirs) for slot in want for ours, theirs in zip(got[slot], want[slot], strict=True)]
    same = [ours.token == theirs.token for ours, theirs in pairs]
    assert sum(same) / len(same) > 0.9
    errors = [abs(a - b) for ours, theirs in pairs for a, b in zip(ours.prs, theirs.prs, strict=True)]
    assert 0 < float(np.median(errors)) < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_after_the_warm_up_every_slot_is_at_its_beginning(folder: Path, device: str) -> None:
    runner = CudaSttRunner(load(folder, device), SLOTS, torch.device(device))
    fresh = play(runner, 10)
    runner.warmup()
    agree(play(runner, 10), fresh, 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("eight_bit", [False, True], ids=["as is", "8 bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 2])
def test_kernels_read_rings_in_place_as_the_cpu_gathers_them(
    dtype: torch.dtype, steps: int, eight_bit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moshi_server.model.transformer import StreamingTransformer

    torch.manual_seed(0)
    spec = TransformerSpec(96, 6, 2, 128, context=20, gating="silu", kv_repeat=2)
    here = StreamingTransformer(spec).to(dtype).eval()
    there = StreamingTransformer(spec).to("cuda", dtype).eval()
    there.load_state_dict(here.state_dict())
    kind = torch.int8 if eight_bit else None
    ours, theirs = there.init_state(5, dtype=kind), here.init_state(5, dtype=kind)
    slots = torch.tensor([4, 0, 1])
    for x in torch.randn(30, 3, steps, 96).to(dtype):
        want = here.step(x, theirs, slots)
        got = there.step(x.cuda(), ours, slots.cuda()).cpu()
        torch.testing.assert_close(got, want, atol=1e-4 if dtype is torch.float32 else 0.1, rtol=0.02)


def test_the_embedded_model_hears_the_same_in_8_bits() -> None:
    module = next(iter(load_config(Path(__file__).parents[2] / "configs" / "demo.toml", {}).modules.values()))
    assert isinstance(module, BatchedAsrConfig)
    codec = load_mimi(resolve(module.audio_tokenizer_file), num_codebooks=module.model.audio_codebooks, decoder=False)
    lm = load_lm(resolve(module.lm_model_file), lm_spec_of(module.model), dtype=torch.float32)
    folder = Path(resolve(module.lm_model_file)).parent / "samples"
    samples = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    pcm = [read_audio(path) for path in samples]
    frames = min(len(each) for each in pcm) // 1920
    assert frames > 25
    slots = list(range(len(pcm)))
    heard = [
        [runner.step(slots, [each[1920 * k : 1920 * k + 1920] for each in pcm]) for k in range(frames)]
        # A model each: the first runner prepares its own for a CPU.
        for runner in (
            SttRunner(SttModel(codec, lm), len(pcm), CPU),
            CudaSttRunner(SttModel(codec, lm), len(pcm), CPU, eight_bit_kv=True),
        )
    ]
    tokens = [[output.token for step in steps for output in step] for steps in heard]
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) > 5
