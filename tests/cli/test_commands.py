"""The command line as a user meets it: each test starts the real program in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from moshi_server.cli.validate import VARIABLES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
PUBLISHED = sorted((ROOT / "tests" / "data" / "configs").glob("dsm/*.toml"))
EMPTY = 'static_dir = "static"\nlog_dir = "logs"\ninstance_name = "test"\nauthorized_ids = ["key"]\n'
LOOK = """
import json, sys
from moshi_server.cli import main
sys.argv = ["moshi-server", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    code = end.code
sys.stderr.write("\\nLOADED " + json.dumps([code, sorted(sys.modules)]))
"""
HEAVY = {"torch", "numpy", "fastapi", "uvicorn", "sphn", "huggingface_hub", "sentencepiece"}


def environment(**extra: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {"HOME": "/home/somebody", "COLUMNS": "100"} | extra


def moshi_server(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moshi_server.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=100, check=False
    )


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The single line on the error output of a command that failed."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["worker", "--help"],
        ["--version"],
        ["validate", str(PUBLISHED[0])],
        ["configs"],
        ["configs", "demo"],
    ],
    ids=" ".join,
)
def test_a_light_command_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(arguments)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    code, modules = json.loads(done.stderr.rpartition("LOADED ")[2])
    assert not code
    assert "moshi_server.cli" in modules
    assert HEAVY.intersection(modules) == set()


def test_1_help_names_every_command(tmp_path: Path) -> None:
    done = moshi_server("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("worker", "validate", "configs"):
        assert command in done.stdout


def test_1_worker_has_the_options_of_upstream_and_ours(tmp_path: Path) -> None:
    shown = moshi_server("worker", "--help", cwd=tmp_path).stdout
    for option in ("--config", "--log", "-l", "--addr", "-a", "--port", "-p", "--cpu", "--silent"):
        assert f" {option} " in shown
    assert "--log-max-size-mb" in shown
    assert "--log-max-files" in shown
    for default in ("0.0.0.0", "8080", "100", "10", "info"):
        assert f"[default: {default}]" in shown


def test_1_validate_accepts_published_files(tmp_path: Path) -> None:
    done = moshi_server("validate", "-q", *map(str, PUBLISHED), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[1:] for line in done.stdout.splitlines()] == [
        [" ok", " asr (BatchedAsr)"], [" ok", " asr (BatchedAsr)"], [" ok", " tts_py (Py)"]
    ]  # fmt: skip


def test_1_validate_reports_file_key_and_reason_of_each_fault(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(EMPTY)
    (tmp_path / "bad.toml").write_text(EMPTY.replace('"logs"', "3") + "wramup = 1\n")
    (tmp_path / "worse.toml").write_text("= 3")
    done = moshi_server("validate", "-q", "bad.toml", "good.toml", "worse.toml", "gone.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "good.toml: ok: no modules\n"
    faults = done.stderr.splitlines()
    assert faults[0] == "error: bad.toml: log_dir: expected a string, got 3"
    assert faults[1] == "error: bad.toml: wramup: unknown key (did you mean warmup?)"
    assert faults[2].startswith("error: worse.toml: not valid TOML: ")
    assert faults[3].startswith("error: gone.toml: no such file")
    assert len(faults) == 4


def test_1_validate_names_a_local_file_that_is_not_there(tmp_path: Path) -> None:
    module = '[modules.v]\ntype = "PyPost"\npath = "/v"\nscript = "voice.py"\n'
    (tmp_path / "c.toml").write_text(EMPTY + module)
    line = one_error(moshi_server("validate", "c.toml", cwd=tmp_path))
    assert line.startswith("error: c.toml: modules.v.script: there is no file voice.py")
    (tmp_path / "voice.py").write_text("")
    assert moshi_server("validate", "c.toml", cwd=tmp_path).returncode == 0


def test_3_dotenv_is_loaded_before_the_configuration_and_what_is_set_wins(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(EMPTY + '[modules.v]\ntype = "PyPost"\npath = "/v"\nscript = "$WHERE/v.py"\n')
    (tmp_path / ".env").write_text("WHERE=from-dotenv\n")
    assert "no file from-dotenv/v.py" in one_error(moshi_server("validate", "c.toml", cwd=tmp_path))
    assert "no file set/v.py" in one_error(moshi_server("validate", "c.toml", cwd=tmp_path, WHERE="set"))


ORIGINS = (
    EMPTY
    + """
[warmup]
enabled = false
[modules.tts]
type = "Py"
path = "$ROUTE"
batch_size = 4
script = "speak.py"
text_tokenizer_file = "hf://$ORGANIZATION/${REPOSITORY}/text.model"
text_bos_token = 1
[modules.tts.py]
n_q = 24
api_token = "a-token-of-the-script"
greeting = "$GREETING_SECRET"
"""
)


def origins_shown(folder: Path, **environ: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """What `validate` prints, and in it each key's value and origin."""
    (folder / "speak.py").write_text("")  # whose keys under [modules.tts.py] are its own business
    done = moshi_server("validate", "c.toml", cwd=folder, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    rows = (re.split(r"  +", line.strip()) for line in done.stdout.splitlines() if line.startswith("  "))
    return done.stdout, {key: (value, source) for key, value, source in rows}


def test_3_validate_shows_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(ORIGINS)
    (tmp_path / ".env").write_text("ROUTE=/from-dotenv\nORGANIZATION=lost\nMOSHI_VRAM_RESERVED_MB=256\n")
    environ = {"ORGANIZATION": "kyutai", "REPOSITORY": "tts", "GREETING_SECRET": "hush-hush-hush", "HF_HOME": "/hub"}
    _, rows = origins_shown(tmp_path, **environ)
    assert rows["log_dir"] == ('"logs"', "file")
    assert rows["warmup.enabled"] == ("false", "file")
    assert rows["shutdown_grace_seconds"] == ("30.0", "default")
    assert rows["modules.tts.batch_size"] == ("4", "file")
    assert rows["modules.tts.device"] == ("none", "default")
    assert rows["modules.tts.path"] == ('"/from-dotenv"', "file, $ROUTE of .env")
    assert rows["modules.tts.text_tokenizer_file"] == (
        '"hf://kyutai/tts/text.model"', "file, $ORGANIZATION of environment, $REPOSITORY of environment"
    )  # fmt: skip
    assert rows["modules.tts.text_bos_token"] == ("1", "file")
    assert rows["modules.tts.py.n_q"] == ("24", "file")
    assert rows["MOSHI_VRAM_RESERVED_MB"] == ('"256"', ".env")
    assert rows["MOSHI_PER_BATCH_ITEM_MB"][1] == "default"
    assert rows["HF_HOME"] == ('"/hub"', "environment")
    assert rows["HF_HUB_OFFLINE"] == ("0", "default")


def test_3_validate_masks_every_secret(tmp_path: Path) -> None:
    secrets = {
        "GREETING_SECRET": "hush-hush-hush",
        "BETTER_AUTH_SECRET": "never-to-be-seen-by-anyone-at-all",
        "HF_TOKEN": "hf_abcdefghijklmnop",
        "MOSHI_API_KEY": "an-api-key-of-some-length, short",
    }
    (tmp_path / "c.toml").write_text(ORIGINS.replace('["key"]', '["the-key-of-the-file"]'))
    places = {"ROUTE": "/r", "ORGANIZATION": "o", "REPOSITORY": "r"}
    text, rows = origins_shown(tmp_path, **secrets, **places)
    for secret in ("hush-", "never-to", "hf_abc", "api-key-of", "short", "key-of-the", "a-token-of"):
        assert secret not in text
    assert rows["authorized_ids"] == ("the-ke...file", "file")
    assert rows["MOSHI_API_KEY"] == ("an-api...ngth, *hidden*", "environment")
    assert rows["BETTER_AUTH_SECRET"] == rows["HF_TOKEN"] == ("*hidden*", "environment")
    assert rows["modules.tts.py.greeting"] == ("*hidden*", "file, $GREETING_SECRET of environment")
    assert rows["modules.tts.py.api_token"] == ("*hidden*", "file")


def test_3_validate_refuses_a_variable_that_makes_no_sense(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(EMPTY)
    done = moshi_server("validate", "c.toml", cwd=tmp_path, MOSHI_PER_BATCH_ITEM_MB="much")
    assert done.returncode == 1
    assert done.stderr.startswith("error: MOSHI_PER_BATCH_ITEM_MB: expected a number above 0, got 'much'")


def test_3_the_example_of_dotenv_names_every_variable() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^# ([A-Z_]+)=", text, re.MULTILINE)) == set(VARIABLES)


def test_1_configs_lists_all_that_are_shipped(tmp_path: Path) -> None:
    done = moshi_server("configs", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [file.stem for file in CONFIGS]
    assert all(len(line.split()) > 4 for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["demo", "demo.toml"])
def test_1_configs_prints_one_exactly(name: str, tmp_path: Path) -> None:
    done = moshi_server("configs", name, cwd=tmp_path)
    assert done.stdout == (ROOT / "configs" / "demo.toml").read_text()
    assert tomllib.loads(done.stdout)["modules"]


def test_1_configs_of_an_unknown_name_says_what_was_meant(tmp_path: Path) -> None:
    line = one_error(moshi_server("configs", "config-stt-en-hff", cwd=tmp_path))
    assert "did you mean config-stt-en-hf?" in line


def test_1_a_missing_configuration_is_one_line(tmp_path: Path) -> None:
    line = one_error(moshi_server("worker", "--config", "gone.toml", cwd=tmp_path))
    assert line.startswith("error: gone.toml: no such file")


def test_1_a_wrong_key_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(EMPTY.replace("log_dir", "log_dri"))
    line = one_error(moshi_server("worker", "--config", "c.toml", cwd=tmp_path))
    assert "c.toml: " in line
    assert "and 1 more" in line


def test_1_a_log_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file is in the way")
    (tmp_path / "c.toml").write_text(EMPTY)
    line = one_error(moshi_server("worker", "--config", "c.toml", cwd=tmp_path))
    assert "log_dir: the log file logs/log.test cannot be written" in line


def test_an_unreadable_dotenv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\n")
    (tmp_path / "c.toml").write_text(EMPTY)
    assert ".env" in one_error(moshi_server("validate", "c.toml", cwd=tmp_path))


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m moshi_server.cli configs config-tts | true"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
