"""Addresses of files: what they name, and fetching them with the hub's real client from a hub of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server import hub
from moshi_server.errors import ConfigError

from .hub_server import Hub, serving

WEIGHTS = bytes(range(256)) * (24 * 4096)
REPOSITORIES = {
    "kyutai/stt": {"model.safetensors": WEIGHTS, "sub/mimi@125.safetensors": b"mimi"},
    "kyutai/voices": {"a/x.safetensors": b"ax", "a/x.wav": b"wav", "b/y.safetensors": b"by", "README.md": b"r"},
}
RESOLVE = """
import json, sys
from moshi_server import hub
from moshi_server.errors import MoshiServerError
try:
    print(json.dumps({"path": str(hub.resolve(sys.argv[1]))}))
except MoshiServerError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error), "hint": error.hint}))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with serving({name: dict(files) for name, files in REPOSITORIES.items()}) as running:
        yield running


def resolve(uri: str, cache: Path, endpoint: str, **extra: str) -> dict[str, str]:
    """Resolve in a process of its own: the hub's client reads its environment once, when it is imported."""
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, uri], env=env | extra, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_path_is_itself() -> None:
    assert hub.parse("a/b.toml") == hub.LocalFile(Path("a/b.toml"))
    assert hub.resolve("a/b.toml") == Path("a/b.toml")


def test_a_hub_file_has_a_repository_and_a_path() -> None:
    parsed = hub.parse("hf://kyutai/stt/sub/mimi-pytorch-e351c8d8@125.safetensors")
    assert parsed == hub.HubFile("kyutai/stt", "sub/mimi-pytorch-e351c8d8@125.safetensors")


def test_a_snapshot_has_a_pattern_or_none() -> None:
    assert hub.parse("hf-snapshot://kyutai/tts-voices/**/*.safetensors") == hub.HubSnapshot(
        "kyutai/tts-voices", "**/*.safetensors"
    )
    assert hub.parse("hf-snapshot://kyutai/tts-voices") == hub.HubSnapshot("kyutai/tts-voices", None)


def test_the_embedded_files_are_inside_the_package() -> None:
    package = Path(hub.__file__).parent
    assert hub.resolve("demo://model.safetensors") == package / "demo" / "model.safetensors"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "hf://",
        "hf://a/b",
        "hf://a//c",
        "hf-snapshot://a",
        "demo://",
        "demo://../x",
        "demo:///etc/x",
        "s3://a/b",
        "a\0",
    ],
)
def test_an_address_without_sense_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        hub.parse(uri)


@given(st.text(max_size=40), st.sampled_from(["", "hf://", "hf-snapshot://", "demo://"]))
def test_any_text_is_an_address_or_a_config_error(text: str, scheme: str) -> None:
    try:
        location = hub.parse(scheme + text)
    except ConfigError:
        return
    if scheme == "demo://":
        assert isinstance(location, hub.LocalFile)
        inside = (Path(hub.__file__).parent / "demo").resolve()
        assert inside in Path(os.path.normpath(location.path)).parents or "\0" in text


def test_a_file_is_downloaded_then_served_from_the_cache_with_no_network(server: Hub, tmp_path: Path) -> None:
    uri = "hf://kyutai/stt/sub/mimi@125.safetensors"
    first = resolve(uri, tmp_path, server.url)
    assert Path(first["path"]).read_bytes() == b"mimi"
    asked = len(server.requests)
    assert resolve(uri, tmp_path, server.url, HF_HUB_OFFLINE="1") == first
    assert len(server.requests) == asked
    assert resolve(uri, tmp_path, "http://127.0.0.1:9") == first


def test_a_download_that_broke_off_is_resumed_where_it_stopped(server: Hub, tmp_path: Path) -> None:
    server.cut_after = 15_000_000  # the client writes 10 MB at a time
    result = resolve("hf://kyutai/stt/model.safetensors", tmp_path, server.url)
    if "path" not in result:  # some versions of the client give up on the first break; the next start resumes
        result = resolve("hf://kyutai/stt/model.safetensors", tmp_path, server.url)
    assert Path(result["path"]).read_bytes() == WEIGHTS
    ranges = [
        asked for method, path, asked in server.requests if method == "GET" and path.endswith("model.safetensors")
    ]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert ranges[1].startswith("bytes=")
    assert ranges[1] != "bytes=0-"


def test_2_a_snapshot_downloads_only_what_matches(server: Hub, tmp_path: Path) -> None:
    uri = "hf-snapshot://kyutai/voices/**/*.safetensors"
    folder = Path(resolve(uri, tmp_path, server.url)["path"])
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["a/x.safetensors", "b/y.safetensors"]
    assert Path(resolve(uri, tmp_path, server.url, HF_HUB_OFFLINE="1")["path"]) == folder


def test_a_snapshot_that_matches_nothing_is_an_error(server: Hub, tmp_path: Path) -> None:
    result = resolve("hf-snapshot://kyutai/voices/*.bin", tmp_path, server.url)
    assert result["error"] == "DownloadError"
    assert "matches *.bin" in result["message"]


def test_a_missing_file_names_the_repository(server: Hub, tmp_path: Path) -> None:
    result = resolve("hf://kyutai/stt/modle.safetensors", tmp_path, server.url)
    assert result["error"] == "DownloadError"
    assert "hf://kyutai/stt/modle.safetensors: the repository kyutai/stt has no such file" in result["message"]
    assert result["hint"]


def test_a_missing_repository_is_named(server: Hub, tmp_path: Path) -> None:
    result = resolve("hf://kyutai/nothing/model.safetensors", tmp_path, server.url)
    assert result["error"] == "DownloadError"
    assert "kyutai/nothing" in result["message"]
    assert "HF_TOKEN" in result["hint"]


def test_a_gated_repository_asks_for_a_token(server: Hub, tmp_path: Path) -> None:
    server.gated.add("kyutai/stt")
    result = resolve("hf://kyutai/stt/model.safetensors", tmp_path, server.url)
    assert result["error"] == "DownloadError"
    assert "restricted" in result["message"]
    assert "HF_TOKEN" in result["hint"]


def test_offline_and_not_cached_says_so(tmp_path: Path) -> None:
    result = resolve("hf://kyutai/stt/model.safetensors", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert result["error"] == "DownloadError"
    assert "HF_HUB_OFFLINE" in result["hint"]


def test_no_network_and_not_cached_says_so(tmp_path: Path) -> None:
    result = resolve("hf://kyutai/stt/model.safetensors", tmp_path, "http://127.0.0.1:9")
    assert result["error"] == "DownloadError"
    assert "cannot be reached" in result["message"]


def test_a_tree_keeps_everything_but_hub_files() -> None:
    tree = {"a": 1, "b": ["x", {"c": "hf-snapshot://o/r/*"}], "d": 2.5}
    assert hub.resolve_tree(tree) == tree
