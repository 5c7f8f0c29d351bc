"""Shards that others still write while training goes on: their audio joins the long array, their sentences the rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.mixing import Located
from training.shard import Utterance
from training.synth.speech import SpokenWord


class Reader:
    """Whole lines as they are appended to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0

    def lines(self) -> Iterator[str]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.at)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]
        self.at += len(whole)
        yield from whole.decode().splitlines()


def parse(line: str, start: int = 0) -> Located:
    """One line of a shard's index, or of the list that `Growing` writes."""
    row = json.loads(line)
    words = [SpokenWord(*w) for w in row.pop("words")]
    at = row.pop("start", start)
    utterance = Utterance(words=words, **row)
    return Located(at, utterance)


class Listing:
    """What has been named in the list since the last call: for the loaders, each of which keeps its own place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = Reader(path)

    def __call__(self) -> list[Located]:
        return [parse(line) for line in self.reader.lines()]


class Growing:
    """Copies what is new in `folder` behind `used` samples of `audio`, and names it in `listing` for the loaders."""

    def __init__(self, folder: Path, listing: Path, audio: Tensor, used: int) -> None:
        self.folder, self.listing, self.audio, self.used = folder, listing, audio, used
        self.readers: dict[Path, Reader] = {}
        self.seconds = 0.0
        listing.write_text("")

    def poll(self) -> None:
        """Take in all that is whole by now; more than there is room for is left out."""
        found: list[str] = []
        for index in sorted(self.folder.glob("*.jsonl")):
            reader = self.readers.setdefault(index, Reader(index))
            for line in reader.lines():
                item = parse(line)
                samples = item.utterance.samples
                pcm = np.fromfile(index.with_suffix(".pcm"), "<i2", samples, offset=2 * item.utterance.offset)
                if len(pcm) < samples or self.used + samples > len(self.audio):
                    continue
                self.audio[self.used : self.used + samples] = torch.from_numpy(pcm).to(self.audio.device)
                found.append(json.dumps(json.loads(line) | {"start": self.used}) + "\n")
                self.used += samples
                self.seconds += samples / 24000
        # Only now: a loader that reads of an utterance finds its audio there.
        if found:
            if self.audio.is_cuda:
                torch.cuda.synchronize()
            with open(self.listing, "a") as file:
                file.writelines(found)
