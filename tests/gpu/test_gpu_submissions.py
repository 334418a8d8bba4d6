"""Submissions of runs on a real GPU: the device's own meters are recomputed. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cprbench.spec import ArmSpec
from cprbench.submissions.packing import pack
from cprbench.submissions.validation import validate
from tests.runs.test_budgets import ran
from tests.submissions.altering import edit_record, told

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


def test_gpu_runs_are_consistent_and_an_edit_of_their_energy_or_memory_is_found_out(
    tiny_llama: Path, tmp_path: Path
) -> None:
    ran(tmp_path / "runs", tiny_llama, ArmSpec(method="full"), ArmSpec(method="lora"))
    pack(tmp_path / "runs", tmp_path / "gpu", name="gpu", authors=["Ada"])
    entry = validate(tmp_path / "gpu")
    wrong = [finding for finding in entry.findings if finding.level in ("invalid", "wrong")]
    assert not wrong, told(entry)
    run = sorted((tmp_path / "gpu" / "runs").iterdir())[0]
    record = json.loads((run / "record.json").read_text())
    measured = [name for name in ("energy_kwh", "memory_gb_hours", "device_hours") if record["gamma"][name] is not None]
    assert measured
    for name in measured:
        edit_record(run, lambda data, name=name: data["gamma"].update({name: 0.5 * data["gamma"][name]}))
        assert validate(tmp_path / "gpu").status == "contradicted", name
        edit_record(run, lambda data, name=name: data["gamma"].update({name: record["gamma"][name]}))
