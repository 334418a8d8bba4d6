"""Budgets and the stop rule in runs that take their time, or of several processes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from cprbench.cli.run import _DECAY
from cprbench.meters.fake import FakeMeter
from cprbench.runs import metering, runner
from cprbench.runs.runner import Options, run
from cprbench.sessions.score_cache import CACHED
from cprbench.spec import ArmSpec, StopSpec, SuiteSpec
from tests.cli.test_cli import cprbench
from tests.conftest import SMALL
from tests.runs.test_budgets import ran, rows
from tests.runs.test_stopped_runs import AT_ONCE


def test_two_processes_end_together(tmp_path: Path, tiny_llama: Path) -> None:
    arms = [
        ArmSpec(method="full", budget="device_hours=0.002"),  # type: ignore[arg-type]
        ArmSpec(method="full"),
        ArmSpec(method="full", budget="0.5x full"),  # type: ignore[arg-type]
        ArmSpec(method="full", stop=StopSpec(eta="1e9", window=1, patience=1)),
    ]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=arms)
    done = run(suite, options=Options(out=tmp_path, processes=2), settings={**SMALL, "validations": 4})
    found = {record.arm: record for record in done.records}
    assert all(record.status == "ok" for record in found.values()), [record.error for record in found.values()]
    timed, half = found["full budget=device_hours=0.002"], found["full budget=0.5x full"]
    assert 0.5 * 0.002 < (timed.gamma.device_hours or 0) <= 1.2 * 0.002 and timed.notes["steps"] > 0
    assert (half.gamma.flops or 0) <= half.notes["budget"]["spent"] <= 0.5 * (found["full"].gamma.flops or 0)
    stopped = found["full stop=1e9 window=1 patience=1"]
    assert (stopped.notes["stop"]["step"], stopped.notes["stop"]["of_steps"]) == (4, 8)


def test_a_budget_of_energy_pays_for_scores_that_another_run_has_measured_by_measuring_them_again(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    meter = lambda: FakeMeter(lambda _: {"rapl_package_energy_joules": 50.0 * (time.monotonic() - began)})  # noqa: E731
    monkeypatch.setattr(metering, "RaplMeter", meter)
    chosen = {"selection": "influence", "selection_settings": {"q": 0.5}}
    arms = [ArmSpec(method="full", **chosen), ArmSpec(method="full", budget=f"energy={400 / 3.6e6}", **chosen)]  # type: ignore[arg-type]
    found = []
    for arm in arms:  # one after the other: within a block their order is that of a hash
        suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=[arm])
        found += run(suite, options=Options(out=tmp_path), settings=SMALL).records
    assert [record.status for record in found] == ["ok", "ok"], [record.error for record in found]
    budgeted = found[1]
    assert not any(CACHED in reading.flags for reading in budgeted.readings)
    assert budgeted.notes["budget"]["spent"] == pytest.approx(budgeted.gamma.energy_kwh, rel=0.1)


def test_a_rule_under_a_decaying_schedule_is_warned_of(tmp_path: Path, tiny_llama: Path) -> None:
    small = {"max_examples": 16, "eval_items": 8, "epochs": 1, "batch_size": 8, "validation_items": 8, "validations": 2}
    rule = {"stop.eta": "1e9", "stop.window": 1, "stop.patience": 1}
    sets = [f"--set={key}={value}" for key, value in {**{f"training.{k}": v for k, v in small.items()}, **rule}.items()]
    words = ["run", "movie-snippets", "--model", str(tiny_llama), "--method", "full", "--blocks", "1", *sets]
    decaying = cprbench(*words, "--out", str(tmp_path / "linear"))
    assert decaying.returncode == 0 and _DECAY in decaying.stderr
    steady = cprbench(*words, "--set=training.schedule=constant", "--out", str(tmp_path / "constant"))
    assert steady.returncode == 0 and "warning" not in steady.stderr


def test_a_rule_in_device_hours_is_fed_what_the_run_has_billed_so_far(tmp_path: Path, tiny_llama: Path) -> None:
    arm = ArmSpec(method="full", stop=AT_ONCE.model_copy(update={"resource": "device_hours"}))
    (record,) = ran(tmp_path, tiny_llama, arm, validations=4, schedule="constant").values()
    checks = [row for row in rows(tmp_path, record) if "validation" in row]
    rise = (checks[1]["validation"]["accuracy"] - checks[0]["validation"]["accuracy"]) * 3600
    ratio = record.notes["stop"]["ratio"]
    assert ratio == pytest.approx(rise / (checks[1]["seconds"] - checks[0]["seconds"]))


def test_a_budget_of_time_ends_a_run_while_another_step_would_not_fit(tmp_path: Path, tiny_llama: Path) -> None:
    hours = 4 / 3600
    arm = ArmSpec(method="full", budget=f"device_hours={hours}")  # type: ignore[arg-type]
    (record,) = ran(tmp_path, tiny_llama, arm, validations=3).values()
    assert record.status == "ok", record.error
    assert 0.5 * hours < record.notes["budget"]["spent"] <= 1.1 * hours
    assert record.gamma.device_hours == pytest.approx(record.notes["budget"]["spent"], rel=0.05)
    assert record.notes["steps"] > 8  # more than an epoch
    told = rows(tmp_path, record)
    assert [row["step"] for row in told] == list(range(1, record.notes["steps"] + 1))
    checked = [row["step"] for row in told if "validation" in row]
    assert checked[-1] == record.notes["steps"] and 3 <= len(checked) <= 4
    again = ran(tmp_path, tiny_llama, arm, validations=3)
    assert [r.run_id for r in again.values()] == [record.run_id]


def test_planning_to_a_budget_is_billed_to_nobody(tmp_path: Path, tiny_llama: Path, monkeypatch: Any) -> None:
    slow = "import time; from cprbench.sessions.ending import Ending; affordable = Ending.affordable\n"
    slow += "def later(*given):\n    time.sleep(3)\n    return affordable(*given)\nEnding.affordable = later\n"
    (tmp_path / "sitecustomize.py").write_text(slow)  # of the child: planning takes three seconds there
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arm = ArmSpec(method="partial", settings={"k": 0.3}, budget="flops=2e9")  # type: ignore[arg-type]
    (record,) = ran(tmp_path / "runs", tiny_llama, arm, select_batches=1).values()
    assert record.status == "ok", record.error
    assert (record.seconds["select"] or 0) < 3


def test_a_budget_for_a_thousand_epochs_is_refused_before_it_trains(tmp_path: Path, tiny_llama: Path) -> None:
    arm = ArmSpec(method="full", budget="flops=1e18")  # type: ignore[arg-type]
    (record,) = ran(tmp_path, tiny_llama, arm).values()
    assert record.status == "failed"
    assert re.search(r"1e\+18 FLOPs pay for more than 1000 epochs \(\d+ steps\)\. Lower the budget", str(record.error))


def test_a_follower_meets_what_the_last_attempt_of_its_leader_billed(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a leader that crashed once, gamma is more than its last attempt's bill: here it is half of that.
    monkeypatch.setattr(runner, "last_bill", lambda record, resource: (record.gamma.flops or 0) // 2)
    found = ran(tmp_path, tiny_llama, ArmSpec(method="full"), ArmSpec(method="full", budget="1x full"))  # type: ignore[arg-type]
    half = (found["full"].gamma.flops or 0) // 2
    follower = found["full budget=1x full"]
    assert follower.spec.budget is not None and follower.spec.budget.amount == half
    assert 0 < (follower.gamma.flops or 0) <= half


def test_under_a_stop_rule_nothing_is_validated_or_billed_for_it_while_choosing(minilm2: Path, tmp_path: Path) -> None:
    arms = [ArmSpec(method="partial", settings={"k": 0.3}, stop=stop) for stop in (None, StopSpec(eta="0", window=1))]
    more = {"validations": 8, "schedule": "constant", "select_warmup_steps": 3, "select_batches": 1}
    free, ruled = ran(tmp_path, minilm2, *arms, **more).values()
    if free.spec.stop is not None:
        free, ruled = ruled, free
    validated = {r.arm: {row["phase"] for row in rows(tmp_path, r) if "validation" in row} for r in (free, ruled)}
    assert validated == {free.arm: {"select", "train"}, ruled.arm: {"train"}}
    assert ruled.notes["stop"]["checks"] == 5  # of eight steps, three warm the head
