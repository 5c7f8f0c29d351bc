"""A few hundred inputs for every decoder of outside bytes, the same ones each time, and all that ever did harm."""

from __future__ import annotations

import random
import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzzing.mutate import mutants
from fuzzing.target import Target
from fuzzing.watch import Watch

from fuzz import CORPUS, corpus, load_targets

INPUTS = 200
TARGETS = load_targets()


def found(watch: Watch) -> list[str]:
    return [f"{each.kind}: {each.what}: {each.data!r}" for each in watch.findings.values()]


# Of a form that breaks off within a file, Starlette leaves the file to be closed when it is freed, which is at once.
@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_inputs_that_are_nearly_right(target: Target) -> None:
    watch = Watch(target)
    for data in islice(mutants(target.seeds, random.Random(f"tests {target.name}"), target.max_len), INPUTS):
        watch.run(data)
    assert found(watch) == []
    assert watch.inputs == INPUTS


@pytest.mark.parametrize("target", [each for each in TARGETS if corpus(each.name)], ids=lambda target: target.name)
def test_what_once_did_harm(target: Target) -> None:
    watch = Watch(target)
    for data in corpus(target.name):
        watch.run(data)
    assert found(watch) == []


def test_the_corpus_is_of_targets_that_there_are() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= {target.name for target in TARGETS}
    assert all(0 < path.stat().st_size <= 16_384 for path in CORPUS.glob("*/*"))


def test_every_decoder_is_fed_something_that_it_takes() -> None:
    """A target whose seeds are all refused would find nothing: here is what each has to accept."""
    from moshi_server.audio import read_audio
    from moshi_server.protocol import asr

    by_name = {target.name: target for target in TARGETS}
    assert len(by_name) == len(TARGETS) == 21
    assert sum(asr.decode_samples(seed) is not None for seed in by_name["asr_message"].seeds) >= 3
    read = [seed for seed in by_name["audio_file"].seeds if seed[:4] in (b"RIFF", b"fLaC", b"OggS", b"ID3\x04")]
    assert {len(read_audio(seed)) > 0 for seed in read} == {True}
    assert {seed[:4] for seed in read} >= {b"RIFF", b"fLaC", b"OggS"}
