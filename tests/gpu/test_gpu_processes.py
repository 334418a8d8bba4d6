"""Two GPUs that train one model together. Skipped with a printed reason where there are fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cprbench.runs.runner import Options, run
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec
from tests.conftest import SMALL

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} CUDA devices, two are needed"
)


def test_two_gpus_reach_the_psi_that_one_reaches_and_are_both_metered(tmp_path: Path, tiny_llama: Path) -> None:
    suite = SuiteSpec(
        tasks=["movie-snippets"],
        models=[str(tiny_llama)],
        blocks=1,
        arm=[ArmSpec(method="full"), ArmSpec(method="lora")],
    )
    settings: dict[str, Any] = {**SMALL, "epochs": 2}
    found: list[list[RunRecord]] = []
    for processes in (1, 2):
        done = run(suite, options=Options(out=tmp_path / str(processes), processes=processes), settings=settings)
        assert not done.failed, [record.error for record in done.failed]
        found.append(sorted(done.records, key=lambda record: record.arm))
    for one, two in zip(*found, strict=True):
        assert one.psi.final is not None and two.psi.final is not None
        assert two.psi.final["nll"] == pytest.approx(one.psi.final["nll"], abs=1e-3)
        assert len(two.environment.devices) == 2
        assert two.environment.hardware_class.startswith("2x ")
        assert two.gamma.device_hours == pytest.approx(2 * (two.seconds["billed"] or 0) / 3600, rel=0.01)
        assert two.gamma.memory_basis == "device"
