"""What tests of verdicts share."""

from __future__ import annotations

import pytest

from cprbench.judge.statistics import ItemError


@pytest.fixture
def items_without_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the error of the test's items as known and zero: for records without predictions, in tests of the rest."""
    known = ItemError(((0.0, 0.0), (0.0, 0.0)))
    monkeypatch.setattr("cprbench.judge.statistics.gain_covariance", lambda *given: known)
