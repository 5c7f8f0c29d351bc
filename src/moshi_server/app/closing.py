"""How a stream's end is said on the wire: typed errors to close codes; the only table of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

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
    SessionError,
    SessionLimitError,
)

MAX_REASON_BYTES: Final = 123
"""What a close frame has room for (RFC 6455, section 5.5)."""


class CloseCode(IntEnum):
    """WebSocket close codes; those from 4000 on are ours."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    LOST = 1006
    INTERNAL_ERROR = 1011
    AT_CAPACITY = 4000
    AUTHENTICATION_FAILED = 4001
    SESSION_TIMEOUT = 4002
    INVALID_MESSAGE = 4003
    RATE_LIMITED = 4004
    RESOURCE_NOT_FOUND = 4005
    CLIENT_TIMEOUT = 4006


class BrokenFramesError(SessionError):
    """The client broke the WebSocket protocol itself."""


@dataclass(frozen=True, slots=True)
class Closing:
    """One way for a stream to end: its close code, and the ``error_type`` it is counted under ("" if no error)."""

    code: CloseCode
    error_type: str


_CLOSINGS: Final[dict[type[MoshiServerError], Closing]] = {
    AudioError: Closing(CloseCode.INVALID_MESSAGE, "protocol"),
    AuthError: Closing(CloseCode.AUTHENTICATION_FAILED, "authentication"),
    InvalidMessageError: Closing(CloseCode.INVALID_MESSAGE, "protocol"),
    NoFreeSlotError: Closing(CloseCode.AT_CAPACITY, "capacity"),
    BrokenFramesError: Closing(CloseCode.PROTOCOL_ERROR, "protocol"),
    ClientTimeoutError: Closing(CloseCode.CLIENT_TIMEOUT, "timeout"),
    SessionLimitError: Closing(CloseCode.SESSION_TIMEOUT, "timeout"),
    ResourceNotFoundError: Closing(CloseCode.RESOURCE_NOT_FOUND, "not_found"),
    RateLimitedError: Closing(CloseCode.RATE_LIMITED, "rate_limit"),
    GoingAwayError: Closing(CloseCode.GOING_AWAY, ""),
    EngineFailedError: Closing(CloseCode.INTERNAL_ERROR, "internal"),
}
_UNKNOWN: Final = Closing(CloseCode.INTERNAL_ERROR, "internal")


def closing_for(error: BaseException) -> Closing:
    """How to close a stream that this error ended."""
    return next((_CLOSINGS[kind] for kind in type(error).__mro__ if kind in _CLOSINGS), _UNKNOWN)


def reason_text(text: str) -> str:
    """A sentence cut to what a close frame can carry, without splitting a character."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= MAX_REASON_BYTES else raw[: MAX_REASON_BYTES - 3].decode("utf-8", "ignore") + "..."
