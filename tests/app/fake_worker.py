"""`python -m tests.app.fake_worker CONFIG PORT`: the real `run`, with a runner that holds no model.

``FAKE_STEP=fails`` or ``hangs`` says what becomes of its steps in the first module.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from moshi_server.app import serve
from moshi_server.config import Config, load_config
from moshi_server.engine.asr import AsrStream
from moshi_server.engine.build import BuiltModule
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.worker import Engine
from moshi_server.errors import MoshiServerError

from ..fakes import FakeRunner, spell


def build_engines(
    config: Config, *, device: str | None, hooks_for: Callable[[str, str], EngineHooks]
) -> list[BuiltModule]:
    """Engines as configured, but for the model."""
    runners = {name: FakeRunner(module.batch_size) for name, module in config.modules.items()}
    broken = {"fails": _fail, "hangs": lambda: time.sleep(1000)}.get(os.environ.get("FAKE_STEP", ""))
    if broken is not None:
        next(iter(runners.values())).before_step = broken
    return [
        BuiltModule(
            name,
            module,
            Engine(
                name,
                module.type,
                runners[name],
                lambda: AsrStream(3, spell),
                hooks=hooks_for(name, module.type),
                warmup=config.warmup.enabled,
            ),
        )
        for name, module in config.modules.items()
    ]


def _fail() -> None:
    raise RuntimeError("the device is broken")


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s")
    serve.build_engines = build_engines
    try:
        sys.exit(serve.run(load_config(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), cpu=True))
    except MoshiServerError as error:
        sys.exit(f"error: {error} ({error.hint})")
