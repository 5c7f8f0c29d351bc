"""Each way to end has its code; a reason always fits its frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_server import errors
from moshi_server.app.closing import MAX_REASON_BYTES, CloseCode, closing_for, reason_text
from moshi_server.metrics import CLOSE_REASONS


@pytest.mark.parametrize(
    ("error", "code", "error_type"),
    [
        (errors.NoFreeSlotError(), 4000, "capacity"),
        (errors.AuthError("invalid_key", "x"), 4001, "authentication"),
        (errors.SessionLimitError("x"), 4002, "timeout"),
        (errors.InvalidMessageError("x"), 4003, "protocol"),
        (errors.RateLimitedError("x"), 4004, "rate_limit"),
        (errors.ResourceNotFoundError("x"), 4005, "not_found"),
        (errors.ClientTimeoutError("x"), 4006, "timeout"),
        (errors.GoingAwayError("x"), 1001, ""),
        (errors.EngineFailedError("x"), 1011, "internal"),
        (errors.SessionError("x"), 1011, "internal"),
        (ValueError("a bug"), 1011, "internal"),
    ],
)
def test_codes(error: Exception, code: int, error_type: str) -> None:
    closing = closing_for(error)
    assert (closing.code, closing.error_type) == (code, error_type)


def test_every_code_has_a_reason_label() -> None:
    assert {int(code) for code in CloseCode} <= set(CLOSE_REASONS)


@given(st.text(max_size=300))
def test_reasons_fit_and_stay_text(text: str) -> None:
    cut = reason_text(text)
    assert len(cut.encode("utf-8", "replace")) <= MAX_REASON_BYTES
    assert cut == text or (cut.endswith("...") and text.startswith(cut[:-3]))
