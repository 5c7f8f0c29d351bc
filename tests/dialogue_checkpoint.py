"""A small seeded dialogue model as files and a configuration, for tests that load one; its output is no speech."""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch

from moshi_server.config import Config, load_config
from moshi_server.model.synthetic import write_lm
from moshi_server.model.synthetic_mimi import write_mimi

from .golden.dialogue_spec import CONDITION, DIALOGUE, LM, MIMI, SEED, VALUES


def write_dialogue(folder: Path) -> Path:
    """Language model, codec and tokenizer in ``folder``."""
    write_lm(folder / "lm.safetensors", LM, seed=SEED, naming="candle", dtype=torch.float32)
    write_mimi(folder / "mimi.safetensors", MIMI, seed=SEED)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n o p q r s t u v w x y z"]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=LM.text_out_vocab_size,
        user_defined_symbols=[f"▁w{number}" for number in range(10)],
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


def dialogue_config(
    folder: Path, tmp_path: Path, extra: str = "", *, sampling: str = "", path: str = "/api/chat"
) -> Config:
    """A configuration of one module ``lm`` on the CPU."""
    file = tmp_path / "config.toml"
    file.write_text(dialogue_toml(folder, extra, sampling=sampling, path=path), encoding="utf-8")
    return load_config(file)


def dialogue_toml(folder: Path, extra: str = "", *, sampling: str = "", path: str = "/api/chat") -> str:
    main, depth = LM.transformer, LM.depformer
    assert depth is not None
    inner = depth.transformer

    def transformer(spec: object, positional: str) -> str:
        keys = ("d_model", "num_heads", "num_layers", "dim_feedforward", "context")
        lines = [f"{key} = {getattr(spec, key)}" for key in keys]
        return "\n".join([*lines, 'max_period = 10000\ngating = "silu"\nnorm = "RmsNorm"', positional])

    values = ", ".join(f'"{value}"' for value in VALUES)
    return f"""
static_dir = "static"
log_dir = "logs"
instance_name = "test"
[modules.lm]
type = "Lm"
path = "{path}"
device = "cpu"
batch_size = 3
lm_model_file = "{folder}/lm.safetensors"
text_tokenizer_file = "{folder}/tokenizer.model"
audio_tokenizer_file = "{folder}/mimi.safetensors"
{extra}
[modules.lm.sampling]
{sampling}
[modules.lm.gen]
generated_audio_codebooks = {DIALOGUE.generated_audio_codebooks}
input_audio_codebooks = {DIALOGUE.input_audio_codebooks}
audio_vocab_size = {LM.audio_vocab_size}
acoustic_delay = {DIALOGUE.acoustic_delay}
text_pad_token = {DIALOGUE.text_pad_token}
text_eop_token = {DIALOGUE.text_eop_token}
text_start_token = {DIALOGUE.text_start_token}
[modules.lm.model]
text_in_vocab_size = {LM.text_in_vocab_size}
text_out_vocab_size = {LM.text_out_vocab_size}
audio_vocab_size = {LM.audio_vocab_size}
audio_codebooks = {LM.audio_codebooks}
[modules.lm.model.transformer]
{transformer(main, 'positional_embedding = "Rope"')}
[modules.lm.model.depformer]
num_slices = {depth.codebooks}
[modules.lm.model.depformer.transformer]
{transformer(inner, 'positional_embedding = "None"')}
[modules.lm.model.conditioners.{CONDITION}]
type = "Lut"
n_bins = 31
dim = 16
possible_values = [{values}]
"""
