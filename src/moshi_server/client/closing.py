"""From refusals and close codes back to the errors that they stand for, so that a client can tell them apart."""

from __future__ import annotations

import json
from typing import Final

from websockets.http11 import Response

from ..errors import (
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

START_HINT: Final = "start one with: moshi-server worker --config demo"

_ERRORS: Final[dict[int, type[SessionError]]] = {
    1001: GoingAwayError,
    1002: InvalidMessageError,
    1009: InvalidMessageError,
    1011: EngineFailedError,
    4000: NoFreeSlotError,
    4002: SessionLimitError,
    4003: InvalidMessageError,
    4004: RateLimitedError,
    4005: ResourceNotFoundError,
    4006: ClientTimeoutError,
}
_NO_SLOT: Final = "no free channels"


def error_of_close(code: int | None, reason: str, said: str = "") -> MoshiServerError:
    """The error for a stream that the server ended.

    Args:
        code: of the close frame, None if the connection just broke.
        reason: of the close frame.
        said: what an `Error` message said before; it is whole where the reason may be cut.
    """
    text = said or reason
    if code == 4001:
        return AuthError("invalid_key", text or "the server refused the credentials", hint="pass a valid api_key")
    kind = NoFreeSlotError if said == _NO_SLOT else _ERRORS.get(code or 0, SessionError)
    if text:
        return kind(text)
    if code is None or code == 1006:
        return SessionError("the connection to the server broke", hint="see the server's log, or try again")
    return kind(f"the server ended the stream with code {code}")


def error_of_refusal(response: Response, url: str) -> MoshiServerError:
    """The error for a server that answered the upgrade with an HTTP status."""
    status = response.status_code
    said = _said(response)
    message = said.get("message") or said.get("error") or response.reason_phrase or "no reason given"
    hint = said.get("hint", "")
    if status == 401 or (status == 403 and "code" in said):
        return AuthError(said.get("code", "invalid_key"), message, hint=hint or "pass a valid api_key")
    if status == 400 and "error" in said:
        return InvalidMessageError(message, hint=hint)
    if status == 429:
        return RateLimitedError(message, hint=hint)
    if status == 503:
        return NoFreeSlotError(message, hint=hint)
    if status in (403, 404, 405, 426):  # older workers answered 403 without a body at an unknown path
        return ResourceNotFoundError(
            f"nothing answers at {url}",
            hint=hint or "the path must be that of a module which does this: see /api/modules_info",
        )
    if 300 <= status < 400:
        location = response.headers.get("Location", "elsewhere")
        return ServerUnreachableError(f"{url} sends its visitors to {location}", hint="give that address as the url")
    return ServerUnreachableError(f"{url} answered with HTTP status {status}: {message}")


def _said(response: Response) -> dict[str, str]:
    try:
        fields = json.loads(response.body or b"")
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in fields.items()} if isinstance(fields, dict) else {}
