"""The soak's own arithmetic: a leak and a missing stream must be seen, and its server must have every module type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moshi_server.config import load_config
from moshi_server.metrics import Metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from soak import audit, growth
from soaking.server import Sample, write_config
from soaking.visitor import Ledger


def counted() -> tuple[Ledger, Metrics]:
    """A ledger and metrics that agree: in each module two streams, one of them by a socket that was closed."""
    ledger, metrics = Ledger(), Metrics()
    kinds = {"asr": "BatchedAsr", "single": "Asr", "loud": "PyBatchedAsr", "tts": "Py", "tones": "Py"}
    for name, kind in (kinds | {"speak": "Tts", "lm": "Lm", "rooms": "Mimi", "spectrum": "PyPost"}).items():
        account, module = ledger.of(name), metrics.module(kind, name)
        account.sockets, account.posts, account.opened = 1, 1, 2
        for _ in range(2):
            module.connected()
            module.opened()
            module.closed(10)
        metrics.closed(1000)
    ledger.of("spectrum").posts = 2
    return ledger, metrics


def read(metrics: Metrics) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def test_accounts_that_agree() -> None:
    ledger, metrics = counted()
    assert audit(ledger, read(metrics)) == []


@pytest.mark.parametrize("name", ["asr", "speak", "rooms", "spectrum"])
def test_a_stream_that_was_never_closed_is_missed(name: str) -> None:
    ledger, metrics = counted()
    metrics.module({"asr": "BatchedAsr", "speak": "Tts", "rooms": "Mimi", "spectrum": "PyPost"}[name], name).opened()
    wrong = audit(ledger, read(metrics))
    assert any(line.startswith(f"{name}, streams opened") for line in wrong)
    assert any(line.startswith(f"{name}, streams closed") for line in wrong)
    assert ("asr_open_channels" in str(wrong)) == (name == "asr")


def test_what_a_client_cannot_know_is_no_fault() -> None:
    ledger, metrics = counted()
    ledger.of("tones").unsure = ledger.of("tones").unsure_posts = 1
    assert audit(ledger, read(metrics)) == []
    module = metrics.module("Py", "tones")
    module.connected()
    module.opened()
    module.closed(3)
    assert audit(ledger, read(metrics)) == []
    ledger.of("tones").unsure = 0
    assert audit(ledger, read(metrics)) == ["tones, streams opened: the server counts 3, the clients 2 to 2"]


def test_sockets_that_are_not_closed_or_lost_are_missed() -> None:
    ledger, metrics = counted()
    ledger.of("lm").sockets += 1
    ledger.lost = ledger.wrong_keys = 1
    assert [line.split(":")[0] for line in audit(ledger, read(metrics))] == [
        "lm_connect", "ws_close_total", "ws_close_total, lost", "auth_error_total",
    ]  # fmt: skip


@pytest.mark.parametrize(("leak", "slope", "share"), [(0, 0, 0), (2**20, 3600, 300 / 400)])
def test_growth_is_that_of_the_second_half(leak: int, slope: float, share: float) -> None:
    samples = [Sample(second, (100 + min(second, 300)) * 2**20, 10, 5) for second in range(300)]  # the first half grows
    samples += [Sample(300 + second, 400 * 2**20 + leak * second, 10, 5) for second in range(301)]
    assert growth(samples) == (pytest.approx(slope, abs=1), pytest.approx(share, abs=0.01))


def test_the_server_has_every_module_type_but_the_one_without_weights(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    kinds = {module.type for module in config.modules.values()}
    assert kinds == {"Asr", "BatchedAsr", "PyBatchedAsr", "Tts", "Py", "PyPost", "Lm", "Mimi"}
    assert {module.send_timeout_seconds for module in config.modules.values()} == {4.0}
