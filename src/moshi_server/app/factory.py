"""From built modules and a configuration to the web application."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from .. import __version__
from ..auth import Caller, refusal
from ..config import Module
from ..engine.hooks import EngineHooks
from ..errors import AuthError, InvalidMessageError, RateLimitedError
from ..metrics import ModuleMetrics
from .access import check_caller
from .admission import Held, Refusal
from .describe import (
    BINARY,
    WAV,
    Endpoint,
    add_credentials,
    add_described,
    add_other_methods,
    add_upgrade,
    json_body,
)
from .dialogue import DialoguePump
from .module import ClientLimits, RoomsSpec, ServedModule
from .openai import add_openai
from .page import Files
from .post import VoiceUploads
from .rooms import ListenerPump, ProducerPump, Rooms
from .routes import ServerState, api
from .speech import SpeechPump, StreamQuery
from .synthesis import PostQuery, SpeechPosts
from .upload import Uploads, Words, refusal_of
from .websocket import Pump
from .wire import AsrWire, Wire

logger = logging.getLogger(__name__)

ASR_KINDS = ("Asr", "BatchedAsr", "PyBatchedAsr")
TTS_KINDS = ("Py", "PocketTts", "Tts")


def create_app(state: ServerState, *, static_dir: str | Path | None = None) -> FastAPI:
    """The application: each module at its path, what the server says of itself, and files from ``static_dir``."""
    app = FastAPI(
        title="moshi-server",
        version=__version__,
        docs_url="/api/docs",
        openapi_url="/api/openapi.json",
        redoc_url=None,
    )
    app.include_router(api(state))
    state.metrics.watch_slots(state.slots)
    state.metrics.watch_ready(lambda: state.readiness(state.modules) == "ready")
    for module in state.modules:
        if module.kind in ASR_KINDS:
            _add_speech_to_text(app, module, state)
        elif module.kind in TTS_KINDS:
            _add_text_to_speech(app, module, state)
        elif module.kind == "Lm":
            _add_dialogue(app, module, state)
        elif module.kind == "PyPost":
            _add_post(app, module, state)
        elif module.rooms is not None:
            _add_rooms(app, module, module.rooms, state)
    _add_access(app, state)
    add_openai(app, state)
    add_other_methods(app)
    app.add_api_websocket_route("/{path:path}", _nothing_here(state))  # before files, which know no upgrade
    app.mount("/", Files(static_dir), name="static")
    add_credentials(app)
    return app


def _add_access(app: FastAPI, state: ServerState) -> None:
    """Let a client ask whether its credentials will do: a browser is not told why an upgrade was refused."""
    modules = {module.name: module for module in state.modules}

    async def access(request: Request) -> Response:
        module = modules.get(request.path_params["module"])
        if module is None:
            return JSONResponse({"error": "there is no such module"}, 404)
        caller = _check(request, module, state)
        return caller if isinstance(caller, Response) else JSONResponse({"accepted": True, "by": caller.method})

    add_described(
        app, "/api/access/{module}", access, "Whether these credentials open a module", method="GET",
        answer={"application/json": {"schema": {"type": "object"}}}, refusals=(401, 404), auth=False,
        parameters=[{"name": "module", "in": "path", "required": True, "schema": {"type": "string"}}],
    )  # fmt: skip


def hooks_for(metrics: ModuleMetrics) -> EngineHooks:
    """What an engine calls, counted."""
    return EngineHooks(
        on_open=metrics.opened,
        on_close=metrics.closed,
        on_step=metrics.stepped,
        on_words=metrics.waited,
        on_warmup=metrics.warmed_up,
    )


def limits_of(config: Module) -> ClientLimits:
    """What the module's configuration lets its clients do."""
    return ClientLimits(
        idle_seconds=config.idle_timeout_seconds,
        message_seconds=config.message_timeout_seconds,
        send_seconds=config.send_timeout_seconds,
        post_wait_seconds=config.post_wait_seconds,
        upload_seconds=config.upload_timeout_seconds,
        max_message_bytes=int(config.max_message_mb * 2**20),
        max_upload_bytes=int(config.max_upload_mb * 2**20),
    )


def _add_speech_to_text(app: FastAPI, module: ServedModule, state: ServerState) -> None:
    uploads = Uploads(module)

    def wire(websocket: WebSocket) -> Wire:
        return AsrWire(turns=websocket.query_params.get("turns") in ("1", "true"))

    app.add_api_websocket_route(module.path, _stream(module, state, wire))
    add_described(
        app, module.path, _posts(module, state, uploads.answer), f"{module.name}: a whole recording to words",
        takes=BINARY, answer=json_body(Words), auth=module.auth, refusals=(400, 401, 408, 413, 429, 500, 503),
    )  # fmt: skip
    add_upgrade(app, module.path, _upgrade_required)


