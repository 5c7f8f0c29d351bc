"""Engines from a configuration and a small seeded checkpoint: loading, sharing, refusals, streams that keep apart."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from moshi_server.config import Config, load_config
from moshi_server.engine.build import BuiltModule, build_engines, make_plans, share_devices, text_delay
from moshi_server.engine.devices import fitting_runner
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.errors import (
    CheckpointError,
    ConfigError,
    MemoryPlanError,
    MoshiServerError,
    NotServedError,
)
from moshi_server.events import Audio, Codes, EndWord, Flush, Step, Word
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi

from ..golden import lm_spec, mimi_spec

SPEC = lm_spec.SMALL
HEAD = 'static_dir = "static"\nlog_dir = "logs"\ninstance_name = "test"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_lm(folder / "lm.safetensors", SPEC, seed=lm_spec.SEED, naming="candle", dtype=torch.float32)
    quantizer = dataclasses.replace(mimi_spec.SMALL.quantizer, codebooks=8, bins=SPEC.audio_vocab_size - 1)
    write_mimi(folder / "mimi.safetensors", dataclasses.replace(mimi_spec.SMALL, quantizer=quantizer), seed=1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n o p q r s t u v w x y z"]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=SPEC.text_out_vocab_size,
        user_defined_symbols=[f"w{number}" for number in range(10)],
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


def module(folder: Path, name: str = "asr", **changes: object) -> str:
    transformer = SPEC.transformer
    values: dict[str, object] = {
        "type": "BatchedAsr",
        "path": f"/api/{name}",
        "lm_model_file": str(folder / "lm.safetensors"),
        "text_tokenizer_file": str(folder / "tokenizer.model"),
        "audio_tokenizer_file": str(folder / "mimi.safetensors"),
        "asr_delay_in_tokens": 4,
        "batch_size": 8,
        "device": "cpu",
    } | changes
    lines = [
        f"{key} = {repr(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in values.items()
    ]
    return f"""
