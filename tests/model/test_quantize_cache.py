"""The cache of quantized checkpoints: found again, made anew when damaged or out of date, done without when it must."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moshi_server.errors import CheckpointError
from moshi_server.model.quantize_cache import cache_folder, cached, convert_quantized
from moshi_server.model.quantize_file import is_intact

NAME = "transformer.layers.0.gating.linear_in.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file({NAME: torch.randn(64, 64)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_it_is_made_once_and_found_again(checkpoint: Path, tmp_path: Path) -> None:
    entry = cached(checkpoint, "int8", tmp_path / "cache")
    assert entry is not None
    assert is_intact(entry)
    made = entry.stat().st_mtime_ns, entry.stat().st_ino
    assert cached(checkpoint, "int8", tmp_path / "cache") == entry
    assert (entry.stat().st_mtime_ns, entry.stat().st_ino) == made
    assert [file.name for file in entry.parent.iterdir()] == [entry.name]


def test_each_kind_has_its_own(checkpoint: Path, tmp_path: Path) -> None:
    assert cached(checkpoint, "int8", tmp_path / "cache") != cached(checkpoint, "int4", tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_link_to_a_checkpoint_is_that_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    assert cached(tmp_path / "link", "int8", tmp_path / "cache") == cached(checkpoint, "int8", tmp_path / "cache")


def test_a_changed_checkpoint_is_quantized_anew_and_the_old_one_forgotten(checkpoint: Path, tmp_path: Path) -> None:
    old = cached(checkpoint, "int8", tmp_path / "cache")
    status = checkpoint.stat()
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    new = cached(checkpoint, "int8", tmp_path / "cache")
    assert new is not None
    assert new != old
    assert list((tmp_path / "cache").iterdir()) == [new]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_damaged_entry_is_made_anew(
    checkpoint: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = cached(checkpoint, "int8", tmp_path / "cache")
    assert entry is not None
    data = entry.read_bytes()
    bad = {"bit": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-10], "empty": b""}[damage]
    entry.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert cached(checkpoint, "int8", tmp_path / "cache") == entry
    assert "is damaged and is made anew" in caplog.text
    assert entry.read_bytes() == data


def test_without_a_folder_to_write_to_there_is_a_warning_and_no_copy(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert cached(checkpoint, "int8", tmp_path / "file" / "cache") is None
    assert "cannot be kept for the next start" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moshi_server.model.quantize_file._write", full)
    assert cached(checkpoint, "int8", tmp_path / "cache") is None
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert_quantized(checkpoint, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        cached(tmp_path / "bad", "int8", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_it_is() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/moshi-server/quantized")
    assert cache_folder({}) == Path.home() / ".cache/moshi-server/quantized"
