"""Shards that others still write while training goes on: their audio joins the long array, their sentences the rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.mixing import Located
from training.shard import Utterance
from training.synth.speech import SAMPLE_RATE, SpokenWord


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
            audio = index.with_suffix(".pcm")
            if not audio.exists():
                continue
            lines = list(self.readers.setdefault(index, Reader(index)).lines())
            rows = [json.loads(line) for line in lines]
            if not rows:
                continue
            # One read and one copy for all that is new: utterances lie one behind the other.
            first = rows[0]["offset"]
            wanted = rows[-1]["offset"] + rows[-1]["samples"] - first
            pcm = np.fromfile(audio, "<i2", wanted, offset=2 * first)[: len(self.audio) - self.used]
            self.audio[self.used : self.used + len(pcm)] = torch.from_numpy(pcm).to(self.audio.device)
            for row in rows:
                at = row["offset"] - first
                if at + row["samples"] > len(pcm):
                    break
                found.append(json.dumps(row | {"start": self.used + at}) + "\n")
                self.seconds += row["samples"] / SAMPLE_RATE
            self.used += len(pcm)
        # Only now: a loader that reads of an utterance finds its audio there.
        if found:
            if self.audio.is_cuda:
                torch.cuda.synchronize()
            with open(self.listing, "a") as file:
                file.writelines(found)
