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
from .asr import AsrClient, transcribe
from .transcript import Transcript, TranscriptWord

__all__ = [
    "AsrClient",
    "AudioError",
    "AuthError",
    "ClientTimeoutError",
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
    "Transcript",
    "TranscriptWord",
    "transcribe",
]
