"""``moshi-server`` with a runner that has no model: everything else, from the command line to the socket, is real."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from moshi_server.app import serve
from moshi_server.cli import main
from moshi_server.config import BatchedAsrConfig, Config
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.build import BuiltModule
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from tests.fakes import FakeRunner, spell


def failing(reason: str) -> Callable[[], None]:
    def fail() -> None:
        raise RuntimeError(reason)

    return fail


def build_engines(
    config: Config, *, device: str | None, hooks_for: Callable[[str, str], EngineHooks]
) -> list[BuiltModule]:
    assert device == "cpu"
    if "FAKE_BUG" in os.environ:
        raise ZeroDivisionError("a bug")
    built = []
    for name, module in config.modules.items():
        assert isinstance(module, BatchedAsrConfig)
        assert isinstance(module.batch_size, int)
        runner = FakeRunner(module.batch_size)
        if reason := os.environ.get("FAKE_WARMUP_FAILURE"):
            runner.warmup = failing(reason)  # type: ignore[method-assign]
        if os.environ.get("FAKE_STEP") == "hangs":
            runner.before_step = lambda: time.sleep(1000)
        engine = Engine(
            name,
            module.type,
            runner,
            lambda: AsrStream(3, spell),
            hooks=hooks_for(name, module.type),
            warmup=config.warmup.enabled,
        )
        built.append(BuiltModule(name, module, engine))
    return built


if __name__ == "__main__":
    serve.build_engines = build_engines
    main()
