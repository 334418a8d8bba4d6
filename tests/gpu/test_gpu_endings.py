"""Budgets and the stop rule on a real GPU: joules and hours end a run. Skipped with a reason where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cprbench.spec import ArmSpec
from tests.runs.test_budgets import ran, rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


def test_a_run_ends_at_a_budget_of_board_energy_or_of_device_hours(tiny_llama: Path, tmp_path: Path) -> None:
    free = ran(tmp_path, tiny_llama, ArmSpec(method="full"), epochs=8)["full"]
    if free.gamma.energy_kwh is None:
        pytest.skip("this GPU reports no energy (a MIG slice, or a shared board)")
    for resource, spent in (("energy_kwh", free.gamma.energy_kwh), ("device_hours", free.gamma.device_hours)):
        assert spent is not None
        arm = ArmSpec(method="full", budget=f"{resource}={spent / 2:.12f}")  # type: ignore[arg-type]
        (record,) = ran(tmp_path, tiny_llama, arm, epochs=8).values()
        assert record.status == "ok", record.error
        assert 0 < (getattr(record.gamma, resource) or 0) <= spent / 2 * 1.05  # counters of boards move in steps
        assert len(rows(tmp_path, record)) < len(rows(tmp_path, free))


def test_a_stop_rule_in_energy_reads_the_board_and_bills_its_validations(tiny_llama: Path, tmp_path: Path) -> None:
    stop = {"eta": "0.9x", "window": 1, "patience": 1, "resource": "energy_kwh"}
    arm = ArmSpec(method="full", stop=stop)  # type: ignore[arg-type]
    (record,) = ran(tmp_path, tiny_llama, arm, epochs=8, validations=8, schedule="constant").values()
    assert record.status == "ok", record.error
    billed = sum(record.seconds[phase] or 0 for phase in ("select", "train", "validate"))
    assert record.seconds["billed"] == pytest.approx(billed, rel=0.01)
    assert record.notes["stop"]["step"] <= record.notes["stop"]["of_steps"]
