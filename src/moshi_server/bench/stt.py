"""A virtual speaker of speech to text, and what a crowd of them has seen; only upstream's messages are used.

The delay of an answer runs from the moment a frame's last sample was sent to the arrival of its `Step`. A server
without extra heads sends none: then only the delay of words is known, from the sending of the frame in which the word
begins, which holds the model's own delay and the word's length too.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..errors import MoshiServerError, ServerUnreachableError, SessionError
from ..events import Audio, Error, Ready, Step, Word
from ..protocol import asr_client
from .crowd import Plan, Register
from .socket import Socket, connect, seen

FRAME_SECONDS: Final = FRAME_SIZE / SAMPLE_RATE
READY_SECONDS: Final = 30.0
"""How long the server may take until it has a slot."""
DRAIN_SECONDS: Final = 3.0
"""How long, after the last frame, its answers are waited for."""
_STEP: Final = b"\x84\xa4type\xa4Step"


def frames_of(pcm: NDArray[np.float32]) -> list[bytes]:
    """A recording, of shape (samples,), as the messages of one frame each that every user sends in a circle."""
    whole = np.resize(pcm, max(1, -(-len(pcm) // FRAME_SIZE)) * FRAME_SIZE) if len(pcm) else np.zeros(FRAME_SIZE)
    return [asr_client.encode(Audio(frame)) for frame in whole.astype(np.float32).reshape(-1, FRAME_SIZE)]


@dataclass(slots=True)
class SttRegister(Register):
    """What the speakers have seen. Only frames sent while everybody was there count.

    Attributes:
        answered_at: for each answered frame, when it was sent, in seconds since `begun`.
        delays: for each of them, how long its answer took.
        spoken_at: for each word, when the frame in which it begins was sent, in seconds since `begun`.
        word_delays: for each word, how long it took from then.
        first_word_delays: the same, of each user's first word only, also of those who were early.
        unanswered: frames whose answer never came, though it was waited for.
    """

    answered_at: array[float] = field(default_factory=lambda: array("d"))
    delays: array[float] = field(default_factory=lambda: array("d"))
    spoken_at: array[float] = field(default_factory=lambda: array("d"))
    word_delays: array[float] = field(default_factory=lambda: array("d"))
    first_word_delays: array[float] = field(default_factory=lambda: array("d"))
    frames: int = 0
    unanswered: int = 0


class SttUser(Socket):
    """Sends a frame every 80 ms, from a random place of the recording on, and takes the time of what comes back."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        frames: Sequence[bytes],
        plan: Plan,
        register: SttRegister,
        rng: random.Random,
    ) -> None:
        self._url = url
        self._api_key = api_key
        self._frames = frames
        self._first = rng.randrange(len(frames))
        self._jitter = plan.jitter_seconds
        self._register = register
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._sent: array[float] = array("d")
        self._answers = 0
        self._words = 0

    async def run(self, leave_at: float) -> None:
        """Speak until ``leave_at``, then wait for the answers under way.

        Raises:
            MoshiServerError: what the server said or did instead.
        """
        asked = time.monotonic()
        await connect(self._url, self._api_key, self)
        try:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await self._ready
            except TimeoutError:
                raise ServerUnreachableError(f"no Ready came within {READY_SECONDS:g} s") from None
            self._register.ready.append(time.monotonic() - asked)
            self._register.here += 1
            try:
                await self._speak(leave_at)
            finally:
                self._register.here -= 1
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._count()
            self._over.cancel()
            self.leave()

    async def _speak(self, leave_at: float) -> None:
        self._begin = time.monotonic() + self._rng.random() * FRAME_SECONDS
        self._leave_at = leave_at
        self._plan_next()
        await asyncio.wait({self._over}, timeout=leave_at - time.monotonic())
        end = time.monotonic() + DRAIN_SECONDS
        while self._answers and self._answers < len(self._sent) and time.monotonic() < end and not self._over.done():
            await asyncio.wait({self._over}, timeout=0.02)
        if self._over.done():
            self._over.result()

    def _plan_next(self) -> None:
        # A frame is sent when its last sample has been spoken.
        self._due = self._begin + (len(self._sent) + 1) * FRAME_SECONDS
        if self._jitter:
            self._due += self._rng.random() * self._jitter
        if self._due < self._leave_at:
            self._timer = self._loop.call_later(max(0.0, self._due - time.monotonic()), self._send_next)

    def _send_next(self) -> None:
        now = time.monotonic()
        self.send(self._frames[(self._first + len(self._sent)) % len(self._frames)])
        self._sent.append(now)
        self._register.lateness.append(max(0.0, now - self._due))
        self._plan_next()

    def on_message(self, message: bytes) -> None:
        """Note when it came, and what it answers."""
        now = time.monotonic()
        if message.startswith(_STEP):
            self._answered(now)
            return
        try:
            event = asr_client.decode(message)
        except MoshiServerError as error:
            self._fail(error)
            return
        match event:
            case Step():
                self._answered(now)
            case Word(_, start_time):
                self._heard(start_time, now)
            case Ready() if not self._ready.done():
                self._ready.set_result(None)
            case Error(text):
                self._fail(SessionError(text))

    def on_end(self, error: MoshiServerError) -> None:
        """The server, or the network, has ended it."""
        self._fail(error)

    def _answered(self, now: float) -> None:
        if self._answers >= len(self._sent):
            return  # steps of silence: they answer nothing of ours
        sent = self._sent[self._answers]
        self._answers += 1
        if sent >= self._register.begun:
            self._register.answered_at.append(sent - self._register.begun)
            self._register.delays.append(now - sent)

    def _heard(self, start_time: float, now: float) -> None:
        frame = min(int(start_time / FRAME_SECONDS), len(self._sent) - 1)
        if frame < 0:
            return
        self._words += 1
        sent = self._sent[frame]
        if self._words == 1:
            self._register.first_word_delays.append(now - sent)
        if sent >= self._register.begun:
            self._register.spoken_at.append(sent - self._register.begun)
            self._register.word_delays.append(now - sent)

    def _count(self) -> None:
        """What became of the frames, when the user has gone."""
        now, begun = time.monotonic(), self._register.begun
        self._register.frames += sum(sent >= begun for sent in self._sent)
        if self._answers:
            # A user who just left has frames under way, of which nobody can say how long they would have taken.
            waiting = self._sent[self._answers :]
            self._register.unanswered += sum(begun <= sent < now - DRAIN_SECONDS / 2 for sent in waiting)

    def _fail(self, error: MoshiServerError) -> None:
        for future in (self._ready, self._over):
            if not future.done():
                future.set_exception(error)
                future.add_done_callback(seen)
