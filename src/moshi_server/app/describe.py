"""What the API's own description (OpenAPI) says of routes that read their requests themselves; it serves nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..auth import KEY_HEADER, KEY_QUERY

Endpoint = Callable[[Request], Awaitable[Response]]
Content = Mapping[str, Mapping[str, Any]]
"""Schemas by media type."""

BINARY: Final[Content] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_TEXT: Final[Mapping[str, Any]] = {"schema": {"type": "string"}}
WAV: Final[Content] = {"audio/wav": {"schema": {"type": "string", "format": "binary"}}}
EVENTS: Final[Content] = {"text/event-stream": {"schema": {"type": "object"}}}

_SCHEMES: Final = {
    "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
    "key in the address": {"type": "apiKey", "in": "query", "name": KEY_QUERY},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_REFUSALS: Final = {
    400: "the request cannot be read, or asks for what cannot be done",
    401: "no credentials, or wrong ones",
    404: "there is no such voice or model",
    408: "the client was too slow",
    413: "the request is too large",
    429: "this key has too many streams and requests, at once or in a minute",
    500: "the model has failed",
    503: "no place came free, or the server is being stopped",
}
_REFUSAL: Final = {"application/json": {"schema": {"type": "object", "required": ["error"]}}}


def json_body(model: type[BaseModel] | TypeAdapter[Any]) -> Content:
    """A JSON body of this shape."""
    schema = model.json_schema() if isinstance(model, TypeAdapter) else model.model_json_schema()
    return {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The same schema with its definitions in their places, where OpenAPI looks for them nowhere else."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}


def text_answers(*kinds: str) -> Content:
    """Answers of these media types, as text."""
    return dict.fromkeys(kinds, _TEXT)


def add_described(
    app: FastAPI,
    path: str,
    endpoint: Endpoint,
    summary: str,
    *,
    answer: Content,
    takes: Content | None = None,
    method: str = "POST",
    auth: bool = True,
    refusals: tuple[int, ...] = tuple(_REFUSALS),
    parameters: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Add a route, and say in the API's description what it takes and gives.

    Args:
        summary: a line.
        answer: of status 200.
        takes: the request's body; None for none.
        auth: whether it asks for credentials.
        refusals: the statuses it may answer besides.
        parameters: of the path and the query, as OpenAPI has them.
    """
    extra: dict[str, Any] = {"security": [{name: []} for name in _SCHEMES]} if auth else {}
    if parameters:
        extra["parameters"] = list(parameters)
    if takes is not None:
        extra["requestBody"] = {"required": True, "content": takes}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": _REFUSAL} for status, text in _REFUSALS.items() if status in refusals
    }
    responses[200] = {"description": "done", "content": answer}

    async def described(request: Request) -> Response:
        return await endpoint(request)

    app.add_api_route(
        path,
        described,
        methods=[method],
        name=f"{method} {path}",
        summary=summary,
        responses=responses,
        response_class=Response,
        response_model=None,
        openapi_extra=extra,
    )


def add_upgrade(app: FastAPI, path: str, refuse: Endpoint) -> None:
    """Say that a path speaks WebSocket, and answer those who do not with ``refuse`` (426)."""

    async def described(request: Request) -> Response:
        return await refuse(request)

    responses: dict[int | str, dict[str, Any]] = {
        101: {"description": "the protocol changes; docs/protocols.md says what it is"},
        426: {"description": "no upgrade was asked for", "content": _REFUSAL},
    }
    app.add_api_route(
        path,
        described,
        methods=["GET"],
        name=f"GET {path}",
        summary="A stream, by WebSocket",
        status_code=101,
        responses=responses,
        response_class=Response,
        response_model=None,
    )


def add_other_methods(app: FastAPI) -> None:
    """Refuse, at each path, the methods that it has not, and name those it has; call it once all routes are there."""
    allowed: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            allowed.setdefault(route.path, set()).update(route.methods or ())

    def refusal(allow: str) -> Endpoint:
        async def refuse(_: Request) -> Response:
            return JSONResponse({"error": f"this path takes {allow}"}, 405, {"Allow": allow})

        return refuse

    for path, methods in allowed.items():
        others = sorted({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - methods)
        app.add_route(path, refusal(", ".join(sorted(methods))), methods=others, include_in_schema=False)


def add_credentials(app: FastAPI) -> None:
    """Say in the description how credentials are sent. Call it once all routes are there."""
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
