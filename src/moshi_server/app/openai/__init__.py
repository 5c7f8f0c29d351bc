"""The interfaces of OpenAI's audio API over the modules that are served, for programs that know nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ..admission import Refusal
from ..describe import EVENTS, Endpoint, add_described, json_body, text_answers
from ..routes import ServerState
from .models import HEARING, SPEAKING, Models
from .realtime import realtime
from .speech import Speeches, SpeechRequest
from .transcriptions import FORMATS, GRANULARITIES, Transcriptions

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS)},
        "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": list(GRANULARITIES)}},
        "stream": {"type": "string", "enum": ["true", "false"]},
        "language": {"type": "string"},
    },
}
_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}


def add_openai(app: FastAPI, state: ServerState) -> None:
    """Add the ``/v1`` routes that this server's modules can answer."""
    models = Models(state)
    kinds = {module.kind: module.auth for module in state.modules}
    add_described(
        app, "/v1/models", models.list, "The modules that OpenAI's routes reach", method="GET", auth=False,
        answer=_OBJECT, refusals=(),
    )  # fmt: skip
    app.add_route("/v1/models/{model:path}", models.one, methods=["GET"])
    transcribe = _counted(Transcriptions(state, models).answer, state, HEARING)
    speak = _counted(Speeches(state, models).answer, state, SPEAKING)
    hears = [kinds[kind] for kind in kinds if kind in HEARING]
    speaks = [kinds[kind] for kind in kinds if kind in SPEAKING]
    if hears:
        add_described(
            app, "/v1/audio/transcriptions", transcribe, "A recording to text, as OpenAI has it", auth=all(hears),
            takes={"multipart/form-data": {"schema": _FORM}},
            answer={**_OBJECT, **text_answers("text/plain", "text/vtt"), **EVENTS},
        )  # fmt: skip
    else:
        app.add_route("/v1/audio/transcriptions", transcribe, methods=["POST"])
    if speaks:
        add_described(
            app, "/v1/audio/speech", speak, "A text to sound, as OpenAI has it", auth=all(speaks),
            takes=json_body(SpeechRequest),
            answer={**text_answers("audio/wav", "audio/pcm", "audio/ogg"), **EVENTS},
        )  # fmt: skip
    else:
        app.add_route("/v1/audio/speech", speak, methods=["POST"])
    app.add_api_websocket_route("/v1/realtime", realtime(state, models))


def _counted(answer: Endpoint, state: ServerState, kinds: Sequence[str]) -> Endpoint:
    """``answer``, of which refusals for a limit are counted, under the module that is meant if none is named."""
    module = next((module.name for module in state.modules if module.kind in kinds), "")

    async def counted(request: Request) -> Response:
        response = await answer(request)
        if isinstance(response, Refusal) and response.limit:
            state.metrics.limits.inc(response.limit, module)
        return response

    return counted