def _add_text_to_speech(app: FastAPI, module: ServedModule, state: ServerState) -> None:
    posts = SpeechPosts(module)

    async def stream(websocket: WebSocket) -> None:
        caller = _check(websocket, module, state)
        if isinstance(caller, Response):
            await websocket.send_denial_response(caller)
            return
        try:
            query = StreamQuery.of(websocket.query_params)
        except InvalidMessageError as error:
            await websocket.send_denial_response(JSONResponse({"error": error.message, "hint": error.hint}, 400))
        else:
            await SpeechPump(websocket, module, query, state).run(caller)

    (path,) = _stream_paths(module)
    app.add_api_websocket_route(path, stream)
    add_upgrade(app, path, _sockets_only)
    add_described(
        app, module.path, _posts(module, state, posts.answer), f"{module.name}: a text to a wav",
        takes=json_body(PostQuery), answer=WAV, auth=module.auth,
    )  # fmt: skip


def _add_dialogue(app: FastAPI, module: ServedModule, state: ServerState) -> None:
    def pump(websocket: WebSocket) -> Pump:
        return DialoguePump(websocket, module, state)

    app.add_api_websocket_route(module.path, _socket(module, state, pump))
    add_upgrade(app, module.path, _sockets_only)


def _add_post(app: FastAPI, module: ServedModule, state: ServerState) -> None:
    uploads = VoiceUploads(module)

    add_described(
        app, module.path, _posts(module, state, uploads.answer), f"{module.name}: a recording to an array",
        takes=BINARY, answer=BINARY, auth=module.auth, refusals=(400, 401, 408, 413, 429, 500, 503),
    )  # fmt: skip


def _add_rooms(app: FastAPI, module: ServedModule, spec: RoomsSpec, state: ServerState) -> None:
    rooms = Rooms(spec)
    module.at_drain.append(rooms.tell)
    module.at_end.append(rooms.end)
    # A listener has nothing to say: only its silence at the transport counts.
    limits = replace(module.limits, message_seconds=math.inf)
    listening = replace(module, path=spec.listen_path, auth=spec.auth, limits=limits)

    def producer(websocket: WebSocket) -> Pump:
        return ProducerPump(websocket, module, rooms, state)

    def listener(websocket: WebSocket) -> Pump:
        return ListenerPump(websocket, listening, rooms, state)

    for each, pump in ((module, producer), (listening, listener)):
        app.add_api_websocket_route(each.path, _socket(each, state, pump))
        add_upgrade(app, each.path, _sockets_only)


def _posts(module: ServedModule, state: ServerState, answer: Endpoint) -> Endpoint:
    """``answer`` for callers who may use the module, as often as they may."""

    async def post(request: Request) -> Response:
        caller = _check(request, module, state)
        if isinstance(caller, Response):
            return caller
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(state.admission.admit(caller))
            except RateLimitedError as error:
                response: Response = refusal_of(error)
            else:
                response = await answer(request)
            if isinstance(response, Refusal) and response.limit:
                state.metrics.limits.inc(response.limit, module.name)
            return Held(response, place.pop_all())

    return post


def _stream(
    module: ServedModule, state: ServerState, wire: Callable[[WebSocket], Wire]
) -> Callable[[WebSocket], Awaitable[None]]:
    return _socket(module, state, lambda websocket: Pump(websocket, module, wire(websocket), state))


def _socket(
    module: ServedModule, state: ServerState, pump: Callable[[WebSocket], Pump]
) -> Callable[[WebSocket], Awaitable[None]]:
    async def stream(websocket: WebSocket) -> None:
        caller = _check(websocket, module, state)
        if isinstance(caller, Response):
            await websocket.send_denial_response(caller)
        else:
            await pump(websocket).run(caller)

    return stream


def _stream_paths(module: ServedModule) -> list[str]:
    """Where a module's WebSockets are."""
    match module.kind:
        case "PyPost":
            return []
        case "Tts":
            return [f"{module.path}_streaming"]
    return [module.path] if module.rooms is None else [module.path, module.rooms.listen_path]


def _nothing_here(state: ServerState) -> Callable[[WebSocket], Awaitable[None]]:
    paths = [path for module in state.modules for path in _stream_paths(module)]

    async def nothing_here(websocket: WebSocket) -> None:
        fields = {
            "error": "not found",
            "message": f"no module answers at {websocket.url.path}",
            "hint": f"streams are served at {', '.join(paths)}" if paths else "this server serves no streams",
            "paths": paths,
        }
        await websocket.send_denial_response(JSONResponse(fields, 404))

    return nothing_here


async def _sockets_only(_: Request) -> Response:
    error = {"error": "this path speaks WebSocket"}
    return JSONResponse(error, 426, {"Upgrade": "websocket", "Connection": "Upgrade"})


async def _upgrade_required(_: Request) -> Response:
    message = "this path speaks WebSocket; to transcribe a whole file, POST it here"
    return JSONResponse({"error": message}, 426, {"Upgrade": "websocket", "Connection": "Upgrade"})


def _check(connection: HTTPConnection, module: ServedModule, state: ServerState) -> Caller | Response:
    """Who is calling, or the 401 to answer with."""
    try:
        return check_caller(connection, module, state)
    except AuthError as error:
        return JSONResponse(refusal(error), 401, {"WWW-Authenticate": "Bearer"})
