"""cprbench stop-rule replay: where a curve would have stopped, as table, JSON, CSV and figure."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from cprbench.adapt.stopping import StopRule
from cprbench.cli import app
from cprbench.errors import CprbenchError
from tests.conftest import ROOT

PSIS = [0.0, 4.0, 8.0, 10.0, 11.0, 11.2, 11.3, 11.4, 11.5, 11.6]


def said(*words: object) -> str:
    line = ["stop-rule", "replay", *map(str, words)]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "80"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def document(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(*words, "--json"))
    return found


def refused(path: Path, text: str | bytes, *words: str) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CprbenchError) as caught:
        said(path, *words)
    return str(caught.value)


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    rows = [f"{i},{i * 10**12},{psi}" for i, psi in enumerate(PSIS)]
    path = tmp_path / "curve.csv"
    path.write_text("\n".join(["step,flops,psi", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with zipfile.ZipFile(ROOT / "tests/records/quickstart.zip") as stored:
        stored.extractall(folder)
    return sorted(path.parent for path in folder.rglob("history.jsonl"))[0]


def test_the_table_has_a_row_per_eta_and_fits_80_columns(curve: Path) -> None:
    lines = said(curve, "--window", 2).splitlines()
    assert max(map(len, lines)) <= 80
    header = next(i for i, line in enumerate(lines) if line.startswith("eta"))
    assert lines[header].split() == ["eta", "stops", "at", "spent", "saved", "psi", "lost", "of", "gain"]
    rows = [line.split() for line in lines[header + 1 : header + 4]]
    assert [row[0] for row in rows] == ["0.05x", "0.1x", "0.2x"]
    assert rows[1] == ["0.1x", "line", "9", "7.00e+12", "22", "%", "11.4", "0.2", "2", "%"]


def test_it_stops_where_the_rule_fed_point_by_point_stops(curve: Path) -> None:
    rule = StopRule("0.1x", 2, 3)
    stops = [rule.add(psi, i * 1e12) for i, psi in enumerate(PSIS)].index(True)
    (found,) = document(curve, "--eta", "0.1x", "--window", 2, "--patience", 3)["replays"]
    assert found["stopped_at"] == f"line {stops + 2}"
    assert found["checks"] == len(PSIS) and found["saved"] == 1 - stops / 9


def test_every_replay_warns_of_decaying_rates_and_a_run_with_one_in_particular(curve: Path, a_run: Path) -> None:
    assert "Where the rate decays, the last ratios are small" in " ".join(said(curve).split())
    assert len(document(curve)["warnings"]) == 1
    decayed, unbilled, always = document(a_run)["warnings"]
    assert "this run's learning rate decayed" in decayed and "another schedule" in always
    assert "did not bill its validations" in unbilled


def test_a_run_is_read_by_its_primary_score_and_its_checks_are_its_validations(a_run: Path) -> None:
    rows = [json.loads(line) for line in (a_run / "history.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "validation" in row and row["phase"] == "train"]  # as a loop would ask
    found = document(a_run)
    assert (found["psi"], found["resource"], found["negated"]) == ("accuracy", "flops", False)
    assert [point["psi"] for point in found["points"]] == [row["validation"]["accuracy"] for row in validated]
    assert [point["gamma"] for point in found["points"]] == [row["flops"] for row in validated]
    assert [point["at"] for point in found["points"]] == [f"step {row['step']}" for row in validated]
    assert document(a_run / "history.jsonl")["points"] == found["points"]


def test_other_scores_and_resources_of_a_run_can_be_named(a_run: Path, tmp_path: Path) -> None:
    found = document(a_run, "--psi", "nll", "--resource", "device_hours")
    assert found["negated"] is True
    assert all(point["psi"] < 0 for point in found["points"])
    assert "minus nll (lower is better)" in " ".join(said(a_run, "--psi", "nll").split())
    copy = tmp_path / "history.jsonl"  # without its record: nothing says which score is primary
    copy.write_text((a_run / "history.jsonl").read_text())
    with pytest.raises(CprbenchError, match=r"no column 'psi'. Name one with --psi: .*accuracy, .*nll"):
        said(copy)
    assert document(copy, "--psi", "nll")["points"] == document(a_run, "--psi", "nll")["points"]


def test_empty_cells_are_skipped_and_a_curve_of_empty_cells_is_refused(curve: Path, tmp_path: Path) -> None:
    whole = document(curve, "--window", 2)
    curve.write_text(curve.read_text() + ",,\n10,10000000000000,\n")
    holed = document(curve, "--window", 2)
    assert holed["points"] == whole["points"]
    assert holed["replays"][0]["skipped"] == {"not measured": 1}
    told = refused(tmp_path / "empty.csv", "flops,psi\n1,\n2,\n")
    assert "none of 2 checks had both psi and flops" in told


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("flops,psi\n1,2\n2,x\n", ["line 3", "psi is 'x'", "Leave it empty"]),
        ("flops,psi\n1,2\n2,nan\n", ["line 3", "psi is 'nan'"]),
        ("flops,psi\n1,2\n2,1e999\n", ["line 3", "not a finite number"]),
        ("flops,psi\n1,2\n2\n", ["line 3", "1 cells under 2 names", "commas"]),
        ("flops,psi\n1,2\n2,3,4\n", ["line 3", "3 cells under 2 names"]),
        ("flops,psi\n5,2\n4,3\n", ["line 3", "flops fell from 5 to 4", "running total"]),
        ("flops,flops\n5,2\n", ["line 1", "name of its own"]),
        ("flops,\n5,2\n", ["line 1", "name of its own"]),
        ("flops,p\x07si\n5,2\n", ["line 1", "name of its own"]),
        ('flops,psi\n1,2\n2,"3\n', ["line 3", "not CSV"]),
        ("flops;psi\n1;2\n", ["no column 'psi'", "flops;psi"]),
        ("flops,psi\n", ["holds no rows", "below its header"]),
        ("\n \n", ["holds no rows"]),
        ("", ["holds no rows"]),
        (b"flops,psi\n1,\xff\n", ["cannot be read", "UTF-8"]),
    ],
)
def test_a_malformed_csv_is_answered_with_the_line_and_the_cure(
    tmp_path: Path, text: str | bytes, parts: list[str]
) -> None:
    told = refused(tmp_path / "bad.csv", text)
    for part in ("bad.csv", *parts):
        assert part in told, told


@pytest.mark.parametrize("row", ["{", "[1]", '{"flops": 1}', '{"step": 1, "flops": 1, "validation": {"psi": NaN}}'])
def test_a_malformed_history_is_answered_with_the_row(tmp_path: Path, row: str) -> None:
    told = refused(tmp_path / "curve.jsonl", row)
    assert "line 1" in told or "step 1: psi is nan" in told


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CprbenchError, match="cannot be read"):
        said(tmp_path / "none.csv")


def test_the_files_hold_the_same_numbers_and_the_same_bytes_each_time(curve: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        said(curve, "--window", 2, "--out", tmp_path / name)
    for file in ("stop-rule.csv", "stop-rule.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    rows = list(csv.DictReader((tmp_path / "one/stop-rule.csv").read_text().splitlines()))
    assert [row["eta"] for row in rows] == ["0.05x", "0.1x", "0.2x"]
    assert float(rows[1]["saved"]) == pytest.approx(2 / 9)
    text = (tmp_path / "one/stop-rule.svg").read_text()
    root = ElementTree.fromstring(text)
    title, described = root[0], root[1]
    assert root.get("role") == "img" and root.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"
    assert title.tag.endswith("title") and described.tag.endswith("desc")
    assert "eta 0.1x stops at line 9, saves 22 % of flops" in str(described.text)
    assert "date" not in text and "eta = 0.1x" in text and "var(" not in text  # no page gives it colours


def test_a_hostile_column_name_is_drawn_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("flops,$a<b>&$[red]\n" + "".join(f"{i},{psi}\n" for i, psi in enumerate(PSIS)))
    shown = said(path, "--psi", "$a<b>&$[red]", "--out", tmp_path / "out")
    assert "psi = $a<b>&$[red]" in shown and "psi: $a<b>&$[red] there" in " ".join(shown.split())
    root = ElementTree.fromstring((tmp_path / "out/stop-rule.svg").read_text())
    assert any("psi = $a<b>&$[red]" in str(element.text) for element in root.iter() if element.tag.endswith("}text"))
