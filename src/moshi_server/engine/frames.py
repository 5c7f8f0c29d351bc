"""Samples that arrived in any pieces, taken out in frames of 80 ms; it knows no stream and no model."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE

Frame = NDArray[np.float32]

SILENCE: Frame = np.zeros(FRAME_SIZE, np.float32)


class FrameQueue:
    """What waits of one client's audio.

    Attributes:
        waiting: samples not yet taken out.
        consumed: samples taken out or dropped since the beginning.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.consumed = 0
        self._chunks: deque[Frame] = deque()
        self._offset = 0

    def push(self, pcm: Frame) -> None:
        """Add samples of shape (samples,)."""
        if len(pcm):
            self._chunks.append(pcm)
            self.waiting += len(pcm)

    def clear(self) -> None:
        """Drop all that waits."""
        self.consumed += self.waiting
        self.waiting = self._offset = 0
        self._chunks.clear()

    def take(self) -> Frame | None:
        """The next whole frame (1920,), or None."""
        return self._take(FRAME_SIZE) if self.waiting >= FRAME_SIZE else None

    def take_padded(self) -> Frame:
        """The next frame, completed with silence if less than one waits."""
        if not self.waiting:
            return SILENCE
        return self._take(min(self.waiting, FRAME_SIZE))

    def peek(self, limit: int) -> Frame | None:
        """The whole frames that wait, at most ``limit``: (n, 1920), or None; they go on waiting."""
        count = min(limit, self.waiting // FRAME_SIZE)
        if count <= 0:
            return None
        samples = np.empty(count * FRAME_SIZE, np.float32)
        done, offset = 0, self._offset
        for chunk in self._chunks:
            part = chunk[offset : offset + len(samples) - done]
            samples[done : done + len(part)] = part
            done, offset = done + len(part), 0
            if done == len(samples):
                break
        return samples.reshape(count, FRAME_SIZE)

    def _take(self, samples: int) -> Frame:
        self.waiting -= samples
        self.consumed += samples
        first = self._chunks[0]
        end = self._offset + samples
        if samples == FRAME_SIZE and end <= len(first):  # the usual case copies nothing
            frame = first[self._offset : end]
            self._offset = end
            if end == len(first):
                self._chunks.popleft()
                self._offset = 0
            return frame
        frame = np.zeros(FRAME_SIZE, np.float32)
        done = 0
        while done < samples:
            chunk = self._chunks[0]
            part = chunk[self._offset : self._offset + samples - done]
            frame[done : done + len(part)] = part
            done += len(part)
            self._offset += len(part)
            if self._offset == len(chunk):
                self._chunks.popleft()
                self._offset = 0
        return frame
