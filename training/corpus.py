"""Reads shards into one long array on the device and a list of where each utterance lies."""

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.mixing import Located
from training.shard import Utterance, read_audio, read_index


def _stems(folders: list[Path]) -> list[Path]:
    return sorted(index.with_suffix("") for folder in folders for index in folder.glob("*.jsonl"))


def load(folders: list[Path], processes: int = 1) -> tuple[np.ndarray, list[Located]]:
    """All audio of the folders' shards, int16, and the utterances in it."""
    stems = _stems(folders)
    if processes > 1:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            blocks = pool.map(read_audio, stems, chunksize=1)
    else:
        blocks = [read_audio(stem) for stem in stems]
    items: list[Located] = []
    at = 0
    for stem, block in zip(stems, blocks, strict=True):
        # A shard still being written may hold a last line whose audio is not there yet.
        items += [Located(at + u.offset, u) for u in read_index(stem) if u.offset + u.samples <= len(block)]
        at += len(block)
    return np.concatenate([*blocks, np.zeros(0, np.int16)]), items


def load_one(stem: Path) -> tuple[np.ndarray, list[Located]]:
    """One shard's audio and utterances."""
    return read_audio(stem), [Located(u.offset, u) for u in read_index(stem)]


def utterance_batch(audio: np.ndarray, items: list[Located], lead: float = 0.4, tail: float = 1.2) -> Tensor:
    """(B, L) float32: utterances as a server would hear them, silence before and after, zero-padded to the longest."""
    lengths = [i.utterance.samples for i in items]
    size = int((lead + tail) * 24000) + max(lengths)
    size += -size % 1920
    batch = torch.zeros(len(items), size)
    begin = int(lead * 24000)
    for row, item in zip(batch, items, strict=True):
        samples = audio[item.start : item.start + item.utterance.samples]
        row[begin : begin + len(samples)] = torch.from_numpy(samples.astype(np.float32) / 32768)
    return batch


__all__ = ["Utterance", "load", "load_one", "utterance_batch"]
