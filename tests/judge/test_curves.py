"""What the validation grid of runs says, from histories written by hand and from real ones."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.cpr import Group, compare
from cprbench.judge.curves import Curves, curve, curves
from cprbench.judge.evidence import Evidence, gather
from cprbench.render.formats.writing import render_report
from cprbench.render.report import curve_tables as page
from tests.conftest import ROOT
from tests.records_factory import make_record, store_run

#: arm -> block -> validation accuracy at 100, 200 and 300 FLOPs
GRID = {"head": {0: (0.5, 0.5, 0.5), 1: (0.5, 0.5, 0.5)}, "full": {0: (0.6, 0.7, 0.8), 1: (0.6, 0.78, 0.8)}}


def history(scores: tuple[float, ...], **more: Any) -> str:
    rows = [
        {"step": i, "flops": 100 * i, "validation": {"accuracy": score}, "gamma": {"rss_gb_hours": i / 10, **more}}
        for i, score in enumerate(scores, start=1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def seen(folder: Path, resource: str = "flops", target: float | None = None) -> tuple[Group, Curves]:
    evidence = gather(folder)
    (group,) = compare(evidence.records)
    return group, curves(group, evidence, resource, target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for arm, blocks in GRID.items():
        for block, scores in blocks.items():
            record = make_record(arm=arm, block=block, final=scores[-1], gamma={"flops": 300})
            store_run(tmp_path, record, history=history(scores))
    return tmp_path


def test_the_last_window_is_from_the_last_validation_but_one_to_the_last(folder: Path) -> None:
    _, found = seen(folder)
    assert found.last_window_ratio["full"].value == pytest.approx((0.1 + 0.02) / 2 / 100)
    assert found.last_window_ratio["head"].value == 0.0
    _, in_memory = seen(folder, "memory_gb_hours")  # under its name in a history
    assert in_memory.last_window_ratio["full"].value == pytest.approx((0.1 + 0.02) / 2 / 0.1)


def test_a_target_is_nine_tenths_of_the_way_and_a_miss_costs_without_end(folder: Path) -> None:
    _, found = seen(folder)
    assert found.target == pytest.approx(0.5 + 0.9 * 0.3)
    assert found.cost_to_target["full"].by_block == {0: 300, 1: 200}
    assert found.cost_to_target["full"].median == 250
    assert (found.cost_to_target["head"].median, found.cost_to_target["head"].missed) == (math.inf, 2)
    _, high = seen(folder, target=0.79)
    assert high.cost_to_target["full"].by_block == {0: 300, 1: 300}


def test_what_a_history_does_not_tell_is_none_and_rubbish_stops_nothing() -> None:
    rows = [
        {"validation": {"accuracy": 0.5}},
        {"validation": {"accuracy": "x"}, "flops": 10},
        {"validation": {"accuracy": True}, "flops": [1]},
        {"validation": {"accuracy": 10**400}, "flops": 10**400},
        {"validation": "accuracy"},
        {"loss": 1.0},
        {"validation": {"accuracy": 0.6}, "flops": 20},
    ]
    assert curve(rows, "accuracy", "flops") == [(None, 0.5), (10, None), (None, None), (None, None), (20, 0.6)]
    assert curve([{"validation": {"bits_per_byte": 2.0}, "flops": 1}], "bits_per_byte", "flops") == [(1, -2.0)]


@pytest.mark.parametrize(
    "row",
    [
        {"validation": {"accuracy": 0.7}, "gamma": "much"},
        {"validation": {"accuracy": 0.7}, "gamma": {"flops": "much"}, "flops": None},
        {"validation": {"accuracy": [0.7]}, "gamma": {"flops": 10**400}},
        {"validation": {"accuracy": math.inf}, "gamma": {"flops": -math.inf}},
        {"validation": ["accuracy"], "flops": 1},
        {"validation": {"accuracy": -1e308}, "flops": 5e-324},
        {"validation": 7},
        {},
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_no_row_of_a_history_stops_a_report(tmp_path: Path, row: dict[str, Any], whole: bool) -> None:
    for arm, scores in (("full", (0.5, 0.8)), ("lora", (0.5, 0.6))):
        text = json.dumps(row) + "\n"
        own = {"new_head_parameters": 0, "gamma": {"flops": 300}}
        store_run(tmp_path, make_record(arm=arm, **own), history=(history(scores) if whole else text) + 2 * text)
    evidence = gather(tmp_path)
    assert "lora" in render_report(evidence.records, {}, evidence)


def test_without_a_second_arm_there_is_no_target_and_the_page_says_so(tmp_path: Path) -> None:
    record = make_record(arm="full", new_head_parameters=0, gamma={"flops": 300})
    store_run(tmp_path, record, history=history((0.6, 0.7)))
    group, found = seen(tmp_path)
    assert (found.target, found.cost_to_target) == (None, {})
    assert "no target" in page.running_table(group, found).notes[0]
    assert page.reached(found.cost_to_target.get("full")) == "n/e"


def test_the_report_shows_the_front_the_target_and_the_last_window_of_real_runs(tmp_path: Path) -> None:
    with zipfile.ZipFile(ROOT / "tests" / "records" / "quickstart.zip") as archive:
        archive.extractall(tmp_path)
    evidence: Evidence = gather(tmp_path)
    report = render_report(evidence.records, {}, evidence)

    def cells(title: str) -> dict[str, list[str]]:
        table = report.split(f"**{title}**")[1].split("\n\n")[1]
        return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table.splitlines()}

    front = cells("Against billed FLOPs")
    assert front["head"][1] == "no: keeps less than 50 % of full's gain"
    assert front["full"] == ["full itself", "yes"]
    running = cells("Validation accuracy against billed FLOPs")
    assert running["lora"][0].startswith("not reached (1 of 2 blocks missed)")
    assert running["head"][1] == "9.44e-11"
