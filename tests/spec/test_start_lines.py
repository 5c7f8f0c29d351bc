"""What an operator sees of files that cannot be used, of downloads, and of clients that are refused."""

from __future__ import annotations

import hmac
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import websockets

from moshi_server.auth import Authenticator
from moshi_server.config import load_config
from moshi_server.errors import AuthError

from ..app.server import serve
from ..cli.test_commands import ROOT, moshi_server
from ..hub_server import serving

DEMO = (ROOT / "configs" / "demo.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "reason"), [("notes.txt", "notes.txt"), ("demo://mimi.safetensors", "mimi.safetensors")]
)
def test_1_a_checkpoint_that_cannot_be_used_is_one_line(model: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "c.toml").write_text(DEMO.replace("demo://model.safetensors", model))
    options = ("-a", "127.0.0.1", "-p", "0", "--cpu", "--log", "error", "--silent")
    done = moshi_server("worker", "--config", "c.toml", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    # The console says what the log does, but for its first words; see cli/test_worker.py for both together.
    (line,) = (tmp_path / "logs" / "log.demo").read_text().splitlines()
    assert " ERROR " in line
    assert "modules.asr" in line
    assert reason in line
    loud = moshi_server("worker", "--config", "c.toml", *options[:-1], cwd=tmp_path)
    assert "Traceback" not in loud.stderr
    last = loud.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last


def test_2_a_key_that_upstream_ignores_is_accepted(tmp_path: Path) -> None:
    text = DEMO.replace("[modules.asr]\n", '[modules.asr]\nbackend = "cuda"\n')
    (tmp_path / "c.toml").write_text('backend = "cuda"\n' + text)
    assert set(load_config(tmp_path / "c.toml", {}).modules) == {"asr"}


@pytest.mark.parametrize("terminal", [True, False])
def test_2_a_download_shows_its_progress_on_a_terminal(terminal: bool, tmp_path: Path) -> None:
    code = "from moshi_server import hub; hub.resolve('hf://kyutai/stt/model.safetensors')"
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 100))  # it has no size of its own, and bars fit themselves into it
    with serving({"kyutai/stt": {"model.safetensors": bytes(100_000)}}) as hub:
        env = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        subprocess.run([sys.executable, "-c", code], env=env, stderr=theirs, timeout=60, check=True)
    os.write(theirs, b"END")
    said = b""
    while not said.endswith(b"END"):
        said += os.read(ours, 65_536)
    os.close(ours)
    os.close(theirs)
    assert (b"model.safetensors" in said and b"100%" in said) == terminal
    assert terminal or said == b"END"


def test_4_every_key_is_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    real = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        nonlocal compared
        compared += 1
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    auth = Authenticator([f"key-{number}" for number in range(5)])
    for key in ("key-0", "key-4", "none of them"):
        compared = 0
        try:
            auth.check([("kyutai-api-key", key)], {}, 0.0)
        except AuthError:
            assert key == "none of them"
        assert compared == 5


async def test_4_metrics_health_and_files_are_open_and_streams_are_not(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>home</p>")
    async with serve(static_dir=tmp_path) as server:
        for path in ("/metrics", "/api/health", "/api/status", "/api/modules_info", "/api/build_info", "/"):
            assert (await server.get(path)).status_code == 200, path
        with pytest.raises(websockets.InvalidStatus, match="401"):
            await server.connect(query="")
        assert (await server.post(b"x", headers={})).status_code == 401


async def test_4_a_refusal_is_a_warning_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as server:
        for path, query in (("/api/asr-streaming", "?auth_id=wrong"), ("/nowhere", "")):
            with pytest.raises(websockets.InvalidStatus):
                await server.connect(path, query)
    assert [record.levelname for record in caplog.records if "refused" in record.getMessage()] == ["WARNING"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
