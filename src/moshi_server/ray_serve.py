"""The same application as a Ray Serve deployment: replicas that Ray starts, watches and scales (extra ``[ray]``).

    serve run moshi_server.ray_serve:application config=demo min_replicas=2

Ray's proxy stands between the clients and the replicas, and every message goes through it: docs/scaling.md says what
that costs. It knows neither ports nor signals, which are Ray's.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from .app.foreign import Foreign
from .app.serve import assemble
from .cli.configs import locate
from .config import Config, load_config
from .errors import ConfigError, EngineFailedError

logger = logging.getLogger(__name__)

MARGIN_SECONDS = 15.0
"""How much longer than running streams' grace Ray waits for a replica to end."""

BURST = 64
"""How many streams may wait for a place in Ray's queue, those included that are just being given to a replica."""


class Settings(BaseModel):
    """What may be said of the deployment, as ``name=value`` after ``serve run``."""

    model_config = ConfigDict(extra="forbid")

    config: str = Field("demo", description="The TOML file, on every machine, or the name of a shipped one.")
    streams: int | None = Field(None, gt=0, description="That a replica takes at once; if not given, its batch_size.")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(10, ge=1)
    gpus: float = Field(0, ge=0, description="Of each replica; with 0 it runs on the CPU.")
    cpus: float = Field(1, ge=0, description="Of each replica, as Ray counts them.")
    used: float = Field(0.7, gt=0, le=1, description="Share of the streams above which Ray adds replicas.")


class Replica:
    """One worker: engines and application, without a port of its own."""

    def __init__(self, config: str, cpu: bool) -> None:
        self._config = load_config(locate(Path(config)))
        self._state, self._app, _ = assemble(self._config, cpu=cpu, env=os.environ)

    def __serve_build_asgi_app__(self) -> Foreign:
        """Ray asks for the application here, after the constructor."""
        self._app.router.lifespan_context = self._life
        return Foreign(self._app)

    async def check_health(self) -> None:
        """Ray asks from time to time, and replaces a replica that raises.

        Raises:
            EngineFailedError: a model loop has stopped for good.
        """
        if self._state.health() == "failed":
            raise EngineFailedError("a module has failed; see the replica's log")

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        for module in self._state.modules:
            module.engine.start()
        for module in self._state.modules:
            await module.engine.wait_ready()
            logger.info("module %s is ready", module.name)
        yield
        self._state.draining = True
        for module in self._state.modules:
            await module.engine.drain(0)
            module.engine.stop()


def application(args: Mapping[str, Any]) -> serve.Application:
    """What ``serve run`` asks for; ``args`` are those of `Settings`.

    Raises:
        ConfigError: an argument or the configuration is wrong.
    """
    try:
        settings = Settings.model_validate(dict(args))
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", hint="see docs/scaling.md") from error
    config = load_config(locate(Path(settings.config)))
    streams = settings.streams or streams_of(config)
    deployment = serve.deployment(
        name="moshi-server",
        # A stream is a request that goes on: what Ray counts is what is taken.
        max_ongoing_requests=streams,
        max_queued_requests=max(streams, BURST),
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1.0, streams * settings.used),
            "upscale_delay_s": 10,
            "downscale_delay_s": 600,
        },
        ray_actor_options={"num_gpus": settings.gpus, "num_cpus": settings.cpus},
        graceful_shutdown_timeout_s=config.shutdown_grace_seconds + MARGIN_SECONDS,
        health_check_period_s=10,
    )
    made: serve.Application = deployment(serve.ingress()(Replica)).bind(settings.config, settings.gpus == 0)
    return made


def streams_of(config: Config) -> int:
    """How many streams a replica can take at once.

    Raises:
        ConfigError: that is only known once the model is loaded.
    """
    sizes = [getattr(module, "batch_size", 1) for module in config.modules.values()]
    if not all(isinstance(size, int) for size in sizes):
        raise ConfigError('batch_size is "auto"', hint="say how many: streams=64")
    return sum(sizes)
