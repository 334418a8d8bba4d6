"""What a follower has to meet: the attempt that ended its leader, not what crashed before it."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.runs.bills import last_bill
from cprbench.spec import Reading, RunRecord
from tests.records_factory import make_record


def crashed_once(**overrides: Any) -> RunRecord:
    """Return a run that billed 600 FLOPs in an attempt that died, and 1,200 in the one that ended it."""
    spent = [(1, "train", 600), (2, "select", 200), (2, "train", 1000), (2, "score", 70), (2, "validate", 30)]
    readings = [
        Reading(phase=phase, attempt=attempt, quantity="flops", value=value, source="counted")  # type: ignore[arg-type]
        for attempt, phase, value in spent
    ]
    seconds = {"billed": 1800.0, "billed_last_attempt": 1200.0}
    gamma = {"flops": 1800, "device_hours": 0.5}
    return make_record(attempts=2, readings=readings, seconds=seconds, gamma=gamma, **overrides)


def test_the_bill_of_a_run_that_crashed_before_is_that_of_its_last_attempt() -> None:
    assert last_bill(crashed_once(), "flops") == 1200
    assert last_bill(crashed_once(), "device_hours") == pytest.approx(0.5 * 1200 / 1800)


def test_a_leader_with_a_stop_rule_billed_its_validations_too() -> None:
    stopped = crashed_once(spec={"stop": {"eta": "0.1x"}})
    assert last_bill(stopped, "flops") == 1230


def test_the_bill_of_a_run_of_one_attempt_is_its_gamma_and_what_was_not_measured_is_none() -> None:
    assert last_bill(make_record(gamma={"flops": 2**53 + 1}), "flops") == 2**53 + 1
    assert last_bill(make_record(), "energy_kwh") is None
    assert last_bill(crashed_once(), "energy_kwh") is None
