"""A room's producer on the model thread: codes to sound in slots, text in its place, wrong codes refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from moshi_server.engine.rooms import DecodeRunner, RoomStream
from moshi_server.errors import CheckpointError, InvalidMessageError
from moshi_server.events import Audio, Codes, Flush, Text
from moshi_server.model.mimi import Mimi
from moshi_server.model.synthetic_mimi import write_mimi
from moshi_server.model.weights_mimi import load_mimi

from ..golden.mimi_spec import SEED, SMALL

CPU = torch.device("cpu")
CODEBOOKS, BINS = SMALL.quantizer.codebooks, SMALL.quantizer.bins


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Mimi:
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    write_mimi(path, SMALL, seed=SEED)
    return load_mimi(path)


def frames(count: int, seed: int, codebooks: int = CODEBOOKS) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, BINS, (count, codebooks)))


def test_each_slot_hears_its_own_producer_whatever_the_others_send(mimi: Mimi) -> None:
    runner = DecodeRunner(mimi, 3, CPU)
    mine, theirs = frames(6, seed=1), frames(6, seed=2, codebooks=3)
    got = []
    for mine_codes, their_codes in zip(mine, theirs, strict=True):
        first, second = runner.step([2, 0], [mine_codes, their_codes])
        assert first.shape == second.shape == (1920,)
        got.append(first)
    whole = mimi.decode(torch.from_numpy(np.stack(mine, axis=1))[None])[0, 0].numpy()
    np.testing.assert_allclose(np.concatenate(got), whole, atol=1e-5)


def test_a_reset_slot_begins_anew(mimi: Mimi) -> None:
    runner = DecodeRunner(mimi, 2, CPU)
    codes = frames(3, seed=3)
    first = [runner.step([1], [each])[0] for each in codes]
    runner.reset([1])
    np.testing.assert_array_equal(first, [runner.step([1], [each])[0] for each in codes])


def test_text_comes_after_the_sound_that_was_sent_before_it() -> None:
    stream = RoomStream(1, 4, 10)
    text = Text("now")
    assert stream.put(text, 0.0) == [text]
    assert stream.put(Codes(np.array([1, 2])), 0.0) == []
    assert stream.put(text, 0.0) == []
    assert stream.put(Codes(np.array([3, 4])), 0.0) == []
    np.testing.assert_array_equal(stream.take(0.0), [1, 2])
    sound, after = stream.accept(np.zeros(1920, np.float32))
    assert isinstance(sound, Audio)
    assert after is text
    assert stream.take(0.0) is not None
    assert stream.take(0.0) is None
    assert stream.consumed == 2 * 1920


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Codes(np.zeros(0, np.int64)), "a frame of 0 codes came"),
        (Codes(np.zeros(5, np.int64)), "takes 1 to 4"),
        (Codes(np.array([0, 10])), "a code is 10; this server's Mimi has 0 to 9"),
        (Flush(), "Flush is not a message of a room's producer"),
    ],
)
def test_what_this_mimi_cannot_decode_is_refused(event: object, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        RoomStream(1, 4, 10).put(event, 0.0)


def test_a_mimi_that_only_encodes_serves_no_room(tmp_path: Path) -> None:
    write_mimi(tmp_path / "mimi.safetensors", dataclasses.replace(SMALL, decoder=False), seed=SEED)
    with pytest.raises(CheckpointError, match="only encodes"):
        DecodeRunner(load_mimi(tmp_path / "mimi.safetensors"), 1, CPU)
