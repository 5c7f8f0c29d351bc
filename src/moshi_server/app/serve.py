"""From a configuration to a running server: builds the engines, puts the application together, and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from fastapi import FastAPI

from ..auth import Authenticator
from ..config import Config, MimiConfig
from ..engine.build import BuiltModule, build_engines
from ..gpu.probe import MemoryReader, probe, visible
from ..metrics import Metrics, SystemReading
from .admission import Admission, CallerLimits
from .factory import create_app, hooks_for, limits_of
from .module import RoomsSpec, ServedModule
from .routes import ServerState
from .worker import Worker, listen

logger = logging.getLogger(__name__)

EXIT_FAILED = 70
"""The exit status of a worker that ended because a model has failed for good (sysexits' EX_SOFTWARE)."""


def run(
    config: Config,
    *,
    host: str,
    port: int,
    cpu: bool,
    drain_seconds: float | None = None,
    exit_on_failure: bool = False,
    env: Mapping[str, str] = os.environ,
    greet: Callable[[str], object] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Args:
        config: as `load_config` gives it.
        host: address or name to listen on.
        port: 0 for any free one.
        cpu: use no GPU.
        drain_seconds: how long running streams may go on once asked to end, instead of the configuration's.
        exit_on_failure: end once a model has failed for good, whatever the configuration says.
        env: where ``MOSHI_API_KEY`` and ``BETTER_AUTH_SECRET`` are read.
        greet: is given the `banner` once everything is ready.

    Raises:
        MoshiServerError: what kept it from starting.
    """
    listener = listen(host, port)
    try:
        state, app, built = assemble(config, cpu=cpu, env=env)
        worker = Worker(
            app,
            state,
            listener,
            grace_seconds=config.shutdown_grace_seconds if drain_seconds is None else drain_seconds,
            head_seconds=config.head_timeout_seconds,
            exit_on_failure=exit_on_failure or config.exit_on_failure,
        )
        if greet is not None:
            worker.on_ready = lambda address: greet(banner(address, built))
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(worker.run())
        return EXIT_FAILED if worker.failed else 0
    finally:
        listener.close()


def assemble(
    config: Config, *, cpu: bool, env: Mapping[str, str] = os.environ
) -> tuple[ServerState, FastAPI, Sequence[BuiltModule]]:
    """Load what a configuration names and put the application together; nothing is started yet.

    Args:
        config: as `load_config` gives it.
        cpu: use no GPU.
        env: as for `run`.

    Raises:
        MoshiServerError: what cannot be loaded, or does not fit.
    """
    metrics = Metrics(None if cpu else gpu_reader(env))
    built = build_engines(
        config,
        device="cpu" if cpu else None,
        hooks_for=lambda name, kind: hooks_for(metrics.module(kind, name)),
    )
    if not config.warmup.enabled:
        for _ in built:
            metrics.warmup_skipped.inc()
    state = ServerState(
        modules=[served(module, metrics) for module in built],
        auth=authenticator(config, env),
        metrics=metrics,
        instance=config.instance_name,
        admission=Admission(CallerLimits(config.max_sessions_per_key, config.max_starts_per_minute)),
        refuse_before_upgrade=config.refuse_before_upgrade,
    )
    # With neither, every request is refused: an operator who reads only warnings must see it.
    level = logging.INFO if state.auth.accepts_keys or state.auth.accepts_tokens else logging.WARNING
    for note in state.auth.notes():
        logger.log(level, note)
    return state, create_app(state, static_dir=config.static_dir), built


def banner(address: str, built: Sequence[BuiltModule]) -> str:
    """What is served where, a module a line.

    Args:
        address: of the page, as ``http://127.0.0.1:8080``.
        built: the modules.
    """
    rows = []
    for module in built:
        engine = module.engine
        paths = " ".join(module.config.routes())
        rows.append(
            (
                module.name,
                module.config.type,
                paths,
                f"{engine.slots_total} at once",
                f"on {module.device}",
                module.memory,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"moshi-server is ready. The page: {address}/", *(f"  {line}" for line in lines)]) + "\n"


def gpu_reader(env: Mapping[str, str] = os.environ) -> Callable[[], SystemReading | None]:
    """What the ``system_*`` gauges show: all GPUs together that CUDA shows, or nothing where there is none."""
    narrowed = "CUDA_VISIBLE_DEVICES" in env
    read = MemoryReader([gpu.index for gpu in visible(probe().gpus, env)] if narrowed else None)

    def reading() -> SystemReading | None:
        found = read()
        return None if found is None else SystemReading(*found)

    return reading


def authenticator(config: Config, env: Mapping[str, str]) -> Authenticator:
    """Keys of the configuration and of ``MOSHI_API_KEY`` (comma-separated), and Better Auth's secret."""
    keys = [*config.authorized_ids, *env.get("MOSHI_API_KEY", "").split(",")]
    return Authenticator(keys, env.get("BETTER_AUTH_SECRET"))


def served(built: BuiltModule, metrics: Metrics) -> ServedModule:
    """A built module as the application serves it."""
    names = {"lm_model_file": "lm", "audio_tokenizer_file": "audio_tokenizer", "script": "script"}
    return ServedModule(
        name=built.name,
        kind=built.config.type,
        path=built.config.routes()[0],
        engine=built.engine,
        metrics=metrics.module(built.config.type, built.name),
        files={names[key]: value for key, value in built.config.files() if key in names},
        auth=built.config.auth,
        limits=limits_of(built.config),
        rooms=rooms_of(built.config) if isinstance(built.config, MimiConfig) else None,
        voices=built.voices,
        step_seconds=built.config.step_timeout_seconds,
    )


def rooms_of(config: MimiConfig) -> RoomsSpec:
    """The rooms that a configuration names."""
    return RoomsSpec(tuple(config.rooms), config.default_room, config.recv_path, config.auth_recv)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop
