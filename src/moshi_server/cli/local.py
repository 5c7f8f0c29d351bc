"""A model in this process, for commands that need no server: the same configuration and engine that a worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import Config, Module
    from ..engine.session import Session
    from ..engine.worker import Engine

ASR_TYPES = ("Asr", "BatchedAsr")


@asynccontextmanager
async def streams_of(
    config: str,
    *,
    cpu: bool,
    notice: Callable[[str], AbstractContextManager[object]],
    types: Sequence[str] = ASR_TYPES,
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Session]]]:
    """Load the first module of these types of a configuration; while entered, each call opens a stream of it.

    Args:
        config: a TOML file, or the name of a shipped configuration.
        cpu: use no GPU.
        notice: shows a text while something takes its time.
        types: of the module that is meant.

    Raises:
        MoshiServerError: what kept the model from loading.
    """
    with notice("Loading the model"):
        engine = await asyncio.to_thread(_engine, config, cpu, types)
        engine.start()
        try:
            await engine.wait_ready()
        except BaseException:
            await asyncio.to_thread(engine.stop)
            raise
    try:
        yield lambda: _stream(engine)
    finally:
        await asyncio.to_thread(engine.stop)


@asynccontextmanager
async def _stream(engine: Engine) -> AsyncIterator[Session]:
    session = await engine.open()
    try:
        yield session
    finally:
        session.close()


def _engine(config: str, cpu: bool, types: Sequence[str]) -> Engine:
    from ..config import load_config
    from ..engine.build import build_engines
    from ..engine.hooks import EngineHooks
    from .configs import locate

    loaded = load_config(locate(Path(config)))
    name, module = _first(config, loaded, types)
    # One stream after another needs one slot, and may last as long as it does.
    slots = {"batch_size": 1} if hasattr(module, "batch_size") else {}
    single = module.model_copy(update={**slots, "max_session_seconds": None})
    alone = loaded.model_copy(update={"modules": {name: single}})
    (built,) = build_engines(alone, device="cpu" if cpu else None, hooks_for=lambda *_: EngineHooks())
    return built.engine


def _first(file: str, config: Config, types: Sequence[str]) -> tuple[str, Module]:
    for name, module in config.modules.items():
        if module.type in types:
            return name, module
    kind = "speech-to-text" if "BatchedAsr" in types else "text-to-speech"
    raise ConfigError(f"it has no {kind} module", file=file, hint=f"a module of type {' or '.join(types)} is needed")
