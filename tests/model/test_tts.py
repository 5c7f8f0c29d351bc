"""Text to speech against the ``moshi`` package (see tests/golden/tts.py), and each stream against itself alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moshi_server.model.mimi import Mimi
from moshi_server.model.package import Package, read_package
from moshi_server.model.speaker import SPEAKER_TENSOR, SpeakerSpec, speaker_source
from moshi_server.model.streaming import State, leaf, leaves
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.tts import Sampling, TtsModel, TtsSpec
from moshi_server.model.weights import load_lm, save_lm
from moshi_server.model.weights_mimi import load_mimi
from moshi_server.speech.text import Pause, Word
from moshi_server.speech.tts import DelayedWords, Padding

from ..golden import mimi_spec, tts_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "tts.npz"
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Mimi:
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    write_mimi(path, mimi_spec.SMALL, seed=mimi_spec.SEED)
    return load_mimi(path, num_codebooks=tts_spec.CODEBOOKS, decoder=True)


def build(name: str, folder: Path, mimi: Mimi, naming: str = "pytorch", **changes: Any) -> tuple[TtsModel, Package]:
    package = read_package(tts_spec.config_json(name), name)
    path = folder / "lm.safetensors"
    write_lm(path, package.lm, seed=tts_spec.SEED, naming=naming, dtype=torch.float32)  # type: ignore[arg-type]
    spec = TtsSpec(package.audio_delay, package.delays, tts_spec.CODEBOOKS, guidance=name == "guided")
    lm = load_lm(path, package.lm, dtype=torch.float32)
    return TtsModel(mimi, lm, dataclasses.replace(spec, **changes)).eval(), package


@pytest.fixture(scope="module", params=list(tts_spec.MODELS))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mimi: Mimi) -> Any:
    return request.param, *build(request.param, tmp_path_factory.mktemp("lm"), mimi)


def test_weights_laid_out_at_load_are_written_as_they_were_read(tmp_path: Path, mimi: Mimi) -> None:
    model, package = build("guided", tmp_path, mimi)
    weight = model.lm.transformer.layers[0].self_attn.out_proj.weight
    assert weight.t().is_contiguous()
    assert not weight.is_contiguous()
    save_lm(model.lm, tmp_path / "again.safetensors", naming="pytorch")
    again = load_lm(tmp_path / "again.safetensors", package.lm, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.lm.parameters(), again.parameters(), strict=True))


def word(tokens: Sequence[int]) -> Word | Pause:
    return Pause(len(tokens) / 12.5 + 0.01) if tokens[0] == 3 else Word(f"w{tokens[0]}", tuple(tokens))


@dataclass
class Talk:
    """One stream, stepped by hand."""

    model: TtsModel
    package: Package
    slot: int
    words: list[list[int]]
    machine: DelayedWords = field(init=False)
    steps: int = 0
    sampled: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    pcm: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        padding = Padding(
            tts_spec.INITIAL_PADDING, tts_spec.MAX_PADDING, tts_spec.PADDING_BETWEEN, tts_spec.FINAL_PADDING
        )
        spec = self.model.spec
        ahead, vocabulary = self.package.second_stream_ahead, self.package.lm.text_in_vocab_size
        self.machine = DelayedWords(padding, spec.first_sound, ahead=ahead, vocabulary=vocabulary)
        for tokens in self.words:
            self.machine.add(word(tokens))
        self.machine.close()

    def begin(self, state: State, voice: int, sampling: Sampling = GREEDY) -> None:
        self.model.reset_slots(state, [self.slot])
        provider = self.model.lm.condition_provider
        assert provider is not None
        condition = provider.named("control", "ok")
        null = provider.learnt_padding("control")
        if "cfg" in provider.conditioners:
            condition = condition + provider.named("cfg", "2.0")
        speakers = SpeakerSpec(3, tts_spec.VOICE_FRAMES, tts_spec.VOICE_DIM, self.package.position_scale)
        embedding = torch.from_numpy(tts_spec.voice(voice))
        conditioner = provider.vectors(SPEAKER_TENSOR)
        sources = [speaker_source([embedding] * 2, conditioner, speakers), speaker_source([], conditioner, speakers)]
        voices = [self.model.lm.transformer.keys_values(source) for source in sources]
        if self.model.spec.guidance and sampling is GREEDY:
            sampling = dataclasses.replace(sampling, guidance=tts_spec.CFG)
        self.model.begin(state, self.slot, sampling, condition=(condition, null), voice=(voices[0], voices[1]))


def step(model: TtsModel, state: State, talks: Sequence[Talk]) -> None:
    """One step of all of ``talks``."""
    slots = torch.tensor([talk.slot for talk in talks])
    tokens, hidden = model.think(state, slots)
    forced = []
    for talk, token in zip(talks, tokens.tolist(), strict=True):
        talk.sampled.append(token)
        forced.append(talk.machine.force(token))
        talk.forced.append(forced[-1])
    voiced = [row for row, talk in enumerate(talks) if talk.steps >= model.spec.delay]
    rows = None if len(voiced) == len(talks) else torch.tensor(voiced, dtype=torch.int64)
    frames = model.speak(torch.tensor(forced), hidden, state, slots, rows)
    sounding = [row for row, talk in enumerate(talks) if talk.steps >= model.spec.first_sound]
    if sounding:
        pcm = model.sound(frames[sounding], state, slots[sounding])
        for row, piece in zip(sounding, pcm, strict=True):
            talks[row].frames.append(frames[row])
            talks[row].pcm.append(piece)
    for talk in talks:
        talk.steps += 1


def check(talk: Talk, golden: Any, key: str) -> None:
    assert talk.forced == golden[f"{key}.forced"].tolist()
    assert talk.sampled == golden[f"{key}.sampled"].tolist()
    assert torch.stack(talk.frames).tolist() == golden[f"{key}.frames"].tolist()
    pcm = torch.cat(talk.pcm)[:: mimi_spec.STRIDE]
    torch.testing.assert_close(pcm, torch.from_numpy(golden[f"{key}.pcm"]), atol=1e-3, rtol=0)


def test_three_voices_begun_at_different_times_are_upstreams(named: Any, golden: Any) -> None:
    name, model, package = named
    state = model.init_state(5)
    talks = [Talk(model, package, slot, tts_spec.STREAMS[n]["words"]) for n, slot in enumerate((4, 0, 2))]
    for tick in range(200):
        for number, talk in enumerate(talks):
            if tick == 7 * number:
                talk.begin(state, tts_spec.STREAMS[number]["voice"])
        running = [
            talk
            for number, talk in enumerate(talks)
            if tick >= 7 * number and not talk.machine.finished and (tick + number) % 5
        ]
        if running:
            step(model, state, running)
    for number, talk in enumerate(talks):
        assert talk.machine.finished
        check(talk, golden, f"{name}.{number}")
        words = [each.begin - 1 for each in talk.machine.spoken()]
        assert words == golden[f"{name}.{number}.words"].tolist()


@pytest.mark.parametrize("naming", ["candle", "pytorch"])
def test_one_stream_after_another_in_the_same_slot(naming: str, tmp_path: Path, mimi: Mimi, golden: Any) -> None:
    model, package = build("distilled", tmp_path, mimi, naming)
    state = model.init_state(2)
    for number, stream in enumerate(tts_spec.STREAMS):
        talk = Talk(model, package, 1, stream["words"])
        talk.begin(state, stream["voice"])
        while not talk.machine.finished:
            step(model, state, [talk])
        check(talk, golden, f"distilled.{number}")
    model.reset_slots(state, [0, 1])
    assert not any(bool(tensor.any()) for tensor in leaves(state))


def test_the_first_sound_comes_as_soon_as_the_delays_allow(named: Any) -> None:
    _, model, package = named
    talk = Talk(model, package, 0, tts_spec.STREAMS[0]["words"])
    state = model.init_state(1)
    talk.begin(state, 0)
    while not talk.pcm:
        step(model, state, [talk])
    assert talk.steps == package.audio_delay + max(package.delays) + 1
    assert len(talk.pcm[0]) == 1920


def test_sampling_is_the_seeds_alone(named: Any) -> None:
    _, model, package = named
    words = tts_spec.STREAMS[1]["words"]

    def say(seeds: Sequence[int], temperature: float = 0.8) -> list[list[int]]:
        state = model.init_state(4)
        talks = [Talk(model, package, slot, words) for slot in range(len(seeds))]
        for talk, seed in zip(talks, seeds, strict=True):
            talk.begin(state, 0, Sampling(temperature=temperature, seed=seed))
        for _ in range(30):
            step(model, state, talks)
        return [torch.stack(talk.frames).flatten().tolist() for talk in talks]

    first, second, again = say([5, 6, 5])
    assert first == again
    assert first != second
    assert say([6]) == [second]
    assert say([5 + 2**40, 6], 0.0)[0] == say([5], 0.0)[0]


def test_guidance_is_each_streams_own(tmp_path: Path, mimi: Mimi) -> None:
    model, package = build("guided", tmp_path, mimi, without_text=False)
    words = tts_spec.STREAMS[0]["words"]

    def say(coefficients: Sequence[float]) -> list[list[int]]:
        state = model.init_state(3)
        talks = [Talk(model, package, slot, words) for slot in range(len(coefficients))]
        for talk, coefficient in zip(talks, coefficients, strict=True):
            talk.begin(state, 0, Sampling(temperature=0.0, guidance=coefficient))
        for _ in range(25):
            step(model, state, talks)
        return [torch.stack(talk.frames).flatten().tolist() for talk in talks]

    both = say([3.0, 1.0])
    assert both[0] != both[1]
    assert say([3.0]) == [both[0]]
    assert say([1.0]) == [both[1]]


def test_more_padding_for_a_bonus(tmp_path: Path, mimi: Mimi) -> None:
    model, package = build("distilled", tmp_path, mimi, pad_bonus=100.0)
    talk = Talk(model, package, 0, tts_spec.STREAMS[0]["words"])
    state = model.init_state(1)
    talk.begin(state, 0)
    for _ in range(20):
        step(model, state, [talk])
    assert talk.sampled == [3] * 20


def test_state_says_where_a_stream_is(named: Any) -> None:
    _, model, package = named
    state = model.init_state(2)
    talk = Talk(model, package, 1, tts_spec.STREAMS[0]["words"])
    talk.begin(state, 0)
    step(model, state, [talk])
    assert leaf(state, "steps").tolist() == [0, 1]
