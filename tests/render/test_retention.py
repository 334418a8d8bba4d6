"""The retention table on pages and in terminals: every number in its column, and what is missing with its reason."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cprbench.cli import app
from cprbench.judge.cpr import compare
from cprbench.judge.retention import retention
from cprbench.render.formats.writing import render_report
from cprbench.render.retention import COLUMNS, answer, short
from cprbench.render.terminal import print_groups
from cprbench.runs import store
from cprbench.spec import RunRecord
from tests.judge.test_retention import AT_FLOPS, AT_Q, PICKED, references, run, sweep, swept
from tests.render.test_markdown import EVIL, cells

TITLE = "**Retention against full tuning on all data (k = 1, q = 1)**"


def section(*records: RunRecord) -> str:
    """Return the part of the report that is about retention."""
    return render_report(records).split(TITLE)[1].split("</details>")[0]


def row(text: str, arm: str) -> dict[str, str]:
    header, _, *rows = cells(text)
    (found,) = [line for line in rows if line[0] == arm]
    return dict(zip(header, found, strict=True))


def terminal(*records: RunRecord) -> list[str]:
    shown = io.StringIO()
    print_groups(Console(file=shown, width=80), compare(records))
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def test_the_report_has_what_was_kept_beside_random_predictions_and_cost() -> None:
    assert row(section(*sweep()), PICKED) == {
        "arm": PICKED,
        "k": "0.15",
        "q": "0.3",
        "kept": "75 %",
        "random q": "50 %",
        "random FLOPs": "82 %",
        "eq34 T": "30 %",
        "eq34 T²": "25 %",
        "eq35": "14 %",
        "FLOPs": "30 %",
        "seconds": "75 %",
        "k·q": "0.045",
    }
    assert "the paper sums absolute scalars" in section(*sweep())


def test_what_is_missing_is_a_sign_in_the_table_and_a_reason_below_it() -> None:
    text = section(*sweep(left_out=f"{AT_FLOPS}/1", flops=None), run("lora", 0.7))
    assert {row(text, PICKED)[name] for name in ("random FLOPs", "FLOPs")} == {"-", "n/m"}
    reasons = text.split("Without a number, and why")[1].strip().splitlines()
    assert f"- random FLOPs: no random run at equal billed FLOPs ended well in block 1 ({PICKED})" in reasons
    assert f"- FLOPs: not measured ({PICKED})" in reasons
    adapters = "no prediction for adapters: eq. 34 and 35 are of the model's own parameters (lora)"
    assert f"- eq34 T, eq34 T², eq35: {adapters}" in reasons
    assert "- random q: no draw: it trains on all data (full, lora)" in reasons


def test_a_group_with_nothing_to_retain_has_no_such_section() -> None:
    records = [*references(), run("lora", 0.7), run("partial k=0.15", 0.7)]
    assert "Retention" not in render_report(records)
    assert "Retention" not in "\n".join(terminal(*records))


def test_baselines_stay_in_the_other_tables() -> None:
    before = render_report(sweep()).split(TITLE)[0]
    assert [line[0] for line in cells(before)].count(AT_Q) == 3
    assert AT_Q not in [line[0] for line in cells(section(*sweep()))]


def test_a_sentence_counts_the_rows_that_kept_more_than_random() -> None:
    kept = "Kept more than random: at equal q 1 of 1 rows; at equal billed FLOPs 0 of 1 rows."
    assert f"\n{kept} Points, no test of significance.\n" in section(*sweep())
    alone = [r for r in sweep() if r.arm not in (AT_Q, AT_FLOPS)]
    assert "random: at equal q no row to compare; at equal billed FLOPs no row to compare." in section(*alone)
    lost = [r for r in sweep() if (r.arm, r.block) != ("full", 1)]
    assert "random: at equal q no row to compare; at equal billed FLOPs no row to compare." in section(*lost)
    tie = [r for r in sweep() if r.arm != AT_Q]
    tie += [run(AT_Q, final, block, q=0.3) for block, final in enumerate((0.75, 0.80))]
    assert "at equal q 0 of 1 rows" in section(*tie)


def test_a_baseline_that_is_not_equal_is_shown_said_and_not_counted() -> None:
    text = section(*sweep(at_flops=(600, 960)))
    assert row(text, PICKED)["random FLOPs"] == "82 %"
    assert "at equal billed FLOPs no row to compare" in text
    assert f"\n- random at equal billed FLOPs, not counted: 1.30x as much ({PICKED})\n" in text
    assert f"not counted: not measured ({PICKED})" in section(*sweep(at_flops=(600, None)))


def test_where_all_data_is_used_submodules_by_lot_stand_in_the_column_of_equal_q() -> None:
    k_sets = [run(f"{name} k=0.15", final) for name, final in (("partial", 0.75), ("random-submodules", 0.70))]
    text = section(*references(), *k_sets)
    assert row(text, "partial k=0.15")["random q"] == "50 %"
    assert "at equal q 1 of 1 rows" in text
    assert "where all data is used, what is drawn by lot are submodules at equal k" in text


def test_the_predictions_are_judged_from_three_rows_on() -> None:
    assert "Predicted against kept: eq34 T fewer than 3 rows have both; eq34 T² fewer" in section(*sweep())
    (group,) = compare(swept({0.1: 0.62, 0.2: 0.61, 0.4: 0.70}))  # kept 0.10, 0.05, 0.50; T predicts k / 2, T² 0
    table = retention(group)
    assert table is not None
    assert "eq34 T off by 13.3 points on average, Spearman 0.500 (3 rows)" in answer(table)[1]
    assert "eq34 T² off by 21.7 points on average, Spearman no ranks: all are equal (3 rows)" in answer(table)[1]


def test_the_terminal_shows_the_table_in_80_columns() -> None:
    worse = run("partial k=0.00052 selection=predicted q=0.05", 0.1, q=0.05, k=0.00052)
    lines = terminal(*sweep(), worse, run("lora", 0.7))
    assert max(map(len, lines)) <= 80
    start = lines.index(TITLE.strip("*"))
    assert lines[start + 2].split() == ["arm", "k", "q", "kept", "q", "FLOPs", "T", "T²", "eq35", "FLOPs", "k·q"]
    (found,) = [line.split() for line in lines[start:] if " 0.045" in line]
    assert " ".join(found) == "partial k=0.15 0.15 0.3 75 % 50 % 82 % 30 % 25 % 14 % 30 % 0.045"
    (found,) = [line.split() for line in lines[start:] if line.startswith("lora")]
    assert " ".join(found) == "lora 0.15 1.0 50 % - - - - - 100 % 0.15"
    assert "-250 %" in "".join(lines[start:])
    assert "Kept more than random: at equal q 1 of 1 rows" in " ".join(lines[start:])


def test_cells_are_numbers_or_one_of_three_signs() -> None:
    texts = ["75 %", "-3 %", "no run of this block measured T", "n/e: T is zero", "not measured"]
    assert [short(text) for text in texts] == ["75 %", "-3 %", "-", "n/e", "n/m"]


def test_a_hostile_name_is_shown_as_text() -> None:
    report = section(*sweep(trained_submodules=[EVIL]), run(EVIL, 0.7, method="partial"))
    assert report.count("evil.example") == 4  # in the table, without baselines, without predictions, as a submodule
    for active in (r"(?<!\\)<img", r"(?<!\\)\]\(", r"(?<!\\)\*\*bold", r"(?<!\\)`code", r"^second line"):
        assert not re.search(active, report, re.MULTILINE), active
    assert {len(line) for line in cells(report)} == {1 + len(COLUMNS)}
    shown = "\n".join(terminal(*sweep(), run("[red]evil", 0.7, method="partial")))
    assert "[red]evil" in shown.split(TITLE.strip("*"))[1]


@pytest.mark.parametrize("selects", [True, False])
def test_the_json_of_a_report_holds_the_table_of_each_group(selects: bool, tmp_path: Path) -> None:
    records = sweep() if selects else sweep()[:4]
    shelf = store.Store(tmp_path)
    for record in records:
        shelf.commit(shelf.begin(record.run_id), record)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    (group,) = json.loads(done.stdout)["groups"]
    assert len(group["records"]) == len(records)
    if not selects:
        assert group["retention"] is None
        return
    (line,) = [line for line in group["retention"]["rows"] if line["arm"] == PICKED]
    assert line["predicted"]["eq34_t"] == {"value": pytest.approx(0.3), "why": None}
    assert line["random"]["q"]["kept"]["value"] == pytest.approx(0.5)
    assert group["retention"]["agreement"]["eq35"]["rows"] == 1
