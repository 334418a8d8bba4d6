"""Runs that end by the stop rule, for real: the rule sees every validation, and the run pays for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cprbench.adapt.stopping import StopRule
from cprbench.runs.store import load_run
from cprbench.spec import ArmSpec, RunRecord, StopSpec
from tests.runs.test_budgets import Records, ran, rows

#: No gain is as large as this, so the rule fires as soon as it can: at the second of four validations.
AT_ONCE = StopSpec(eta="1e9", window=1, patience=1)
NEVER = StopSpec(eta="0", window=1, patience=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "runs"


@pytest.fixture(scope="module")
def records(folder: Path, tiny_llama: Path) -> Records:
    arms = [ArmSpec(method="full"), ArmSpec(method="full", stop=AT_ONCE), ArmSpec(method="full", stop=NEVER)]
    found = ran(folder, tiny_llama, *arms, validations=4, schedule="constant")
    assert all(record.status == "ok" for record in found.values()), [r.error for r in found.values()]
    return found


@pytest.fixture(scope="module")
def stopped(records: Records) -> RunRecord:
    return records["full stop=1e9 window=1 patience=1"]


def phase(record: RunRecord, quantity: str, name: str) -> float:
    return next(r.value or 0 for r in record.readings if (r.phase, r.quantity) == (name, quantity))


def test_a_run_ends_at_the_validation_at_which_its_rule_says_so(stopped: RunRecord, folder: Path) -> None:
    told = stopped.notes["stop"]
    assert (told["step"], told["of_steps"], told["stopped_at"], stopped.notes["steps"]) == (4, 8, 2, 4)
    assert "stayed below eta = 1e9" in told["why"]
    assert [row["step"] for row in rows(folder, stopped)] == [1, 2, 3, 4]
    assert stopped.notes["examples_trained_on"] == 32
    assert stopped.psi.final is not None and stopped.psi.validation == rows(folder, stopped)[-1]["validation"]


def test_a_run_that_may_stop_bills_its_validations_and_another_does_not(records: Records, folder: Path) -> None:
    for name, record in records.items():
        billed = ("train", "validate") if "stop" in name else ("train",)
        assert phase(record, "flops", "validate") > 0
        assert record.gamma.flops == sum(phase(record, "flops", p) for p in billed) == rows(folder, record)[-1]["flops"]
        seconds = sum(record.seconds[p] or 0 for p in billed)
        assert record.seconds["billed"] == pytest.approx(seconds)
        assert record.gamma.device_hours == pytest.approx(seconds / 3600)
        assert phase(record, "rss_byte_seconds", "billed") == pytest.approx(
            sum(phase(record, "rss_byte_seconds", p) for p in billed)
        )
        last = rows(folder, record)[-1]["gamma"]
        assert last["flops"] == record.gamma.flops and last["device_hours"] == pytest.approx(seconds / 3600, rel=0.05)
        assert last["rss_gb_hours"] == pytest.approx(record.gamma.memory_gb_hours, rel=0.1)


def test_a_rule_that_never_fired_says_so_and_changes_nothing_of_the_training(records: Records, folder: Path) -> None:
    never, full = records["full stop=0 window=1 patience=3"], records["full"]
    told = never.notes["stop"]
    assert (told["step"], told["of_steps"], told["stopped_at"], told["checks"]) == (8, 8, None, 4)
    assert told["why"].startswith("never fired")
    losses = [[row["loss"] for row in rows(folder, record)] for record in (never, full)]
    assert losses[0] == losses[1] and "stop" not in full.notes
    assert never.psi == full.psi and never.spec.training == full.spec.training and never.run_id != full.run_id


def test_a_replay_of_the_history_stops_where_the_run_did(stopped: RunRecord, folder: Path) -> None:
    rule = StopRule(**AT_ONCE.model_dump())
    checks = [row for row in load_run(folder / stopped.run_id).lines("history.jsonl") if "validation" in row]
    said = [rule.add(row["validation"][stopped.psi.primary], row["flops"]) for row in checks]
    assert said == [False, True] and rule.told()["ratio"] == stopped.notes["stop"]["ratio"]
