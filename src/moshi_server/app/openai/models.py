"""Which of our modules a model's name means, who may use it, and the list of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from ...auth import KEY_HEADER, Caller, looks_like_token
from ...errors import AuthError
from ..access import check_caller
from ..module import ServedModule
from ..routes import ServerState
from .errors import ApiError, api_error

HEARING: Final = ("Asr", "BatchedAsr", "PyBatchedAsr")
SPEAKING: Final = ("Py", "Tts", "PocketTts")
THEIR_NAMES: Final[Mapping[str, Sequence[str]]] = {
    "whisper-1": HEARING,
    "gpt-transcribe": HEARING,
    "gpt-4o-transcribe": HEARING,
    "gpt-4o-mini-transcribe": HEARING,
    "gpt-realtime-whisper": HEARING,
    "tts-1": SPEAKING,
    "tts-1-hd": SPEAKING,
    "gpt-4o-mini-tts": SPEAKING,
}
"""Names that programs ask for without being told another: each means the first module of its kind."""


class Models:
    """The modules by the names that a client may call them."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._modules = {module.name: module for module in state.modules if module.kind in (*HEARING, *SPEAKING)}
        self._created = int(time.time())

    def find(self, name: str, kinds: Sequence[str]) -> ServedModule:
        """The module that ``name`` means; an empty name means the first of these kinds.

        Raises:
            ApiError: 404, there is none.
        """
        fitting = [module for module in self._modules.values() if module.kind in kinds]
        for module in fitting:
            if module.name == name:
                return module
        if fitting and (not name or THEIR_NAMES.get(name) == kinds):
            return fitting[0]
        served = ", ".join(module.name for module in fitting) or "none"
        raise ApiError(
            404, f"the model {name!r} is not served here; for this, there is: {served}", param="model",
            code="model_not_found",
        )  # fmt: skip

    def check(self, connection: HTTPConnection, module: ServedModule, key: str = "") -> Caller:
        """Who is calling; a bearer may be an API key.

        Args:
            key: an API key that came another way.

        Raises:
            ApiError: 401.
        """
        headers = [(KEY_HEADER, key)] if key else []
        headers += [self._as_ours(name, value) for name, value in connection.headers.items()]
        try:
            return check_caller(connection, module, self._state, headers)
        except AuthError as error:
            raise api_error(error) from error

    async def list(self, _: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in self._modules]})

    async def one(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        name = request.path_params["model"]
        if name not in self._modules:
            error = ApiError(404, f"the model {name!r} is not served here", param="model", code="model_not_found")
            return error.response()
        return JSONResponse(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "moshi-server"}

    @staticmethod
    def _as_ours(name: str, value: str) -> tuple[str, str]:
        scheme, _, credential = value.strip().partition(" ")
        if name.lower() == "authorization" and scheme.lower() == "bearer" and not looks_like_token(credential.strip()):
            return KEY_HEADER, credential.strip()
        return name, value
