"""The TOML: published files as they are, faults in sentences that name file, key and what was meant."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.config import (
    AsrConfig,
    BatchedAsrConfig,
    Config,
    LmConfig,
    MimiConfig,
    PyBatchedAsrConfig,
    PyConfig,
    PyPostConfig,
    TtsConfig,
    check_config,
    load_config,
)
from moshi_server.errors import ConfigError

DATA = Path(__file__).parent / "data" / "configs"
PUBLISHED = sorted(DATA.glob("*/*.toml"))
SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
ENV = {"HOME": "/home/somebody"}

TOP = 'static_dir = "s"\nlog_dir = "l"\ninstance_name = "i"\n'
TRANSFORMER = """
d_model = 64
num_heads = 4
num_layers = 2
dim_feedforward = 256
context = 10
max_period = 10000
norm = "RmsNorm"
positional_embedding = "Rope"
"""
MODEL = f"""
[modules.m.model]
text_in_vocab_size = 9
text_out_vocab_size = 8
audio_vocab_size = 17
audio_codebooks = 4
[modules.m.model.transformer]
{TRANSFORMER}
"""
FILES = """
lm_model_file = "hf://o/r/lm"
text_tokenizer_file = "t"
audio_tokenizer_file = "a"
"""
TTS_KEYS = """
acoustic_delay text_pad_token text_bos_token text_eos_token text_eop_token text_start_token text_audio_delay_in_tokens
max_consecutive_pads extra_steps speaker_cond_duration_s speaker_cond_dim speaker_cond_n_speakers
"""
DIALOGUE = f"""
[modules.m.gen]
generated_audio_codebooks = 2
input_audio_codebooks = 2
audio_vocab_size = 17
acoustic_delay = 2
text_pad_token = 3
text_eop_token = 0
text_start_token = 8
{MODEL}
[modules.m.model.depformer]
num_slices = 2
[modules.m.model.depformer.transformer]
{TRANSFORMER}
[modules.m.model.conditioners.description]
type = "Lut"
n_bins = 3
dim = 4
possible_values = ["bad", "good"]
"""
ASR = f'{TOP}[modules.m]\ntype = "BatchedAsr"\npath = "/p"\nbatch_size = 3\nasr_delay_in_tokens = 6\n{FILES}'


def check(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> tuple[Config | None, list[ConfigError]]:
    file = tmp_path / "c.toml"
    file.write_text(text, encoding="utf-8")
    return check_config(file, ENV if env is None else env)


def one_fault(tmp_path: Path, text: str) -> ConfigError:
    config, faults = check(tmp_path, text)
    assert config is None
    assert len(faults) == 1, [str(fault) for fault in faults]
    assert str(tmp_path / "c.toml") in str(faults[0])
    return faults[0]


def good(tmp_path: Path, text: str) -> Config:
    config, faults = check(tmp_path, text)
    assert config is not None, [str(fault) for fault in faults]
    return config


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_2_a_published_file_loads_unchanged(file: Path) -> None:
    raw = tomllib.loads(file.read_text(encoding="utf-8"))
    config = load_config(file, ENV)
    assert list(config.modules) == list(raw["modules"])
    for name, table in raw["modules"].items():
        assert _subset(table, config.modules[name].model_dump()) == []


def _subset(raw: Any, read: Any, where: str = "") -> list[str]:
    """Where ``read`` differs from what ``raw`` says; variables apart."""
    if isinstance(raw, dict):
        return [fault for key in raw for fault in _subset(raw[key], read[key], f"{where}.{key}")]
    same = raw == read or (isinstance(raw, str) and "$" in raw)
    return [] if same else [f"{where}: {raw!r} became {read!r}"]


def test_the_published_files_are_all_here() -> None:
    assert len(PUBLISHED) == 11


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_file_loads_with_an_empty_environment(file: Path) -> None:
    assert load_config(file, {}).modules


def test_values_of_the_1b_model(tmp_path: Path) -> None:
    asr = load_config(DATA / "dsm" / "config-stt-en_fr-hf.toml", ENV).modules["asr"]
    assert isinstance(asr, BatchedAsrConfig)
    assert (asr.batch_size, asr.asr_delay_in_tokens, asr.temperature) == (64, 6, 0.0)
    assert asr.model.transformer.num_layers == 16
    assert asr.model.transformer.layer_scale is None
    assert asr.model.extra_heads is not None
    assert (asr.model.extra_heads.num_heads, asr.model.extra_heads.dim) == (4, 6)
    assert asr.model.depformer is None


def test_the_fork_file_has_no_keys_of_its_own_but_a_number_type(tmp_path: Path) -> None:
    config = load_config(DATA / "fork" / "config-stt-en_fr-lowram-sm75.toml", ENV)
    asr = config.modules["asr"]
    assert isinstance(asr, BatchedAsrConfig)
    assert asr.dtype_override == "f32"
    assert config.authorized_ids == frozenset()


def test_2_what_a_file_may_leave_out(tmp_path: Path) -> None:
    config = good(tmp_path, TOP)
    assert config.modules == {}
    assert config.authorized_ids == frozenset()
    assert config.warmup.enabled
    asr = good(tmp_path, ASR + MODEL).modules["m"]
    assert asr.auth
    assert asr.device is None
    assert asr.max_session_seconds is None


def test_2_every_module_type_is_read(tmp_path: Path) -> None:
    path = 'path = "/p"\n'
    generation = "\n".join(f"{key} = 1" for key in TTS_KEYS.split())
    tables = {
        AsrConfig: path + "asr_delay_in_tokens = 6\n" + FILES + MODEL,
        BatchedAsrConfig: path + 'asr_delay_in_tokens = 6\nbatch_size = "auto"\n' + FILES + MODEL,
        PyBatchedAsrConfig: path + 'asr_delay_in_tokens = 6\nbatch_size = 2\ntext_tokenizer_file = "t"\n',
        TtsConfig: path
        + 'voice_dir = "v"\nspeaker_tokenizer_file = "s"\n[modules.m.voices]\nbob = "hf://o/r/bob.wav"\n'
        + f"[modules.m.generation]\n{generation}\n{MODEL}",
        PyConfig: path + 'batch_size = 2\ntext_tokenizer_file = "t"\ntext_bos_token = 1\n[modules.m.py]\nn_q = 24\n',
        PyPostConfig: path + 'script = "voice.py"\n',
        LmConfig: path + FILES + DIALOGUE,
        MimiConfig: 'send_path = "/s"\nrecv_path = "/r"\naudio_tokenizer_file = "a"\nrooms = ["x"]\nauth_recv = true\n',
    }
    for kind, body in tables.items():
        name = kind.__name__.removesuffix("Config")
        if kind is TtsConfig:
            body = FILES + body
        module = good(tmp_path, f'{TOP}[modules.m]\ntype = "{name}"\n{body}').modules["m"]
        assert type(module) is kind
        assert module.type == name


LM = f'{TOP}[modules.m]\ntype = "Lm"\npath = "/p"\n{FILES}'


def test_a_dialogue_draws_tokens_as_upstream_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    module = good(tmp_path, LM + DIALOGUE).modules["m"]
    assert isinstance(module, LmConfig)
    assert (module.sampling.text_topk, module.sampling.audio_topk) == (25, 250)
    assert module.sampling.text_temperature == module.sampling.audio_temperature == 0.8
    assert module.max_session_seconds == 360
    told = "[modules.m.sampling]\ntext_temperature = 0.0\n[modules.m.conditions]\ndescription = 'bad'\n"
    module = good(tmp_path, LM + "max_session_seconds = inf\n" + told + DIALOGUE).modules["m"]
    assert isinstance(module, LmConfig)
    assert module.sampling.text_temperature == 0
    assert module.conditions == {"description": "bad"}
    assert module.max_session_seconds == float("inf")


def test_2_upstreams_shape_of_hibiki_is_a_dialogues_model(tmp_path: Path) -> None:
    shape = (DATA.parent / "models" / "s2st-1b.toml").read_text(encoding="utf-8")
    gen = DIALOGUE.partition("[modules.m.model]")[0]
    for old, new in (
        ("codebooks = 2", "codebooks = 8"),
        ("= 17", "= 2049"),
        ("start_token = 8", "start_token = 48000"),
    ):
        gen = gen.replace(old, new)
    text = re.sub(r"^\[", "[modules.m.model.", shape, flags=re.MULTILINE)
    module = good(tmp_path, f"{LM}{gen}\n[modules.m.model]\n{text}").modules["m"]
    assert isinstance(module, LmConfig)
    assert module.model.model_dump(exclude_unset=True) == tomllib.loads(shape)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_slices = 2", "num_slices = 1", "generated_audio_codebooks = 2 must be from 1 to"),
        ("input_audio_codebooks = 2", "input_audio_codebooks = 3", "gen has 2 + 3 codebooks"),
        ("audio_vocab_size = 17\nacoustic", "audio_vocab_size = 18\nacoustic", "audio_vocab_size and"),
        ("text_start_token = 8", "text_start_token = 9", "gen.text_start_token"),
        ("[modules.m.gen]", "[modules.m.conditions]\ndescription = 'worse'\n[modules.m.gen]", "'worse' is not a value"),
        ("[modules.m.gen]", "[modules.m.conditions]\nmood = 'good'\n[modules.m.gen]", "conditions.mood is not a"),
        ("[modules.m.gen]", "[modules.m.sampling]\ntext_topk = 0\n[modules.m.gen]", "text_topk"),
    ],
)
def test_a_dialogue_whose_parts_do_not_fit_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert DIALOGUE.count(old) == 1
    assert said in str(one_fault(tmp_path, LM + DIALOGUE.replace(old, new)))


def test_a_dialogue_needs_a_depth_transformer(tmp_path: Path) -> None:
    before, _, after = DIALOGUE.partition("[modules.m.model.depformer]")
    rest = after.partition("[modules.m.model.conditioners")[2]
    assert "[model.depformer]" in str(one_fault(tmp_path, LM + before + "[modules.m.model.conditioners" + rest))


def test_upstream_session_limits_are_the_defaults(tmp_path: Path) -> None:
    text = ASR.replace('"BatchedAsr"', '"Asr"').replace("batch_size = 3\n", "") + MODEL
    assert good(tmp_path, text).modules["m"].max_session_seconds == 360
    assert good(tmp_path, ASR + MODEL).modules["m"].idle_timeout_seconds == 20
    assert good(tmp_path, ASR + MODEL).modules["m"].message_timeout_seconds == 120


def test_2_conditioners_cross_attention_and_depformer(tmp_path: Path) -> None:
    extra = f"""
