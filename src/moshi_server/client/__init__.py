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
from .asr import AsrClient
from .backoff import Reconnect
from .dialogue import DialogueClient
from .reconnecting import ConnectionLost, ConnectionResumed, ReconnectingAsrClient
from .speaking import Speech
from .transcribing import transcribe
from .tts import TtsClient, speak

__all__ = [
    "AsrClient",
    "AudioError",
    "AuthError",
    "ClientTimeoutError",
    "ConnectionLost",
    "ConnectionResumed",
    "DialogueClient",
    "EngineFailedError",
    "GoingAwayError",
    "InvalidMessageError",
    "MoshiServerError",
    "NoFreeSlotError",
    "RateLimitedError",
    "Reconnect",
    "ReconnectingAsrClient",
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
