"""`transcribe`: a recording to a server and its words back, in one blocking call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from ..speech.transcript import Transcript
from .asr import AsrClient
from .backoff import Reconnect
from .connecting import DEFAULT_URL
from .exchange import Recording, load
from .reconnecting import ReconnectingAsrClient

PATIENT: Final = Reconnect()


def transcribe(
    audio: Recording,
    url: str | Sequence[str] = DEFAULT_URL,
    *,
    api_key: str | None = None,
    timeout: float = 10.0,
    on_progress: Callable[[float], None] | None = None,
    reconnect: Reconnect | None = PATIENT,
) -> Transcript:
    """Transcribe a recording on a server and wait for the result. It reads no environment and starts no server.

    Args:
        audio: a path, the bytes of an audio file, or samples at 24 kHz of shape (samples,).
        url: as for `AsrClient.connect`, or several: the first that has a slot is taken.
        api_key: as for `AsrClient.connect`.
        timeout: seconds until a server must have answered the connection.
        on_progress: is told how many seconds are done.
        reconnect: how to go on if the server is lost in the middle; None to give up at once.

    Raises:
        AudioError: the recording cannot be read.
        ServerUnreachableError, AuthError, SessionError: as for `AsrClient.connect` and `AsrClient.transcribe`.
    """

    async def run() -> Transcript:
        pcm = load(audio)
        if reconnect is None and isinstance(url, str):
            async with AsrClient.connect(url, api_key=api_key, timeout=timeout) as client:
                return await client.transcribe(pcm, on_progress=on_progress)
        how = reconnect or Reconnect(fruitless_losses=1, give_up_seconds=0.0)
        async with ReconnectingAsrClient.connect(url, api_key=api_key, timeout=timeout, reconnect=how) as lasting:
            return await lasting.transcribe(pcm, on_progress=on_progress)

    return asyncio.run(run())