[modules.{name}]
{chr(10).join(line.replace("'", '"') for line in lines)}
[modules.{name}.model]
audio_vocab_size = {SPEC.audio_vocab_size}
text_in_vocab_size = {SPEC.text_in_vocab_size}
text_out_vocab_size = {SPEC.text_out_vocab_size}
audio_codebooks = {SPEC.audio_codebooks}
[modules.{name}.model.transformer]
d_model = {transformer.d_model}
num_heads = {transformer.num_heads}
num_layers = {transformer.num_layers}
dim_feedforward = {transformer.dim_feedforward}
context = {transformer.context}
max_period = {int(transformer.max_period)}
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
[modules.{name}.model.extra_heads]
num_heads = {SPEC.extra_heads_num}
dim = {SPEC.extra_heads_dim}
"""


def config(tmp_path: Path, *modules: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(HEAD + "".join(modules))
    return load_config(path)


def build(config: Config) -> list[BuiltModule]:
    return build_engines(config, device=None, hooks_for=lambda name, kind: EngineHooks())


async def transcribe(engine: Engine, pcm: np.ndarray, seed: int) -> list[object]:
    """Everything but the buffer levels, which depend on how fast the client is."""
    rng = np.random.default_rng(seed)
    session = await engine.open()
    events: list[object] = []
    try:

        async def feed() -> None:
            position = 0
            while position < len(pcm):
                size = int(rng.integers(1, 6000))
                await session.send(Audio(pcm[position : position + size]))
                position += size
                await asyncio.sleep(float(rng.random()) * 0.004)
            await session.send(Flush())

        task = asyncio.create_task(feed())
        while Flush() not in events:
            events += await session.receive()
        await task
    finally:
        session.close()
    return [dataclasses.replace(event, buffered_pcm=0) if isinstance(event, Step) else event for event in events]


async def test_a_streams_words_are_the_same_alone_and_among_seven_others(folder: Path, tmp_path: Path) -> None:
    engine = build(config(tmp_path, module(folder)))[0].engine
    engine.start()
    await engine.wait_ready()
    rng = np.random.default_rng(3)
    pcm = [rng.normal(0, 0.3, int(rng.integers(60_000, 140_000))).astype(np.float32) for _ in range(16)]
    alone = [await transcribe(engine, audio, seed) for seed, audio in enumerate(pcm)]

    async def later(seed: int) -> list[object]:
        await asyncio.sleep(0.05 * (seed % 8))
        return await transcribe(engine, pcm[seed], seed + 100)

    together = await asyncio.gather(*(later(seed) for seed in range(8)))
    together += await asyncio.gather(*(later(seed) for seed in range(8, 16)))
    await asyncio.to_thread(engine.stop)
    assert sum(isinstance(event, Word | EndWord) for events in alone for event in events) > 50
    for one, other in zip(alone, together, strict=True):
        assert [event for event in one if not isinstance(event, Step)] == [
            event for event in other if not isinstance(event, Step)
        ]
        steps = [[event.prs for event in events if isinstance(event, Step)] for events in (one, other)]
        np.testing.assert_allclose(steps[0], steps[1], atol=1e-5)


def test_2_modules_that_name_the_same_files_share_their_weights(folder: Path, tmp_path: Path) -> None:
    first, second = build(config(tmp_path, module(folder), module(folder, "other", batch_size=2)))
    models = [built.engine._runner._model for built in (first, second)]  # type: ignore[attr-defined]
    assert models[0].lm is models[1].lm
    assert models[0].mimi is models[1].mimi
    assert (first.engine.slots_total, second.engine.slots_total) == (8, 2)


ROOMS = """
[modules.rooms]
type = "Mimi"
send_path = "/send"
recv_path = "/recv"
audio_tokenizer_file = "{folder}/mimi.safetensors"
auth_recv = true
rooms = ["a", "b", "c"]
"""


async def test_rooms_have_a_slot_each_and_make_sound_of_codes(folder: Path, tmp_path: Path) -> None:
    (built,) = build(config(tmp_path, ROOMS.format(folder=folder)))
    built.engine.start()
    try:
        await built.engine.wait_ready()
        assert built.engine.slots_total == 3
        session = await built.engine.open()
        await session.send(Codes(np.arange(8)))
        events: list[object] = []
        while not any(isinstance(event, Audio) for event in events):
            events += await session.receive()
        session.close()
    finally:
        built.engine.stop()
    assert isinstance(events[-1], Audio)
    assert np.abs(events[-1].pcm).max() > 0


def test_a_module_that_is_not_served_yet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moshi_server.engine.build.SERVED", ("Asr",))
    rooms = ROOMS.format(folder="nowhere")
    with pytest.raises(NotServedError, match=r"modules\.rooms: type Mimi is not served"):
        build(config(tmp_path, rooms))


def test_nothing_to_serve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module"):
        build(config(tmp_path))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lm_model_file": "no/such.safetensors"}, MoshiServerError, "such.safetensors"),
        ({"text_tokenizer_file": __file__}, CheckpointError, "sentencepiece"),
        ({"audio_tokenizer_file": __file__}, CheckpointError, "safetensors"),
        ({"device": "cuda:7"}, ConfigError, "cuda:7 is not here"),
    ],
)
def test_what_cannot_be_loaded_names_the_module_and_the_file(
    folder: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        build(config(tmp_path, module(folder, **changes)))
    assert str(raised.value).startswith("modules.asr: ")


def test_a_checkpoint_of_another_shape_lists_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    text = module(folder).replace("num_layers = 3", "num_layers = 4").replace("dim = 6", "dim = 7")
    with pytest.raises(CheckpointError, match=r"missing transformer\.layers\.3") as raised:
        build(config(tmp_path, text))
    assert "heads.0.weight is [6, 64] where [7, 64] is needed" in str(raised.value)


def test_the_text_delay_follows_the_condition_if_there_is_one(folder: Path, tmp_path: Path) -> None:
    loaded = config(tmp_path, module(folder), module(folder, "told", conditioning_delay=0.5))
    assert text_delay(loaded.modules["asr"]) == 4  # type: ignore[arg-type]
    assert text_delay(loaded.modules["told"]) == 7  # type: ignore[arg-type]


def test_the_number_type_is_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    built = build(config(tmp_path, module(folder, dtype_override="bf16")))[0]
    assert built.engine._runner._model.lm.dtype is torch.bfloat16  # type: ignore[attr-defined]


def test_5_memory_that_cannot_be_taken_halves_the_slots_until_it_can(folder: Path, tmp_path: Path) -> None:
    plan = make_plans(config(tmp_path, module(folder)), "cpu", {})["cpu"]
    tried: list[int] = []

    def make(slots: int) -> int:
        tried.append(slots)
        if slots > 2:
            raise torch.OutOfMemoryError("out of memory")
        return slots

    assert fitting_runner(make, "asr", 8, plan) == 2  # type: ignore[arg-type,comparison-overlap]
    assert tried == [8, 4, 2]

    def fail(slots: int) -> int:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(MemoryPlanError, match="not even one stream"):
        fitting_runner(fail, "asr", 8, plan)  # type: ignore[arg-type]


def test_auto_takes_a_number_of_slots(folder: Path, tmp_path: Path) -> None:
    built = build(config(tmp_path, module(folder, batch_size="auto")))[0]
    assert built.engine.slots_total >= 1


def test_modules_on_one_gpu_take_turns_and_on_a_cpu_they_do_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(config(tmp_path, module(folder), module(folder, "second", batch_size=2)))
    assert [each.engine._batcher.turn for each in built] == [None, None]
    monkeypatch.setattr("moshi_server.engine.build.choose_device", lambda name: torch.device("cuda", 0))
    share_devices(built[:1], None)
    assert built[0].engine._batcher.turn is None
    share_devices(built, None)
    assert None not in [each.engine._batcher.turn for each in built]


PACKAGED = """
[modules.packaged]
type = "PyBatchedAsr"
path = "/api/packaged"
batch_size = 3
text_tokenizer_file = "{folder}/tokenizer.model"
asr_delay_in_tokens = 4
[modules.packaged.py]
config_path = "{folder}/config.json"
moshi_weight = "{folder}/torch.safetensors"
mimi_weight = "{folder}/mimi.safetensors"
{more}
"""


def write_package(folder: Path, **changes: object) -> None:
    transformer = SPEC.transformer
    write_lm(folder / "torch.safetensors", SPEC, seed=lm_spec.SEED, naming="pytorch", dtype=torch.float32)
    package: dict[str, object] = {
        "card": SPEC.audio_vocab_size - 1,
        "n_q": SPEC.audio_codebooks,
        "dep_q": 0,
        "text_card": SPEC.text_out_vocab_size,
        "dim": transformer.d_model,
        "num_heads": transformer.num_heads,
        "num_layers": transformer.num_layers,
        "hidden_scale": transformer.dim_feedforward / transformer.d_model,
        "context": transformer.context,
        "max_period": transformer.max_period,
        "gating": transformer.gating,
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "extra_heads_num_heads": SPEC.extra_heads_num,
        "extra_heads_dim": SPEC.extra_heads_dim,
        "stt_config": {"audio_delay_seconds": 0.5},
    }
    (folder / "config.json").write_text(json.dumps(package | changes))


async def test_a_package_without_a_script_is_heard_by_the_built_in_engine(folder: Path, tmp_path: Path) -> None:
    write_package(folder)
    both = config(tmp_path, PACKAGED.format(folder=folder, more=""), module(folder, batch_size=3))
    packaged, plain = build(both)
    assert (packaged.config.type, packaged.engine.kind, packaged.engine.slots_total) == ("PyBatchedAsr",) * 2 + (3,)
    pcm = np.random.default_rng(5).normal(0, 0.1, 1920 * 20).astype(np.float32)
    heard = []
    for built in (packaged, plain):
        built.engine.start()
        try:
            await built.engine.wait_ready()
            heard.append(await transcribe(built.engine, pcm, seed=1))
        finally:
            built.engine.stop()
    assert len(heard[0]) > 20
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    ("more", "changes", "reason"),
    [
        ("voice = 3", {}, "unknown key 'voice'"),
        ("", {"dep_q": 8}, "it speaks"),
        ("", {"conditioners": {"delay": {}}}, "conditioners are not supported here"),
        ("", {"norm": "batch_norm"}, "batch_norm"),
    ],
)
def test_a_package_that_cannot_be_served_is_said_to_be_so(
    folder: Path, tmp_path: Path, more: str, changes: dict[str, object], reason: str
) -> None:
    write_package(folder, **changes)
    with pytest.raises(MoshiServerError, match=reason):
        build(config(tmp_path, PACKAGED.format(folder=folder, more=more)))
