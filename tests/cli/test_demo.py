"""The demo's worker: a process of its own that is ready when it is given, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from moshi_server.cli.demo import running_worker
from moshi_server.client import ServerUnreachableError, transcribe
from moshi_server.errors import MoshiServerError
from tests.fakes import say

from .test_commands import EMPTY, ROOT, moshi_server, one_error

FAKE = "tests.cli.fake_worker"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    published = (ROOT / "tests" / "data" / "configs" / "dsm" / "config-stt-en_fr-hf.toml").read_text()
    modules = published[published.index("[modules.asr]") :].replace("batch_size = 64", "batch_size = 2")
    (tmp_path / "c.toml").write_text(EMPTY + modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_recording_goes_through_the_worker_and_the_worker_ends(folder: Path) -> None:
    with running_worker("c.toml", program=FAKE) as url:
        transcript = transcribe(say(3, 3, 41, 42, 999, 3, 3, 77, 3, 3), url, api_key="key")
        assert [word.text for word in transcript.words] == ["<41><42>", "<77>"]
        assert transcript.duration == pytest.approx(0.8)
    with pytest.raises(ServerUnreachableError):
        transcribe(say(3), url, api_key="key")


def test_a_worker_ends_also_when_its_user_fails(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), running_worker("c.toml", program=FAKE) as url:
        assert httpx.get(url.replace("ws", "http") + "/api/health", trust_env=False).is_success
        _ = 1 / 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url.replace("ws", "http") + "/api/health", trust_env=False)


def test_a_worker_that_does_not_start_says_why(folder: Path) -> None:
    reason = pytest.raises(MoshiServerError, match=r"has not started: error: gone\.toml: no such file")
    with reason, running_worker("gone.toml"):
        pytest.fail("it cannot have started")


def test_demo_of_a_recording_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "gone.wav" in one_error(moshi_server("demo", "gone.wav", cwd=tmp_path))
