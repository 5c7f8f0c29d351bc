"""Voices by name: near matches, and files that must not lead out of their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from moshi_server.errors import InvalidMessageError, ResourceNotFoundError
from moshi_server.speech.voices import Voices, inside

NAMES = ("expresso/ex03-ex01_happy_001_channel1_334s.wav", "unmute-prod-website/default_voice.wav", "alba.wav")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("expresso/ex03-ex01_happy_001_channel1_334.wav", NAMES[0]),
        ("default_voice.wav", NAMES[1]),
        ("Alba.wav", NAMES[2]),
    ],
)
def test_an_unknown_voice_names_near_ones(asked: str, near: str) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        Voices(NAMES).check(asked)
    assert asked in str(caught.value)
    assert repr(near) in str(caught.value)
    assert "/api/voices" in caught.value.hint


@pytest.mark.parametrize("asked", ["", "zzzz", "\0", "x" * 100_000])
def test_a_strange_name_is_just_unknown(asked: str) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        Voices(NAMES).check(asked)
    assert "did you mean" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_voices_are_sorted_and_known() -> None:
    voices = Voices(NAMES, default=NAMES[1])
    assert voices.names == tuple(sorted(NAMES))
    for name in NAMES:
        voices.check(name)


def test_a_file_must_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    (folder / "deep").mkdir(parents=True)
    good = folder / "deep" / "a.wav"
    for path in (good, tmp_path / "secret.wav"):
        path.write_bytes(b"x")
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "fine.wav").symlink_to(good)
    (folder / "circle").symlink_to(folder / "circle")
    voices = Voices(["named"], folder=folder)
    assert voices.file("deep/a.wav") == (good, 0.0)
    assert voices.file("deep/../deep/a.wav+1.5") == (good, 1.5)
    assert voices.file("fine.wav") == (good, 0.0)
    voices.check("named")
    voices.check("deep/a.wav+3")
    for name in ("../secret.wav", str(tmp_path / "secret.wav"), "link.wav", "deep", "", "no.wav", "circle", "\0", "~"):
        assert inside(folder, name) is None
        with pytest.raises(ResourceNotFoundError):
            voices.check(name)
    for name in ("deep/a.wav+", "deep/a.wav+x", "deep/a.wav+-1", "deep/a.wav+nan", "deep/a.wav+inf"):
        with pytest.raises(InvalidMessageError, match="must be seconds"):
            voices.check(name)


def test_a_folder_that_is_not_there_has_no_voices(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFoundError):
        Voices(folder=tmp_path / "nowhere").check("a.wav")
