"""Runs on a real GPU: three methods, their memory and energy. Skipped with a printed reason where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Arm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


@pytest.mark.parametrize(("method", "settings"), [("full", {}), ("lora", {}), ("partial", {"k": 0.15})])
def test_a_method_runs_on_the_gpu_with_its_memory_and_energy_measured(
    method: str, settings: dict[str, Any], minilm2: Path, run_arm: Arm
) -> None:
    record = run_arm(minilm2, method, settings=settings, precision="auto", epochs=2)
    assert record.status == "ok", record.error
    assert record.gamma.memory_basis in ("device", "reserved")
    assert record.environment.devices
    readings = {r.quantity: r.value for r in record.readings if r.phase == "train"}
    # Weights, gradients and two AdamW moments of what trains are the least that must have been allocated.
    least = 4 * (record.total_parameters or 0) + 8 * (record.trained_parameters or 0)
    assert (readings["peak_cuda_allocated_bytes"] or 0) > least
    assert (readings["peak_cuda_reserved_bytes"] or 0) >= (readings["peak_cuda_allocated_bytes"] or 0)
    assert record.gamma.device_hours == pytest.approx((record.seconds["billed"] or 0) / 3600, rel=0.01)


def test_full_tuning_allocates_more_than_lora_and_than_partial(minilm2: Path, run_arm: Arm) -> None:
    def peak(method: str, **settings: Any) -> float:
        record = run_arm(minilm2, method, settings=settings, precision="auto", epochs=2)
        found = [r.value for r in record.readings if r.quantity == "peak_cuda_allocated_bytes" and r.phase == "train"]
        return found[0] or 0.0

    full = peak("full")
    assert full > peak("lora")
    assert full > peak("partial", k=0.15)
