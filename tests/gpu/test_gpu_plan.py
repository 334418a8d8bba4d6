"""Plans against the allocator of a real GPU. Skipped with a printed reason where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cprbench.adapt.configs import config_of
from cprbench.plans.forecast import Machine, plan_model, questions_of
from cprbench.runs.arms import arms_of
from cprbench.spec import ArmSpec
from cprbench.tasks import load_task, training_for
from tests.conftest import SMALL, Arm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "settings"), [("full", {}), ("lora", {}), ("last-layers", {"k": 0.3})])
def test_a_plan_comes_within_15_percent_of_what_the_allocator_held(
    method: str, settings: dict[str, Any], precision: str, minilm2: Path, run_arm: Arm
) -> None:
    own = {"precision": precision, "epochs": 2, "batch_size": 64, "cache_prefix": "off"}
    record = run_arm(minilm2, method, settings=settings, **own)
    assert record.status == "ok", record.error
    peaks = [r.value for r in record.readings if r.quantity == "peak_cuda_allocated_bytes" and r.value is not None]
    task = load_task("movie-snippets")
    recipe = training_for(task, {**SMALL, **own}, "test")
    found = questions_of(task, data=None, offline=False)
    arms = arms_of([ArmSpec(method=method, settings=settings)])
    model = config_of(str(minilm2), offline=True)
    (row,) = plan_model(model, arms, task, recipe, found, Machine(on_gpu=True))["rows"]
    assert row["peak_bytes"] == pytest.approx(max(peaks), rel=0.15)
    assert row["trained_parameters"] == record.trained_parameters
