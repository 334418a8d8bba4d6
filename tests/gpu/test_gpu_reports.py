"""Reports of runs on a real GPU: energy and memory of the device are there to choose. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cprbench.judge.evidence import gather
from cprbench.render.document import Choice
from cprbench.render.formats.writing import FORMATS, Writing
from cprbench.spec import ArmSpec
from tests.runs.test_budgets import ran

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


def test_a_report_of_gpu_runs_names_the_board_and_offers_what_its_meters_read(tiny_llama: Path, tmp_path: Path) -> None:
    records = ran(tmp_path, tiny_llama, ArmSpec(method="full"), ArmSpec(method="lora"))
    writing = Writing(gather(tmp_path))
    (group,) = writing.report.groups
    told = [part for section in group.walk() for part in section.parts]
    (plane,) = (part for part in told if isinstance(part, Choice) and part.name == "plane")
    offered = {label for label, _ in plane.options}
    assert {"FLOPs", "device hours", "GB·h"} <= offered
    assert ("kWh" in offered) == all(record.gamma.energy_kwh is not None for record in records.values())
    page = writing.files("html")["report.html"].decode()
    assert torch.cuda.get_device_name(0) in page
    for format_ in FORMATS:
        assert writing.files(format_)
