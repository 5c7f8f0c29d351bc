"""Heads of checkpoints: read where they lie, local or on a hub of our own, and refused with a sentence."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from moshi_server.errors import CheckpointError
from moshi_server.gpu import Header, TensorHead, read_header
from moshi_server.gpu.header import read_local_header

from ..hub_server import Hub, serving

MB = 2**20
WEIGHTS = save({"a": np.zeros((MB, 2), np.float32), "b": np.zeros((3,), np.float16)}, {"mimi_spec": "x"})
READ = """
import json, sys
from moshi_server.errors import MoshiServerError
from moshi_server.gpu import read_header
try:
    header = read_header(sys.argv[1])
    print(json.dumps({"a": header.tensors["a"].shape, "elements": header.elements, "metadata": header.metadata}))
except MoshiServerError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    many = save(
        {f"layer.{i}.with.quite.a.long.name": np.zeros((1,), np.float32) for i in range(3000)} | {"a": np.ones(5)}
    )
    files = {"model.safetensors": WEIGHTS, "many.safetensors": many, "text.safetensors": b"hello world" * 20_000}
    with serving({"kyutai/stt": files}) as running:
        yield running


def remote(uri: str, cache: Path, endpoint: str, **extra: str) -> dict[str, object]:
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
    done = subprocess.run(
        [sys.executable, "-c", READ, uri], env=env | extra, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_local_header_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64)}, path, {"mimi_spec": "{}"})
    expected = {"a": TensorHead("F32", (2, 3)), "n": TensorHead("I64", ())}
    header = read_header(str(path))
    assert header == Header(expected, {"mimi_spec": "{}"})
    assert header.elements == 7


def test_a_remote_header_is_read_without_the_weights(server: Hub, tmp_path: Path) -> None:
    said = remote("hf://kyutai/stt/model.safetensors", tmp_path, server.url)
    assert said == {"a": [MB, 2], "elements": 2 * MB + 3, "metadata": {"mimi_spec": "x"}}
    asked = [asked for method, path, asked in server.requests if method == "GET" and "resolve" in path]
    assert asked == ["bytes=0-100000"]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_header_longer_than_the_first_request_is_asked_for_again(server: Hub, tmp_path: Path) -> None:
    said = remote("hf://kyutai/stt/many.safetensors", tmp_path, server.url)
    assert said["elements"] == 3005
    ranges = [asked for _, path, asked in server.requests if "resolve" in path]
    assert len(ranges) == 2
    assert ranges[1] is not None
    assert ranges[1].startswith("bytes=8-")


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("text.safetensors", "CheckpointError", "not a safetensors checkpoint"),
        ("none.safetensors", "DownloadError", "has no such file"),
    ],
)
def test_a_remote_file_that_is_none_says_so(server: Hub, tmp_path: Path, path: str, error: str, words: str) -> None:
    said = remote(f"hf://kyutai/stt/{path}", tmp_path, server.url)
    assert said["error"] == error
    assert words in str(said["message"])


@pytest.mark.parametrize("extra", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_a_hub_that_cannot_be_reached_is_a_download_error(tmp_path: Path, extra: dict[str, str]) -> None:
    said = remote("hf://kyutai/stt/model.safetensors", tmp_path, "http://127.0.0.1:9", **extra)
    assert said["error"] == "DownloadError"


def test_a_file_that_is_not_there_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_header(str(tmp_path / "none.safetensors"))


def framed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "shorter than 8 bytes"),
        (b"\x00" * 8, "0 bytes long"),
        (b"\xff" * 20, "bytes long"),
        (struct.pack("<Q", 50) + b"{}", "cut short"),
        (framed(b"{]"), "no JSON"),
        (framed(b"[]"), "no JSON object"),
        (framed(b"[" * 100_000), "no JSON"),
        (framed(b'{"__metadata__": {"a": 1}}'), "metadata"),
        (framed(b'{"w": {"dtype": "F32"}}'), "neither type nor shape of 'w'"),
        (framed(b'{"w": {"dtype": "F32", "shape": [-1]}}'), "neither type nor shape of 'w'"),
        (framed(b'{"w": {"dtype": "F32", "shape": [true]}}'), "neither type nor shape of 'w'"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        read_header(str(path))
    assert str(path) in str(raised.value)


@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(framed),
        st.text(max_size=40).map(
            lambda text: framed(json.dumps({text: text, "w": {"dtype": text, "shape": [len(text)]}}).encode())
        ),
    )
)
def test_any_bytes_are_a_header_or_a_checkpoint_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        header = read_local_header(path)
    except CheckpointError:
        return
    assert header.elements >= 0
