"""The interfaces of OpenAI's audio API over the modules that are served, for programs that know nothing else."""

from __future__ import annotations

from fastapi import FastAPI

from ..routes import ServerState
from .models import Models
from .realtime import realtime
from .speech import Speeches
from .transcriptions import Transcriptions


def add_openai(app: FastAPI, state: ServerState) -> None:
    """Add the ``/v1`` routes that this server's modules can answer."""
    models = Models(state)
    app.add_route("/v1/models", models.list, methods=["GET"])
    app.add_route("/v1/models/{model:path}", models.one, methods=["GET"])
    app.add_route("/v1/audio/transcriptions", Transcriptions(state, models).answer, methods=["POST"])
    app.add_route("/v1/audio/speech", Speeches(state, models).answer, methods=["POST"])
    app.add_api_websocket_route("/v1/realtime", realtime(state, models))
