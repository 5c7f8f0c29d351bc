"""Who may use a module: checked, counted and logged in one place, whatever the refusal then looks like."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from starlette.requests import HTTPConnection

from ..auth import OPEN, Caller
from ..errors import AuthError
from .module import ServedModule
from .routes import ServerState

logger = logging.getLogger(__name__)


def check_caller(
    connection: HTTPConnection,
    module: ServedModule,
    state: ServerState,
    headers: Iterable[tuple[str, str]] | None = None,
) -> Caller:
    """Who is calling.

    Args:
        headers: those that count, where they are not simply the connection's.

    Raises:
        AuthError: the module does not accept these credentials.
    """
    if not module.auth:
        return OPEN
    try:
        given = connection.headers.items() if headers is None else headers
        return state.auth.check(given, connection.query_params, time.time())
    except AuthError as error:
        state.metrics.auth_errors.inc(error.code)
        fields = {"code": error.code, "module": module.name, "client": _client(connection)}
        logger.warning("refused: %s", error.message, extra={"fields": fields})
        raise


def _client(connection: HTTPConnection) -> str:
    return connection.headers.get("x-real-ip") or (connection.client.host if connection.client else "")
