"""The SDK for programs that talk to a server; it never imports torch."""

from __future__ import annotations

from ..errors import (
    AudioError,
    AuthError,
    ClientTimeoutError,
    EngineFailedError,
    GoingAwayError,
    InvalidMessageError,
    MoshiServerError,
    NoFreeSlotError,
    RateLimitedError,
    ResourceNotFoundError,
    ServerUnreachableError,
    SessionError,
    SessionLimitError,
)
from ..speech.transcript import Transcript, TranscriptWord
from .asr import AsrClient, transcribe
from .dialogue import DialogueClient
from .speaking import Speech
from .tts import TtsClient, speak

__all__ = [
    "AsrClient",
    "AudioError",
    "AuthError",
    "ClientTimeoutError",
    "DialogueClient",
    "EngineFailedError",
    "GoingAwayError",
    "InvalidMessageError",
    "MoshiServerError",
    "NoFreeSlotError",
    "RateLimitedError",
    "ResourceNotFoundError",
    "ServerUnreachableError",
    "SessionError",
    "SessionLimitError",
    "Speech",
    "Transcript",
    "TranscriptWord",
    "TtsClient",
    "speak",
    "transcribe",
]
