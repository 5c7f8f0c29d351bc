"""``moshi-server`` with a runner that has no model, whose every step fails once the process has had SIGUSR1."""

from __future__ import annotations

import signal

from moshi_server.cli import main

from ..cli import fake_worker
from ..fakes import FakeRunner


class Doomed(FakeRunner):
    def __init__(self, slots: int) -> None:
        super().__init__(slots)

        def doom(*_: object) -> None:
            def fail() -> None:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

            self.before_step = fail

        signal.signal(signal.SIGUSR1, doom)


if __name__ == "__main__":
    fake_worker.FakeRunner = Doomed
    fake_worker.serve.build_engines = fake_worker.build_engines
    main()
