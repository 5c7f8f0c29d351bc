"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``; it decides nothing."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import JSONResponse

from ...errors import AuthError, MoshiServerError
from ..upload import RETRY_AFTER_SECONDS, status_of

INVALID_REQUEST: Final = "invalid_request_error"


class ApiError(Exception):
    """A refusal.

    Args:
        status: of HTTP.
        param: which parameter of the request is wrong.
        code: what a program can tell it by.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        kind = INVALID_REQUEST if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status == 503 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def api_error(error: MoshiServerError) -> ApiError:
    """One of our errors as a refusal."""
    message = f"{error.message}: {error.hint}" if error.hint else error.message
    if isinstance(error, AuthError):
        return ApiError(401, message, code="invalid_api_key")
    return ApiError(status_of(error), message)


def unsupported(param: str, what: str) -> ApiError:
    """The refusal of a parameter that would otherwise be passed over in silence."""
    return ApiError(400, what, param=param, code="unsupported_parameter")
