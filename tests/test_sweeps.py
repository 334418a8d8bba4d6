"""The three sweeps as they ran here in a small form: their retention tables, from real records alone."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from rich.console import Console

from cprbench.judge.cpr import Group, compare
from cprbench.judge.retention import Retention, retention
from cprbench.render.formats.writing import render_report
from cprbench.render.terminal import print_retention
from cprbench.schema import parse
from cprbench.spec import RunRecord
from tests.conftest import ROOT

SWEEPS = ("q-sweep", "k-sweep", "k-by-q")


def load(sweep: str) -> list[RunRecord]:
    with zipfile.ZipFile(ROOT / "tests" / "records" / "sweeps.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{sweep}/"))
        return [parse(RunRecord, json.loads(archive.read(name)), name) for name in names]


@pytest.fixture(scope="module", params=SWEEPS)
def records(request: pytest.FixtureRequest) -> list[RunRecord]:
    return load(request.param)


@pytest.fixture(scope="module")
def group(records: list[RunRecord]) -> Group:
    (found,) = compare(records)
    return found


@pytest.fixture(scope="module")
def table(group: Group) -> Retention:
    found = retention(group)
    assert found is not None
    return found


def test_every_run_of_a_sweep_ended_well_and_is_a_smoke_test(records: list[RunRecord]) -> None:
    assert {(r.status, r.role) for r in records} == {("ok", "smoke")}
    assert {r.block for r in records} == {0}


def test_every_row_has_both_baselines_and_they_are_what_they_say(table: Retention) -> None:
    rows = [row for row in table.rows if row.k_times_q.value != 1]
    assert len(rows) >= 4
    for row in rows:
        for equal in ("q", "flops"):
            assert row.random[equal].kept.value is not None, (row.arm, equal, row.random[equal].kept.why)
        assert row.random["flops"].ratio.value == pytest.approx(1, abs=0.05), row.arm
        assert row.kept.value is not None and row.cost["flops"].value is not None


def test_every_cell_that_chose_by_influence_has_its_predictions(records: list[RunRecord], table: Retention) -> None:
    by_arm = {r.arm: r for r in records}
    for row in table.rows:
        run = by_arm[row.arm]
        if run.spec.selection.name == "influence":
            told = run.notes["cross_influence"]
            seen = sum(told["selected_sums"][cell] for cell in run.trained_submodules)
            assert row.predicted["eq34_t"].value == pytest.approx(seen / sum(told["sums"].values()))
            assert row.predicted["eq34_t_squared"].value is not None


def test_what_choosing_costs_is_in_the_bill_of_every_run_that_chose(records: list[RunRecord]) -> None:
    for record in (r for r in records if r.spec.selection.name == "influence"):
        own = {r.phase: r.value for r in record.readings if r.quantity == "flops" and "cached" not in r.flags}
        cached = sum(r.value or 0 for r in record.readings if (r.phase, r.quantity) == ("billed", "flops")
                     and "cached" in r.flags)  # fmt: skip
        assert record.gamma.flops == (own["select"] or 0) + (own["train"] or 0) + cached
        drawn = [
            r.gamma.flops or 0
            for r in records
            if (r.spec.method, r.spec.selection.name) == (record.spec.method, "random")
            and not r.spec.selection.settings["flops_of"]
            and r.notes["selection"]["q_reached"] == record.notes["selection"]["q_reached"]
        ]
        assert len(drawn) == (0 if record.notes["selection"]["q_reached"] == 1 else 1)
        assert all((record.gamma.flops or 0) > flops for flops in drawn)


def test_the_report_shows_the_table_twice_the_same(records: list[RunRecord]) -> None:
    report = render_report(records)
    assert "**Retention against full tuning on all data" in report
    assert render_report(list(reversed(records))) == report


def test_the_table_in_the_documents_is_that_of_the_records() -> None:
    (group,) = compare(load("k-by-q"))
    written = io.StringIO()
    print_retention(Console(width=80, file=written), group)
    text = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    assert text in (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
