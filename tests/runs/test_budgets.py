"""Runs that end at a budget, for real: as many steps as it pays for, none more, and a schedule that ends there."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from cprbench.errors import MeterError
from cprbench.meters.fake import FakeMeter
from cprbench.runs import metering
from cprbench.runs.runner import Options, run
from cprbench.runs.store import load_run
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec
from tests.conftest import SMALL

Records = dict[str, RunRecord]


def ran(folder: Path, model: Path, *arms: ArmSpec, **settings: Any) -> Records:
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(model)], blocks=1, arm=list(arms))
    done = run(suite, options=Options(out=folder), settings={**SMALL, **settings})
    assert not done.skipped
    return {record.arm: record for record in done.records}


def rows(folder: Path, record: RunRecord) -> list[dict[str, Any]]:
    return load_run(folder / record.run_id).lines("history.jsonl")


def losses(folder: Path, record: RunRecord) -> list[float]:
    return [row["loss"] for row in rows(folder, record)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budgets") / "runs"


@pytest.fixture(scope="module")
def records(folder: Path, tiny_llama: Path) -> Records:
    """Full tuning for one epoch of 8 steps, and what the same or another bill buys."""
    return ran(
        folder,
        tiny_llama,
        ArmSpec(method="full"),
        ArmSpec(method="full", budget=["0.5x full", "2.5x full"]),  # type: ignore[arg-type]
        ArmSpec(method="partial", settings={"k": 0.3}, budget="1x full"),  # type: ignore[arg-type]
    )


def test_a_budget_is_not_overshot_and_its_last_step_is_the_last_that_fits(records: Records, folder: Path) -> None:
    whole = records["full"].gamma.flops or 0
    dear = rows(folder, records["full budget=2.5x full"])  # takes the same batches, only further
    for name, record in records.items():
        assert record.status == "ok", record.error
        if record.spec.budget is None:
            continue
        amount = record.spec.budget.amount
        assert amount == pytest.approx((record.spec.budget.share or 0) * whole)
        assert record.gamma.flops == record.notes["budget"]["spent"] <= amount, name
        assert record.notes["steps"] == len(rows(folder, record))
    half = records["full budget=0.5x full"]
    after = dear[half.notes["steps"]]["flops"] - dear[half.notes["steps"] - 1]["flops"]
    assert (half.gamma.flops or 0) + after > 0.5 * whole


def test_a_budget_that_allows_them_pays_for_more_epochs(records: Records) -> None:
    full, more = records["full"], records["full budget=2.5x full"]
    assert more.notes["steps"] > 2 * full.notes["steps"]
    assert more.notes["examples_trained_on"] == full.notes["examples_trained_on"] == 64
    assert more.spec.training == full.spec.training and more.run_id != full.run_id


def test_choosing_is_paid_from_the_budget(records: Records) -> None:
    chosen = records["partial k=0.3 budget=1x full"]
    select = sum(r.value or 0 for r in chosen.readings if (r.phase, r.quantity) == ("select", "flops"))
    assert 0 < select < (chosen.gamma.flops or 0) <= (records["full"].gamma.flops or 0)


def test_the_schedule_ends_at_the_budget_and_the_same_budget_gives_the_same_losses(
    records: Records, folder: Path, tiny_llama: Path
) -> None:
    # Planned for 3 epochs, paid for 1: were its rate planned for 3, these would not be the losses of 1 epoch.
    budget = {"resource": "flops", "amount": records["full"].gamma.flops}
    (cut,) = ran(folder, tiny_llama, ArmSpec(method="full", budget=[budget]), epochs=3).values()  # type: ignore[arg-type]
    assert losses(folder, cut) == losses(folder, records["full"])
    assert (cut.batches_sha256, cut.psi) == (records["full"].batches_sha256, records["full"].psi)


def test_a_budget_too_small_for_a_step_names_the_least_one_that_is_not(tmp_path: Path, tiny_llama: Path) -> None:
    def with_budget(amount: float) -> RunRecord:
        arm = ArmSpec(method="partial", settings={"k": 0.3}, budget=f"flops={amount}")  # type: ignore[arg-type]
        return next(iter(ran(tmp_path, tiny_llama, arm).values()))

    poor = with_budget(1e6)
    assert poor.status == "failed" and (poor.seconds["select"] or 0) > 0
    least = int(re.findall(r"choosing and one step take (\d+)", poor.error or "")[0])
    enough = with_budget(least)
    assert (enough.status, enough.notes["steps"], enough.gamma.flops) == ("ok", 1, least)


def test_a_budget_of_energy_is_refused_where_nothing_counts_joules(tmp_path: Path, tiny_llama: Path) -> None:
    for ending in ({"budget": "energy=0.002"}, {"stop": {"resource": "energy_kwh"}}):
        arm = ArmSpec(method="full", **ending)  # type: ignore[arg-type]
        with pytest.raises(MeterError, match=r"energy_kwh is not measured here: .+\. End it by flops"):
            ran(tmp_path, tiny_llama, arm, validations=9)
    assert not list(tmp_path.glob("*/record.json"))


def test_a_budget_of_energy_ends_a_run_by_the_counter_of_its_parent(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watts, began = 50.0, time.monotonic()

    def steady(seconds: float) -> dict[str, float]:
        return {"rapl_package_energy_joules": watts * (time.monotonic() - began)}

    monkeypatch.setattr(metering, "RaplMeter", lambda: FakeMeter(steady))
    kwh = watts * 7.5 / 3.6e6
    arm = ArmSpec(method="full", budget=f"energy={kwh}")  # type: ignore[arg-type]
    (record,) = ran(tmp_path, tiny_llama, arm).values()
    assert record.status == "ok", record.error
    assert 0.5 * kwh < record.notes["budget"]["spent"] <= 1.1 * kwh
    assert record.gamma.energy_kwh == pytest.approx(record.notes["budget"]["spent"], rel=0.1)
    assert record.notes["budget"]["spent"] == pytest.approx(watts / 1000 * (record.gamma.device_hours or 0), rel=0.1)
