"""Tidy tables: every number as it was measured, every gap a gap, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from cprbench.judge.evidence import Evidence
from cprbench.render.formats.tidy import csv_text, json_text, metrics_lines, reading_rows, run_rows
from cprbench.runs.store import load_runs
from cprbench.spec import ExternalModel, ExternalSpec, ExternalTask, Reading, RunRecord
from tests.golden_files import is_golden, quickstart
from tests.records_factory import make_record, store_run

EVIL = ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1")


def external(**others: object) -> RunRecord:
    spec = ExternalSpec(
        task=ExternalTask(name="my task"),
        model=ExternalModel(source="mine", label="mine"),
        method={"name": "my loop", "settings": {"command": "=cmd()"}},
    )
    return make_record(arm="my loop", loop="external loop", spec={}, **others).model_copy(update={"spec": spec})


def stored(tmp_path: Path, history: list[object], **record: object) -> Evidence:
    text = "".join(json.dumps(row) + "\n" for row in history)
    store_run(tmp_path, make_record(**record), history=text)
    return Evidence({run.record.run_id: run for run in load_runs(tmp_path).runs})


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_run_is_a_row_with_units_in_the_names_and_gaps_where_nothing_was_measured() -> None:
    (row,) = run_rows([make_record(k_asked=0.15, k_reached=0.13)])
    assert row["run_id"] and row["status"] == "ok" and row["task"] == "movie-snippets" and row["seed"] == 7
    assert (row["psi_primary"], row["psi_base"], row["psi_final"], row["psi_validation"]) == (
        "accuracy",
        0.5,
        0.8,
        None,
    )
    assert (row["gamma_device_hours"], row["gamma_flops"], row["gamma_energy_kwh"]) == (1.0, 1000, None)
    assert (row["seconds_train"], row["seconds_billed"]) == (3600, 3600)
    assert (row["k_asked"], row["k_reached"], row["q_reached"]) == (0.15, 0.13, 1.0)
    assert row["learning_rate"] == 1e-3 and json.loads(str(row["training"]))["epochs"] == 2


def test_all_runs_have_the_same_columns_in_the_same_order() -> None:
    rows = run_rows([make_record(), make_record(status="failed", block=1), external()])
    assert len({tuple(row) for row in rows}) == 1
    failed, others = rows[1], rows[2]
    assert failed["psi_final"] is None and failed["error"] == "the loss is not a number"
    assert others["loop"] == "external loop" and others["data_sha256"] is None and others["training"] is None
    assert others["learning_rate"] is None and others["model_source"] == "mine"


def test_numbers_of_a_csv_are_exact_and_a_missing_one_is_an_empty_cell() -> None:
    record = make_record(final=0.1 + 0.2, gamma={"flops": 10**25, "co2_kg": 1e-300})
    (row,) = table(csv_text(run_rows([record])))
    assert float(row["psi_final"]) == 0.1 + 0.2
    assert int(row["gamma_flops"]) == 10**25 and float(row["gamma_co2_kg"]) == 1e-300
    assert row["gamma_energy_kwh"] == ""


@pytest.mark.parametrize("text", EVIL)
def test_a_text_that_a_spreadsheet_would_run_gets_a_quote_in_front(text: str) -> None:
    (row,) = table(csv_text(run_rows([make_record(status="failed", error=text)])))
    assert row["error"] == f"'{text}"
    assert json.loads(json_text(run_rows([make_record(status="failed", error=text)])))[0]["error"] == text


def test_a_number_below_zero_stays_a_number() -> None:
    (row,) = table(csv_text(run_rows([make_record(final=-0.5)])))
    assert row["psi_final"] == "-0.5"


def test_commas_quotes_and_line_breaks_stay_in_their_cell() -> None:
    evil = 'a,"b"\nc\r\nd'
    (row,) = table(csv_text(run_rows([make_record(status="failed", error=evil, arm="partial, 2")])))
    assert row["error"] == evil and row["arm"] == "partial, 2"


def test_a_reading_is_a_row_with_its_source_or_its_reason() -> None:
    readings = [
        Reading(phase="train", quantity="seconds", value=1.5, source="counter", flags=["cut"], detail={"samples": 3}),
        Reading(phase="billed", attempt=2, quantity="co2_kg", value=None, why_missing="no factors"),
    ]
    first, second = reading_rows([make_record(readings=readings)])
    assert (first["phase"], first["quantity"], first["value"], first["source"]) == ("train", "seconds", 1.5, "counter")
    assert (first["flags"], first["detail"]) == ('["cut"]', '{"samples":3}')
    assert (second["attempt"], second["value"], second["why_missing"]) == (2, None, "no factors")
    assert list(first) == list(second)


def test_no_rows_are_an_empty_file() -> None:
    assert csv_text([]) == "" and json.loads(json_text([])) == []


def test_steps_and_ends_of_runs_are_lines_for_trackers(tmp_path: Path) -> None:
    history = [
        {"step": 1, "phase": "select", "loss": 0.7, "seconds": 1.0, "flops": 10},
        {"step": 2, "phase": "train", "loss": 0.6, "validation": {"accuracy": 0.7}, "gamma": {"flops": 20}},
    ]
    evidence = stored(tmp_path, history, arm="full", block=3)
    first, second, end = map(json.loads, metrics_lines(evidence).splitlines())
    assert {line["run_id"] for line in (first, second, end)} == set(evidence.runs)
    assert (first["arm"], first["block"], first["step"], first["select/loss"]) == ("full", 3, 1, 0.7)
    assert (first["gamma/seconds"], first["gamma/flops"]) == (1.0, 10)
    assert (second["train/loss"], second["validation/accuracy"], second["gamma/flops"]) == (0.6, 0.7, 20)
    assert (end["base/accuracy"], end["final/accuracy"], end["final/gamma/flops"]) == (0.5, 0.8, 1000)
    assert "final/gamma/energy_kwh" not in end and end["status"] == "ok"


def test_only_finite_numbers_are_tracked(tmp_path: Path) -> None:
    history = [
        {"step": True, "phase": "train", "loss": math.nan, "flops": math.inf, "validation": {"accuracy": "0.7"}},
        {"step": 2, "phase": "../x", "loss": 0.5, "gamma": [1], "validation": None, "seconds": 10**400},
        {"step": 3, "phase": ["train"], "loss": 0.4, "gamma": {"energy": None, "flops": -math.inf}},
    ]
    lines = [json.loads(line) for line in metrics_lines(stored(tmp_path, history)).splitlines()]
    assert [sorted(set(line) - {"run_id", "arm", "block"}) for line in lines[:3]] == [[], ["step"], ["step"]]


def test_a_run_that_failed_has_an_end_without_scores(tmp_path: Path) -> None:
    (end,) = map(json.loads, metrics_lines(stored(tmp_path, [], status="failed")).splitlines())
    assert end["status"] == "failed" and not any(name.startswith(("final/acc", "base/")) for name in end)


def test_golden_files_hold_what_the_quickstart_said(tmp_path: Path) -> None:
    evidence = quickstart(tmp_path)
    one = evidence.records[:1]
    assert is_golden("quickstart/runs.csv", csv_text(run_rows(evidence.records)))
    assert is_golden("quickstart/runs-of-one.json", json_text(run_rows(one)))
    assert is_golden("quickstart/readings-of-one.csv", csv_text(reading_rows(one)))
    assert is_golden("quickstart/readings-of-one.json", json_text(reading_rows(one)))
    lines = [line for line in metrics_lines(evidence).splitlines(keepends=True) if one[0].run_id in line]
    assert is_golden("quickstart/metrics-of-one.jsonl", "".join(lines[:60:10] + lines[-2:]))
