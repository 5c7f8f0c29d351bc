"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``; it decides nothing."""

from __future__ import annotations

from typing import Any, Final

from ...errors import AuthError, MoshiServerError, SessionError
from ..admission import Refusal
from ..upload import refusal_headers, status_of

INVALID_REQUEST: Final = "invalid_request_error"


class ApiError(Exception):
    """A refusal.

    Args:
        status: of HTTP.
        param: which parameter of the request is wrong.
        code: what a program can tell it by.
        limit: the limit that was run into, for the metric.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, limit: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.limit = limit

    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        kind = INVALID_REQUEST if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Refusal:
        """The whole answer."""
        headers = refusal_headers(self.status)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Refusal(self.body(), self.status, headers, self.limit)


def api_error(error: MoshiServerError) -> ApiError:
    """One of our errors as a refusal."""
    message = f"{error.message}: {error.hint}" if error.hint else error.message
    if isinstance(error, AuthError):
        return ApiError(401, message, code="invalid_api_key")
    status = status_of(error)
    code = "rate_limit_exceeded" if status == 429 else None
    return ApiError(status, message, code=code, limit=error.limit if isinstance(error, SessionError) else "")


def unsupported(param: str, what: str) -> ApiError:
    """The refusal of a parameter that would otherwise be passed over in silence."""
    return ApiError(400, what, param=param, code="unsupported_parameter")
