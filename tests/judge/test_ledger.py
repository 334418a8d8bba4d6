"""The ledger: what arms spent by phase, and totals that leave no run out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cprbench.judge.cpr import compare
from cprbench.judge.evidence import gather
from cprbench.judge.ledger import ArmLedger, ledger, totals
from cprbench.spec import PHASES, Reading, RunRecord
from tests.records_factory import GPU, make_record, make_search

SECONDS = {"setup": 4.0, "select": 2.0, "train": 10.0, "validate": 1.0, "score": 3.0}


def counted(**by_phase: float | None) -> list[Reading]:
    """Return FLOP readings by phase; None: not counted."""
    return [
        Reading(
            phase=phase,  # type: ignore[arg-type]
            quantity="flops",
            value=value,
            source=None if value is None else "counted",
            why_missing="no shapes were written" if value is None else None,
        )
        for phase, value in by_phase.items()
    ]


def timed(arm: str = "full", block: int = 0, **others: object) -> RunRecord:
    billed = {"billed": 12.0, "billed_last_attempt": 12.0}
    flops = counted(setup=0, select=20, train=100, validate=10, score=30)
    return make_record(arm=arm, block=block, **({"seconds": SECONDS | billed, "readings": flops} | others))  # type: ignore[arg-type]


def of(*records: RunRecord) -> dict[str, ArmLedger]:
    (group,) = compare(records)
    return {arm.arm: arm for arm in ledger(group)}


def test_an_arm_is_the_mean_of_its_runs_phase_by_phase() -> None:
    slow = {**SECONDS, "train": 20.0, "billed": 22.0, "billed_last_attempt": 22.0}
    found = of(timed(), timed(block=1, seconds=slow))["full"]
    assert found.runs == 2 and found.attempts == 2
    assert {phase: figure.value for phase, figure in found.seconds.items()} == {**SECONDS, "train": 15.0}
    assert list(found.flops) == list(PHASES) and found.flops["train"].value == 100
    assert found.billed_seconds.value == found.billed_last_attempt.value == 17


def test_attempts_before_the_last_are_in_the_phases_and_apart_in_the_bill() -> None:
    spent = {**SECONDS, "billed": 12.0, "billed_last_attempt": 7.0}
    again = [r.model_copy(update={"attempt": 2}) for r in counted(train=50)]
    readings = counted(setup=0, select=20, train=100, validate=10, score=30) + again
    found = of(timed(attempts=2, seconds=spent, readings=readings))["full"]
    assert found.attempts == 2 and found.runs == 1
    assert found.flops["train"].value == 150
    assert (found.billed_seconds.value, found.billed_last_attempt.value) == (12, 7)


def test_a_phase_without_a_count_has_none_and_says_why() -> None:
    uncounted = timed(block=1, readings=counted(setup=0, select=20, train=None, validate=10, score=30))
    found = of(timed(), uncounted)["full"]
    assert found.flops["train"].value is None and found.flops["train"].why == "no shapes were written"
    assert found.flops["select"].value == 20


def test_a_phase_that_took_no_time_took_no_flops_and_one_that_took_some_must_be_counted() -> None:
    seconds = {**SECONDS, "select": 0.0, "billed": 10.0, "billed_last_attempt": 10.0}
    found = of(timed(seconds=seconds, readings=counted(train=100)))["full"]
    assert found.flops["select"].value == 0
    assert found.flops["score"].value is None and found.flops["score"].why == "not measured"


def test_failed_runs_are_no_part_of_a_mean_and_an_arm_of_failed_runs_has_reasons() -> None:
    found = of(timed(), timed("lora", status="failed"))
    assert found["full"].runs == 1
    assert found["lora"].runs == 0 and found["lora"].seconds["train"].why == "no run ended well"
    assert found["lora"].flops["train"].why == "no run ended well"


def test_the_search_stands_beside_its_arm() -> None:
    trial = timed(role="search", block=7)
    found = of(timed(search=make_search(trial), notes={"learning_rate_from": "searched"}), trial)["full"]
    assert found.trials == 1 and found.search_seconds.value == 12


def test_totals_hold_trials_and_failed_runs() -> None:
    runs = [timed(), timed(block=1, status="failed"), timed(block=2, role="search")]
    found = totals(runs)
    assert found["seconds"].value == 36 and found["seconds_of_all_phases"].value == 60
    assert found["flops"].value == 3000 and found["flops"].measured == found["flops"].runs == 3


def test_a_total_with_one_run_unmeasured_is_none_and_says_how_many_were() -> None:
    found = totals([make_record(gamma={"energy_kwh": 0.5}), make_record(block=1)])["energy_kwh"]
    assert found.value is None and (found.measured, found.runs) == (1, 2) and found.why == "not measured"


def test_energies_of_two_kinds_have_no_total() -> None:
    scopes = [{"energy_kwh": 0.5, "energy_scope": "gpu boards"}, {"energy_kwh": 0.5, "energy_scope": "rapl packages"}]
    found = totals([make_record(gamma=scopes[0], hardware_class=GPU), make_record(gamma=scopes[1])])["energy_kwh"]
    assert found.value is None and found.measured == 2 and "of 2 kinds" in str(found.why)


def test_no_runs_have_no_totals() -> None:
    assert {total.why for total in totals([]).values()} == {"no runs"}
    assert {total.value for total in totals([]).values()} == {None}


def test_the_phases_of_stored_runs_add_up_to_their_bills(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parents[1] / "records" / "quickstart.zip") as archive:
        archive.extractall(tmp_path)
    (group,) = compare(gather(tmp_path).records)
    for arm in ledger(group):
        phases = [arm.seconds[phase].value for phase in ("select", "train")]
        assert None not in phases and sum(v or 0 for v in phases) == pytest.approx(arm.billed_seconds.value)
        of_arm = next(a for a in group.arms if a.arm == arm.arm)
        flops = [arm.flops[phase].value for phase in ("select", "train")]
        assert sum(v or 0 for v in flops) == pytest.approx(of_arm.gamma["flops"].value)
