"""A virtual listener of text to speech, and what a crowd of them has heard; only upstream's messages are used.

Each sends its whole text at once, and plays what comes as it comes: where the next sound is not there when the last one
has been played, there is a gap. Once all was heard, the same user begins again, on a new connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ..audio import SAMPLE_RATE
from ..errors import MoshiServerError, ServerUnreachableError, SessionError
from ..events import Audio, Eos, Error, Ready, SpokenWord, Text
from ..protocol import tts_client
from .crowd import Plan, Register
from .socket import Socket, connect, seen

READY_SECONDS: Final = 30.0
SPEECH_SECONDS: Final = 120.0
"""How long one text may take to be spoken."""
PLAYER_SECONDS: Final = 0.08
"""What a player keeps in hand: sound that is later than this is a gap."""


@dataclass(slots=True)
class TtsRegister(Register):
    """What the listeners have heard. Only speech that began while everybody was there counts.

    Attributes:
        asked_at: for each speech, when its text was sent, in seconds since `begun`.
        first_audio: for each speech, how long the first sound took from then.
        gaps: for each speech, how long in all the player stood still.
        speeds: for each whole speech, seconds of sound a second, from its first sound to its last.
        speeches: how many were heard to the end.
        seconds: of sound, of all speeches.
    """

    asked_at: array[float] = field(default_factory=lambda: array("d"))
    first_audio: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    speeds: array[float] = field(default_factory=lambda: array("d"))
    speeches: int = 0
    words: int = 0
    seconds: float = 0.0


class TtsUser:
    """Has one text after another spoken until it leaves."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        texts: Sequence[str],
        plan: Plan,
        register: TtsRegister,
        rng: random.Random,
    ) -> None:
        self._url = url
        self._api_key = api_key
        self._texts = texts
        self._register = register
        self._rng = rng

    async def run(self, leave_at: float) -> None:
        """Listen until ``leave_at``; the speech that is under way then is broken off.

        Raises:
            MoshiServerError: what the server said or did instead.
        """
        while time.monotonic() < leave_at:
            speech = _Speech(self._rng.choice(self._texts), self._register)
            try:
                await speech.hear(self._url, self._api_key, leave_at)
            finally:
                speech.end()


class _Speech(Socket):
    """One text and its sound."""

    def __init__(self, text: str, register: TtsRegister) -> None:
        self._text = text
        self._register = register
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[None] = loop.create_future()
        self._asked = self._first = self._last = 0.0
        self._heard = 0.0
        self._gap = 0.0
        self._words = 0

    async def hear(self, url: str, api_key: str | None, leave_at: float) -> None:
        asked = time.monotonic()
        await connect(url, api_key, self)
        try:
            await asyncio.wait_for(self._ready, READY_SECONDS)
        except TimeoutError:
            raise ServerUnreachableError(f"no Ready came within {READY_SECONDS:g} s") from None
        self._register.ready.append(time.monotonic() - asked)
        self._register.here += 1
        try:
            self._asked = time.monotonic()
            self.send(tts_client.encode(Text(self._text)))
            self.send(tts_client.encode(Eos()))
            patience = min(leave_at - self._asked, SPEECH_SECONDS)
            await asyncio.wait({self._over}, timeout=max(0.0, patience))
            if self._over.done():
                self._over.result()
            elif patience == SPEECH_SECONDS:
                raise SessionError(f"a text was not spoken within {SPEECH_SECONDS:g} s")
        finally:
            self._register.here -= 1

    def on_message(self, message: bytes) -> None:
        """Note when it came; play it."""
        now = time.monotonic()
        try:
            event = tts_client.decode(message)
        except MoshiServerError as error:
            self._fail(error)
            return
        match event:
            case Audio(pcm) if len(pcm):
                if not self._heard:
                    self._first = now
                    if self._counts:
                        self._register.asked_at.append(self._asked - self._register.begun)
                        self._register.first_audio.append(now - self._asked)
                # Played so far is what came, or less if the player stood still before.
                late = now - (self._first + self._heard + self._gap + PLAYER_SECONDS)
                self._gap += max(0.0, late)
                self._heard += len(pcm) / SAMPLE_RATE
                self._last = now
            case SpokenWord():
                self._words += 1
            case Ready() if not self._ready.done():
                self._ready.set_result(None)
            case Error(text):
                self._fail(SessionError(text))

    def on_end(self, error: MoshiServerError) -> None:
        """All was said, or something went wrong."""
        if self.close_code == 1000 and self._heard and not self._over.done():
            self._over.set_result(None)
            if self._counts and self._last > self._first:
                self._register.speeches += 1
                self._register.speeds.append(self._heard / (self._last - self._first))
        else:
            self._fail(error)

    @property
    def _counts(self) -> bool:
        return self._asked >= self._register.begun

    def end(self) -> None:
        """Count what was heard, and leave."""
        if self._heard and self._counts:
            self._register.gaps.append(self._gap)
            self._register.seconds += self._heard
            self._register.words += self._words
        self._over.cancel()
        self.leave()

    def _fail(self, error: MoshiServerError) -> None:
        for future in (self._ready, self._over):
            if not future.done():
                future.set_exception(error)
                future.add_done_callback(seen)
