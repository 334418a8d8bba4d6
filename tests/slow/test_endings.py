"""Budgets and the stop rule where more than one process or more than one run takes part."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cprbench.meters.fake import FakeMeter
from cprbench.runs import metering
from cprbench.runs.runner import Options, run
from cprbench.sessions.score_cache import CACHED
from cprbench.spec import ArmSpec, StopSpec, SuiteSpec
from tests.conftest import SMALL


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
