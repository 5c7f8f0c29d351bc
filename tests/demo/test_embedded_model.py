"""The files inside the package recognise the recordings beside them, stay quiet on noise, and are small."""

import json
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from moshi_server.audio import read_audio
from moshi_server.events import EndWord, Word
from moshi_server.model.lm import LmSpec
from moshi_server.model.stt import SttModel
from moshi_server.model.transformer import TransformerSpec
from moshi_server.model.weights import load_lm
from moshi_server.model.weights_mimi import load_mimi
from moshi_server.speech.asr import WordAssembler
from moshi_server.speech.tokenizer import TextTokenizer

DEMO = Path(str(resources.files("moshi_server") / "demo"))
SAMPLES = sorted(p for p in (DEMO / "samples").iterdir() if p.suffix in (".wav", ".flac", ".ogg"))
CONFIG = Path(__file__).parents[2] / "configs" / "demo.toml"


@pytest.fixture(scope="module")
def module_config():
    return tomllib.loads(CONFIG.read_text())["modules"]["asr"]


@pytest.fixture(scope="module")
def model(module_config):
    torch.set_num_threads(1)
    shape = module_config["model"]
    transformer = shape["transformer"]
    spec = LmSpec(
        shape["text_in_vocab_size"],
        shape["text_out_vocab_size"],
        shape["audio_vocab_size"],
        shape["audio_codebooks"],
        TransformerSpec(
            transformer["d_model"],
            transformer["num_heads"],
            transformer["num_layers"],
            transformer["dim_feedforward"],
            transformer["context"],
            gating="silu",
        ),
        shape["extra_heads"]["num_heads"],
        shape["extra_heads"]["dim"],
    )
    lm = load_lm(DEMO / "model.safetensors", spec, dtype=torch.float32)
    return SttModel(load_mimi(DEMO / "mimi.safetensors", decoder=False), lm)


def listen(model: SttModel, module_config: dict, pcm: np.ndarray):
    """Words and ends of a recording, and the pause heads of each step."""
    delay = module_config["asr_delay_in_tokens"]
    pcm = np.concatenate([pcm, np.zeros(1920 * (delay + 8), np.float32)])
    assembler = WordAssembler(delay, TextTokenizer(DEMO / "tokenizer.model").decode)
    state, slots = model.init_state(1), torch.zeros(1, dtype=torch.int64)
    events, heads = [], []
    for at in range(0, len(pcm) - 1919, 1920):
        tokens, probabilities = model.step(torch.from_numpy(pcm[None, at : at + 1920]), state, slots)
        events += assembler.step(int(tokens[0]))
        heads.append(probabilities[0].numpy())
    return events, np.array(heads)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_every_sample_is_transcribed_word_for_word(model, module_config, path):
    events, _ = listen(model, module_config, read_audio(path))
    words = [e for e in events if isinstance(e, Word)]
    assert " ".join(w.text for w in words) == path.with_suffix(".txt").read_text().strip()
    starts = [w.start_time for w in words]
    assert starts == sorted(starts)
    # The recordings begin with 0.4 s of silence, and the first word 0.05 s later.
    assert starts[0] == pytest.approx(0.45, abs=0.16)
    assert len([e for e in events if isinstance(e, EndWord)]) == len(words)


def test_there_are_several_samples_of_several_engines():
    assert len(SAMPLES) >= 3
    assert len({p.suffix for p in SAMPLES}) >= 2


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1])
def test_noise_is_no_speech(model, module_config, level):
    noise = np.random.default_rng(0).standard_normal(24000 * 8).astype(np.float32) * level
    events, heads = listen(model, module_config, noise)
    assert events == []
    # A pause of each length is under way once it has lasted that long, and half a second more.
    for head, seconds in enumerate((0.5, 1.0, 2.0, 3.0)):
        assert (heads[int((seconds + 0.5) * 12.5) :, head] > 0.5).all()
        assert (heads[: int((seconds - 0.3) * 12.5), head] < 0.5).all()


def test_the_files_fit_in_twelve_megabytes():
    assert sum(p.stat().st_size for p in DEMO.rglob("*") if p.is_file()) < 12e6


def test_the_codec_describes_itself():
    from safetensors import safe_open

    with safe_open(DEMO / "mimi.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["mimi_spec"])
    assert spec["sample_rate"] == 24000
    assert spec["frame_rate"] == 12.5
