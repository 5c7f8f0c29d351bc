"""`moshi-server plan`, as a user runs it: no GPU, no weights, a hub of our own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moshi_server.cli.plan import TABLE_CARDS, TABLE_CONFIGS, card_table
from moshi_server.config import load_config
from moshi_server.engine.specs import lm_spec
from moshi_server.model.synthetic import write_lm

from ..gpu.nvml import build_stub
from ..hub_server import serving

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "config-stt-en_fr-hf.toml"


def plan(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HF_HOME": str(cwd / "cache"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "moshi_server", "plan", *arguments],
        env=clean | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def cells(output: str, row: str) -> list[str]:
    """The cells of the first table row that has a cell ``row``."""
    for line in output.splitlines():
        found = [cell.strip() for cell in line.strip("│┃").split("│")]
        if row in found or f"- {row}" in found or f"= {row}" in found:
            return found
    raise AssertionError(f"no row {row!r} in\n{output}")


def test_a_known_card(tmp_path: Path) -> None:
    done = plan("--config", str(CONFIG), "--gpu", "RTX 2070", "--no-fetch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cuda:0: RTX 2070" in done.stdout
    assert cells(done.stdout, "reserved") == ["- reserved", "512", "default"]
    assert cells(done.stdout, "language model") == ["- language model", "1918", "configuration, f16"]
    assert cells(done.stdout, "type")[3] == "f16: compute capability 7.5"
    streams = cells(done.stdout, "streams at once")
    assert streams[3] == "lowered from 64"
    warning = re.search(r"warning: module asr: batch_size lowered from 64 to (\d+): RTX 2070 has", done.stderr)
    assert warning is not None
    assert warning[1] == streams[2]


def test_a_card_by_its_figures(tmp_path: Path) -> None:
    done = plan("--config", str(CONFIG), "--vram-mb", "200000", "--sm", "9.0", "--no-fetch", cwd=tmp_path)
    assert cells(done.stdout, "streams at once")[2:] == ["64", "asked for 64"]
    assert cells(done.stdout, "type")[3].startswith("bf16")
    assert done.stderr == ""


def test_a_shipped_name_the_environment_and_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MOSHI_VRAM_RESERVED_MB=1000\nMOSHI_PER_BATCH_ITEM_MB=100\n")
    done = plan(
        "--config", "config-stt-en-hf", "--gpu", "L4", "--no-fetch", cwd=tmp_path, MOSHI_PER_BATCH_ITEM_MB="300"
    )
    assert cells(done.stdout, "reserved")[1:] == ["1000", "MOSHI_VRAM_RESERVED_MB"]
    assert cells(done.stdout, "a stream")[2:] == ["300", "MOSHI_PER_BATCH_ITEM_MB"]


def test_what_does_not_fit_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = plan("--config", "config-stt-en-hf", "--vram-mb", "4096", "--sm", "7.5", "--no-fetch", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: module asr: not even one stream fits: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "RTX 9999"], "no GPU named 'RTX 9999'"),
        (["--gpu", "L4", "--sm", "7.5"], "give one or the other"),
        (["--vram-mb", "8192"], "belong together"),
        (["--sm", "7.5"], "belong together"),
        (["--vram-mb", "8192", "--sm", "turing"], "expected a compute capability such as 7.5, got 'turing'"),
    ],
)
def test_options_without_sense(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = plan("--config", str(CONFIG), *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_configuration_is_asked_for(tmp_path: Path) -> None:
    done = plan(cwd=tmp_path)
    assert done.returncode == 1
    assert "--config FILE" in done.stderr


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"this is no library")
    done = plan("--config", "demo", "--no-fetch", cwd=tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no NVIDIA driver is installed") == 1
    assert "cpu, memory unknown: nothing is limited" in done.stdout


def test_the_gpus_of_this_machine(tmp_path: Path) -> None:
    library = str(build_stub(tmp_path))
    done = plan("--config", str(CONFIG), "--no-fetch", cwd=tmp_path, LD_LIBRARY_PATH=library, NVML_GPUS="2")
    assert "cuda:0: NVIDIA GeForce RTX 2070" in done.stdout
    assert cells(done.stdout, "free") == ["free", "8000", "NVML"]
    env = {"LD_LIBRARY_PATH": library, "NVML_GPUS": "2", "CUDA_VISIBLE_DEVICES": "1"}
    assert "cuda:0: NVIDIA L4" in plan("--config", str(CONFIG), "--no-fetch", cwd=tmp_path, **env).stdout


def test_a_remote_checkpoint_gives_its_header_and_keeps_its_weights(tmp_path: Path) -> None:
    config = tmp_path / "remote.toml"
    text = (ROOT / "configs" / "demo.toml").read_text()
    config.write_text(text.replace("demo://", "hf://kyutai/tiny/"))
    module = load_config(config, {}).modules["asr"]
    write_lm(tmp_path / "lm", lm_spec(module.model))
    weights = (tmp_path / "lm").read_bytes()
    with serving({"kyutai/tiny": {"model.safetensors": weights}}) as hub:
        done = plan("--config", str(config), "--gpu", "L4", cwd=tmp_path, HF_ENDPOINT=hub.url)
        got = [(path, asked) for method, path, asked in hub.requests if method == "GET"]
    assert cells(done.stdout, "language model")[2] == "checkpoint header, bf16"
    assert ("/kyutai/tiny/resolve/main/model.safetensors", "bytes=0-100000") in got
    assert all(asked is not None for path, asked in got if "/resolve/" in path)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert "has no such file: the sizes of the configuration are used" in done.stderr  # the codec's


def test_a_hub_out_of_reach_is_a_note(tmp_path: Path) -> None:
    done = plan("--config", str(CONFIG), "--gpu", "L4", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout, "language model")[2] == "configuration, bf16"
    assert done.stderr.count("the sizes of the configuration are used") == 2


def test_a_local_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    for name in ("model", "mimi"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"\0" * 100)
    config = tmp_path / "local.toml"
    config.write_text((ROOT / "configs" / "demo.toml").read_text().replace("demo://", f"{tmp_path}/"))
    done = plan("--config", str(config), "--gpu", "L4", cwd=tmp_path)
    assert done.returncode == 1
    assert "not a safetensors checkpoint" in done.stderr


def test_planning_imports_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path; from moshi_server.cli.plan import card_table;"
        f"print(card_table([Path({str(CONFIG)!r})])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2 + len(TABLE_CARDS)


def test_the_table_in_the_documentation_is_what_the_command_prints() -> None:
    from moshi_server.cli import app

    printed = CliRunner().invoke(app, ["plan", "--table"]).stdout.strip()
    assert printed == card_table(map(Path, TABLE_CONFIGS))
    written = (ROOT / "docs" / "gpu-memory.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- table: moshi-server plan --table -->\n(.*?)\n<!-- /table -->", written, re.DOTALL)
    assert match is not None
    assert match[1] == printed, "run `moshi-server plan --table` and put what it prints into docs/gpu-memory.md"
    for card in ("RTX 2070", "RTX 3060", "RTX 4090", "L4", "L40S", "A100 40GB", "A100 80GB", "H100"):
        assert f"| {card} |" in printed
