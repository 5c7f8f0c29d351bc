"""How long an outage lasts: measured from the fault to what is normal again, and kept if that is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from .table import MEASURED, Fault


@dataclass
class Outage:
    """Told when the fault is injected and when all is normal again."""

    fault: Fault
    seconds: float = -1.0
    _begun: float = field(default_factory=time.monotonic)

    def begins(self) -> None:
        self._begun = time.monotonic()

    def ends(self) -> None:
        self.lasted(time.monotonic() - self._begun)

    def lasted(self, seconds: float) -> None:
        self.seconds = seconds
        assert self.seconds < self.fault.within


@pytest.fixture
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    one = Outage(request.function.fault)
    yield one
    if request.config.getoption("--record-faults") and one.seconds >= 0:
        kept = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
        kept[one.fault.name] = round(one.seconds, 3)
        MEASURED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