cross_attention = ["ConditionalGatedSigmoid", "LayerNorm", 64]
layer_scale = 0.01
[modules.m.model.depformer]
num_slices = 8
[modules.m.model.depformer.transformer]
{TRANSFORMER}
[modules.m.model.conditioners.delay]
type = "ContinuousAttribute"
dim = 16
scale_factor = -10
max_period = 1e4
[modules.m.model.conditioners.quality]
type = "Lut"
n_bins = 3
dim = 8
possible_values = ["bad", "good"]
"""
    asr = good(tmp_path, ASR + MODEL + extra).modules["m"]
    assert isinstance(asr, BatchedAsrConfig)
    assert asr.model.transformer.cross_attention == ("ConditionalGatedSigmoid", "LayerNorm", 64)
    assert asr.model.depformer is not None
    assert asr.model.depformer.num_slices == 8
    assert asr.model.conditioners is not None
    assert asr.model.conditioners["quality"].type == "Lut"


@pytest.mark.parametrize(
    ("line", "key", "message", "hint"),
    [
        ("temprature = 0", "modules.m.temprature", "unknown key", "did you mean temperature?"),
        ("num_layers = 3", "modules.m.num_layers", "unknown key here", "it belongs in [modules.m.model.transformer]"),
        ("log_dir = 'x'", "modules.m.log_dir", "unknown key here", "it belongs at the top of the file"),
        ("dtype_override = 'fp16'", "modules.m.dtype_override", 'expected one of "f32", "f16", "bf16"', "f16?"),
        ("temperature = 'hot'", "modules.m.temperature", 'expected a number, got the string "hot"', ""),
        ("temperature = -0.5", "modules.m.temperature", "greater than or equal to 0, got -0.5", ""),
        ("conditioning_learnt_padding = 1", "modules.m.conditioning_learnt_padding", "true or false, got 1", ""),
        ("device = 'gpu0'", "modules.m.device", '"cuda:N"', ""),
        ("auth = 'no'", "modules.m.auth", "expected true or false", ""),
        ("max_session_seconds = 0", "modules.m.max_session_seconds", "greater than 0", ""),
        ("quantize = 'int3'", "modules.m.quantize", 'expected one of "int8"', ""),
    ],
)
def test_2_a_wrong_line_is_named_with_what_was_meant(
    tmp_path: Path, line: str, key: str, message: str, hint: str
) -> None:
    fault = one_fault(tmp_path, ASR + line + MODEL)
    assert fault.key == key
    assert message in str(fault)
    assert hint in fault.hint
    if hint:
        assert fault.hint


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("batch_size = 3", "batch_size = 0", "modules.m.batch_size", '"auto"'),
        ("batch_size = 3", "batch_size = true", "modules.m.batch_size", '"auto"'),
        ("batch_size = 3", "", "modules.m.batch_size", "needed"),
        ('path = "/p"', 'path = "p"', "modules.m.path", 'begins with "/"'),
        ('type = "BatchedAsr"', 'type = "BatchedASR"', "modules.m", "unknown type 'BatchedASR'"),
        ('type = "BatchedAsr"', "", "modules.m", "no type"),
        (
            'lm_model_file = "hf://o/r/lm"',
            'lm_model_file = "hf://o/r"',
            "modules.m.lm_model_file",
            "hf://ORG/REPO/PATH",
        ),
        ('instance_name = "i"', 'instance_name = "a/b"', "instance_name", "no slash"),
        ("num_heads = 4", "num_heads = 5", "modules.m.model.transformer", "not a multiple"),
        ('norm = "RmsNorm"', 'norm = "rmsnorm"', "modules.m.model.transformer.norm", '"RmsNorm"'),
        ("d_model = 64", "d_model = 64.0", "modules.m.model.transformer.d_model", "whole number"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, old: str, new: str, key: str, message: str) -> None:
    text = ASR + MODEL
    assert old in text
    fault = one_fault(tmp_path, text.replace(old, new, 1))
    assert fault.key == key
    assert message in str(fault)


def test_every_fault_is_found_at_once(tmp_path: Path) -> None:
    _, faults = check(tmp_path, 'static_dir = 1\nlog_dir = "$NOWHERE"\ninstance_nam = "x"\n')
    assert sorted(fault.key for fault in faults) == ["instance_nam", "instance_name", "log_dir", "static_dir"]


def test_load_says_the_first_fault_and_how_many_more(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("static_dir = 1\nlog_dir = 2\ninstance_name = 3\n")
    with pytest.raises(ConfigError, match=r"static_dir: expected a string, got 1 \(and 2 more: see"):
        load_config(file, {})


def test_two_modules_cannot_answer_one_path(tmp_path: Path) -> None:
    text = f'{TOP}[modules.a]\ntype = "PyPost"\npath = "/x"\n[modules.b]\ntype = "PyPost"\npath = "/x"\n'
    assert 'modules a and b both answer "/x"' in str(one_fault(tmp_path, text))


def test_a_default_room_must_be_a_room(tmp_path: Path) -> None:
    text = (
        f'{TOP}[modules.m]\ntype = "Mimi"\nsend_path = "/s"\nrecv_path = "/r"\naudio_tokenizer_file = "a"\n'
        'rooms = ["x"]\ndefault_room = "y"\n'
    )
    assert "default_room" in str(one_fault(tmp_path, text))


def test_2_variables_come_from_the_environment(tmp_path: Path) -> None:
    text = TOP.replace('"l"', '"$HOME/a/${NAME}b$$c"') + 'authorized_ids = ["$KEY", "plain"]\n'
    config, _ = check(tmp_path, text, {"HOME": "/h", "NAME": "n", "KEY": "secret"})
    assert config is not None
    assert config.log_dir == "/h/a/nb$c"
    assert config.authorized_ids == {"secret", "plain"}


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    _, faults = check(tmp_path, TOP + 'authorized_ids = ["$MY_KEY"]\n', {})
    assert [fault.key for fault in faults] == ["authorized_ids.0"]
    assert "MY_KEY is not set" in str(faults[0])
    assert ".env" in faults[0].hint


def test_a_lone_dollar_stays(tmp_path: Path) -> None:
    assert good(tmp_path, TOP.replace('"l"', '"5$ a$"')).log_dir == "5$ a$"


def test_a_scripts_own_table_is_free_and_has_variables(tmp_path: Path) -> None:
    text = (
        f'{TOP}[modules.m]\ntype = "PyPost"\npath = "/p"\n[modules.m.py]\nany = "$HOME/x"\ndeep = {{ k = [1, 2.5] }}\n'
    )
    module = good(tmp_path, text).modules["m"]
    assert isinstance(module, PyPostConfig)
    assert module.py == {"any": "/home/somebody/x", "deep": {"k": [1, 2.5]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = ", "not valid TOML"), (b"a = '\xff'", "not UTF-8"), (b"a = 1\na = 2", "not valid TOML")],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(file, {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file"):
        load_config(tmp_path / "gone.toml", {})
    with pytest.raises(ConfigError, match="a folder, not a file"):
        load_config(tmp_path, {})


SCALARS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner))
)
KEYS = st.sampled_from(["type", "path", "model", "transformer", "batch_size", "conditioners", "rooms", "py", "x"])
TABLES = st.dictionaries(KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES)))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["Asr", "BatchedAsr", "Tts", "Py", "PyPost", "Lm", "Mimi", "PyBatchedAsr"]), TABLES)
def test_no_table_crashes_the_explanation(kind: str, table: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from moshi_server.config.explain import explain

    raw = {"static_dir": "s", "log_dir": "l", "instance_name": "i", "modules": {"m": {"type": kind} | table}}
    try:
        Config.model_validate(raw)
    except ValidationError as error:
        faults = explain(error, raw, "f.toml")
        assert faults
        assert all(str(fault).startswith("f.toml: ") for fault in faults)
