"""What holds for every test: no deadline in milliseconds, since machines that run tests are shared."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-faults", action="store_true", help="keep what tests/faults measures, for its table")
