"""What the server says of itself over HTTP: build, modules, health, status, metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ..auth import Authenticator
from ..metrics import CONTENT_TYPE, Metrics, SlotReading
from .build_info import build_info
from .module import ServedModule

SNAKE_NAMES = {
    "Asr": "asr",
    "BatchedAsr": "batched_asr",
    "PyBatchedAsr": "py_batched_asr",
    "Tts": "tts",
    "Py": "py",
    "PocketTts": "pocket_tts",
    "PyPost": "py_post",
    "Lm": "lm",
    "Mimi": "mimi",
}
"""Module types as upstream's ``modules_info`` spells them."""


@dataclass(slots=True)
class ServerState:
    """What every route may look at.

    Attributes:
        draining: the server was told to end.
        started: monotonic seconds.
    """

    modules: Sequence[ServedModule]
    auth: Authenticator
    metrics: Metrics
    instance: str = ""
    draining: bool = False
    started: float = field(default_factory=time.monotonic)

    def health(self) -> str:
        """Say "ok", or the first thing that keeps the server from taking streams.

        It is "degraded" where only users' scripts have failed, and other modules go on.
        """
        if self.draining:
            return "draining"
        lost = [module for module in self.modules if module.engine.isolated and module.engine.status == "failed"]
        states = {module.engine.status for module in self.modules if module not in lost}
        if lost and not states:
            return "failed"
        healthy = "degraded" if lost else "ok"
        return next((state for state in ("failed", "stopped", "starting", "draining") if state in states), healthy)

    def slots(self) -> list[SlotReading]:
        """Each module's slots, for the metrics."""
        return [
            SlotReading(module.name, module.kind, module.engine.slots_used, module.engine.slots_total)
            for module in self.modules
        ]


def api(state: ServerState) -> APIRouter:
    """The routes under ``/api``, and ``/metrics``. None of them asks for credentials or tells a secret."""
    router = APIRouter()

    @router.get("/api/build_info", summary="What this build is")
    def _build_info() -> dict[str, str]:
        return build_info()

    @router.get("/api/modules_info", summary="Each module's files and slots, as strings, as upstream has it")
    def _modules_info() -> list[dict[str, str]]:
        return [_module_info(module) for module in state.modules]

    @router.get("/api/voices", summary="The voices of each text-to-speech module")
    def _voices() -> list[dict[str, Any]]:
        return [
            {"module": module.name, "path": module.path, "default": voices.default, "voices": voices.names}
            for module in state.modules
            if (voices := module.voices) is not None
        ]

    @router.get("/api/health", summary="200 if streams can be opened, else 503", response_model=None)
    def _health() -> Response:
        health = state.health()
        return JSONResponse({"status": health}, 200 if health in ("ok", "degraded") else 503)

    @router.get("/api/status", summary="Status, uptime, build, capacity, and which credentials are accepted")
    def _status() -> dict[str, Any]:
        return {
            "status": state.health(),
            "instance": state.instance,
            "uptime_seconds": round(time.monotonic() - state.started, 3),
            "build": build_info(),
            "modules": [_capacity(module) for module in state.modules],
            "auth": {"api_keys": state.auth.accepts_keys, "better_auth": state.auth.accepts_tokens},
        }

    @router.get("/metrics", summary="Prometheus text", response_class=PlainTextResponse)
    def _metrics() -> Response:
        return Response(state.metrics.render(), media_type=CONTENT_TYPE)

    return router


def _module_info(module: ServedModule) -> dict[str, str]:
    return {
        "type": SNAKE_NAMES.get(module.kind, module.kind),
        "path": module.path,
        **module.files,
        "used_slots": str(module.engine.slots_used),
        "total_slots": str(module.engine.slots_total),
    }


def _capacity(module: ServedModule) -> dict[str, Any]:
    return {
        "name": module.name,
        "type": module.kind,
        "path": module.path,
        "status": module.engine.status,
        "auth": module.auth,
        "used_slots": module.engine.slots_used,
        "total_slots": module.engine.slots_total,
    }
