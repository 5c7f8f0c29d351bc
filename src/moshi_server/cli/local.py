"""A model in this process, for commands that need no server: the same configuration and engine that a worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import AsrConfig, BatchedAsrConfig, Config
    from ..engine.session import Session
    from ..engine.worker import Engine


@asynccontextmanager
async def streams_of(
    config: str, *, cpu: bool, notice: Callable[[str], AbstractContextManager[object]]
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Session]]]:
    """Load the first speech-to-text module of a configuration; while entered, each call opens a stream of it.

    Args:
        config: a TOML file, or the name of a shipped configuration.
        cpu: use no GPU.
        notice: shows a text while something takes its time.

    Raises:
        MoshiServerError: what kept the model from loading.
    """
    with notice("Loading the model"):
        engine = await asyncio.to_thread(_engine, config, cpu)
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


def _engine(config: str, cpu: bool) -> Engine:
    from ..config import load_config
    from ..engine.build import build_engines
    from ..engine.hooks import EngineHooks
    from .configs import locate

    loaded = load_config(locate(Path(config)))
    name, module = _speech_to_text(config, loaded)
    # One recording after another needs one slot, and may last as long as it does.
    single = module.model_copy(update={"batch_size": 1, "max_session_seconds": None})
    alone = loaded.model_copy(update={"modules": {name: single}})
    (built,) = build_engines(alone, device="cpu" if cpu else None, hooks_for=lambda *_: EngineHooks())
    return built.engine


def _speech_to_text(file: str, config: Config) -> tuple[str, AsrConfig | BatchedAsrConfig]:
    from ..config import AsrConfig, BatchedAsrConfig

    for name, module in config.modules.items():
        if isinstance(module, AsrConfig | BatchedAsrConfig):
            return name, module
    raise ConfigError(
        "it has no speech-to-text module", file=file, hint="a module of type Asr or BatchedAsr is needed, as in demo"
    )
