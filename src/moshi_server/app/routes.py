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
from .admission import Admission
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

REASONS = {
    "ready": "",
    "starting": "the models are still being loaded or warmed up",
    "full": "every slot is taken",
    "draining": "the server was told to end, and takes no new streams",
    "failed": "a model has failed for good: only a new start helps",
    "stopped": "the server ends",
}
"""What ``/ready`` says of each status."""


@dataclass(slots=True)
class ServerState:
    """What every route may look at.

    Attributes:
        draining: the server was told to end.
        admission: who is being served, and how much one caller may have.
        refuse_before_upgrade: a stream that cannot be served is refused by an HTTP status, so that a proxy can try
            another worker; otherwise as upstream does it, by a message on the open WebSocket.
        started: monotonic seconds.
    """

    modules: Sequence[ServedModule]
    auth: Authenticator
    metrics: Metrics
    instance: str = ""
    draining: bool = False
    admission: Admission = field(default_factory=Admission)
    refuse_before_upgrade: bool = False
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

    @property
    def failed(self) -> bool:
        """Whether a model has failed for good, so that only a new start helps. A script's failure is its own affair."""
        lost = [module.engine.status == "failed" for module in self.modules]
        fatal = any(module.engine.status == "failed" and not module.engine.isolated for module in self.modules)
        return fatal or (bool(lost) and all(lost))

    def readiness(self, modules: Sequence[ServedModule]) -> str:
        """Say "ready", or what keeps these modules from taking another stream: "full" if none of them has a slot."""
        health = self.health()
        if health not in ("ok", "degraded"):
            return health
        working = [module for module in modules if module.engine.status == "ready"]
        if modules and not working:
            return "failed"
        streaming = [module for module in working if module.streams] or working
        return "ready" if not streaming or any(module.has_room for module in streaming) else "full"

    def slots(self) -> list[SlotReading]:
        """Each module's slots, for the metrics."""
        return [
            SlotReading(
                module.name,
                module.kind,
                used=module.engine.slots_used,
                total=module.engine.slots_total,
                free=module.slots_free,
                waiting=module.engine.slots_waiting,
            )
            for module in self.modules
        ]


def api(state: ServerState) -> APIRouter:
    """``/live``, ``/ready``, ``/metrics`` and what is under ``/api``; none asks for credentials or tells a secret."""
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

    @router.get(
        "/live", summary="200 while this process can serve, 503 once only a new start helps", response_model=None
    )
    def _live() -> Response:
        return JSONResponse({"status": "failed" if state.failed else "live"}, 503 if state.failed else 200)

    @router.get(
        "/ready",
        summary="200 if a stream can be opened now, else 503 and why",
        response_model=None,
        responses={404: {"description": "there is no such module"}, 503: {"description": "no stream can be opened"}},
    )
    def _ready(module: str | None = None) -> Response:
        """``?module=NAME`` asks of one module; without it, one module with a free slot is enough."""
        asked = [each for each in state.modules if module is None or each.name == module]
        if module is not None and not asked:
            return JSONResponse({"error": "there is no such module"}, 404)
        status = state.readiness(asked)
        ready = status == "ready"
        fields = {"status": status, "reason": REASONS[status], "modules": [_slots(each) for each in asked]}
        return JSONResponse(fields, 200 if ready else 503, {} if ready else {"Retry-After": "1"})

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
        "free_slots": module.slots_free,
        "waiting": module.engine.slots_waiting,
    }


def _slots(module: ServedModule) -> dict[str, Any]:
    keys = ("name", "status", "used_slots", "total_slots", "free_slots", "waiting")
    return {key: value for key, value in _capacity(module).items() if key in keys}
