"""Speech that is still being written is taken in as far as it is whole."""

import numpy as np
import torch
from training.live import Growing, Listing
from training.mixing import Rows
from training.shard import ShardWriter
from training.synth.speech import SAMPLE_RATE, Speech, SpokenWord


def utterance(seed: int) -> Speech:
    noise = np.random.default_rng(seed).standard_normal(SAMPLE_RATE).astype(np.float32)
    return Speech(noise / np.abs(noise).max(), [SpokenWord("one", 0.1, 0.4), SpokenWord("two", 0.5, 0.9)])


def test_utterances_join_the_audio_and_the_rows_as_they_come(tmp_path):
    audio = torch.zeros(4 * SAMPLE_RATE, dtype=torch.int16)
    listing = Listing(tmp_path / "listing.jsonl")
    growing = Growing(tmp_path / "live", listing.path, audio, used=100)
    assert listing() == []
    writer = ShardWriter(tmp_path / "live/train-espeak-1")
    writer.add("espeak", "en+m1", "one two", utterance(0))
    growing.poll()
    (item,) = listing()
    assert (item.start, item.utterance.text) == (100, "one two")
    pcm = np.fromfile(tmp_path / "live/train-espeak-1.pcm", "<i2")
    assert (audio[100 : 100 + SAMPLE_RATE].numpy() == pcm).all()

    # A line half written waits for its other half, an utterance without its audio is left out.
    writer.add("espeak", "en+m2", "one two", utterance(1))
    index = tmp_path / "live/train-espeak-1.jsonl"
    whole = index.read_text()
    index.write_text(whole[:-5])
    growing.poll()
    assert listing() == []
    index.write_text(whole)
    growing.poll()
    (second,) = listing()
    assert second.start == 100 + SAMPLE_RATE
    assert growing.seconds == 2

    rows = Rows([item], 25, seed=0, more=iter([[second]] + [[]] * 9).__next__)
    next(iter(rows))
    assert rows.by_engine == {"espeak": [item, second]}
    writer.close()


def test_there_is_room_for_no_more_than_there_is_room_for(tmp_path):
    audio = torch.zeros(SAMPLE_RATE + 10, dtype=torch.int16)
    listing = Listing(tmp_path / "listing.jsonl")
    growing = Growing(tmp_path / "live", listing.path, audio, used=0)
    writer = ShardWriter(tmp_path / "live/train-flite-1")
    for seed in range(2):
        writer.add("flite", "slt", "one two", utterance(seed))
    writer.close()
    growing.poll()
    assert [item.start for item in listing()] == [0]


def test_an_index_before_its_audio_waits_for_it(tmp_path):
    audio = torch.zeros(2 * SAMPLE_RATE, dtype=torch.int16)
    listing = Listing(tmp_path / "listing.jsonl")
    growing = Growing(tmp_path / "live", listing.path, audio, used=0)
    writer = ShardWriter(tmp_path / "live/train-flite-1")
    writer.add("flite", "slt", "one two", utterance(0))
    writer.close()
    there, elsewhere = tmp_path / "live/train-flite-1.pcm", tmp_path / "audio"
    there.rename(elsewhere)
    growing.poll()
    assert listing() == []
    elsewhere.rename(there)
    growing.poll()
    assert [item.start for item in listing()] == [0]
    assert growing.seconds == 1
