"""What ranks: a whole suite's worth of verified runs with their controls; everything else is shown with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.cpr import compare
from cprbench.judge.evidence import gather
from cprbench.judge.submission import Entry, Number, Row
from cprbench.submissions.neighbours import beside_one_another
from cprbench.submissions.validation import validate
from tests.submissions.altering import edit_lines, edit_record, run_of

PARTIAL, RANDOM = "partial k=0.15", "random-submodules k=0.15"


@pytest.fixture(scope="module")
def entry(packed: Callable[[str], Path]) -> Entry:
    return validate(packed("board"))


def of(entry: Entry, arm: str) -> Row:
    (row,) = (row for row in entry.rows if row.arm == arm)
    return row


def reasons(entry: Entry, arm: str = PARTIAL) -> str:
    return "; ".join(of(entry, arm).unranked)


def without(submission: Path, arm: str, *blocks: int) -> Entry:
    for block in blocks:
        shutil.rmtree(run_of(submission, arm, block))
    return validate(submission)


def test_a_submission_that_covers_its_suite_ranks_in_every_row(entry: Entry) -> None:
    assert (entry.status, len(entry.rows)) == ("consistent", 6)
    assert all(row.ranked and row.tier == "consistent" for row in entry.rows), [row.unranked for row in entry.rows]
    assert {(row.suite, row.suite_version, tuple(row.blocks)) for row in entry.rows} == {("small-core", 1, (0, 1, 2))}


def test_the_numbers_of_a_row_are_those_of_a_report_on_the_same_runs(
    entry: Entry, packed: Callable[[str], Path]
) -> None:
    evidence = gather(packed("board") / "runs")
    (group,) = compare(evidence.records, evidence.predictions)
    for arm in group.arms:
        row = of(entry, arm.arm)
        for name in ("gain", "retained_gain"):
            found = getattr(arm, name)
            assert getattr(row, name) == Number(value=found.value, low=found.low, high=found.high, why=found.why)
        assert row.psi.value == arm.final.value
        assert row.gamma["flops"].value == arm.gamma["flops"].value
        assert row.multiple_of_full["flops"].value == arm.multiple_of_full["flops"].value
        assert row.gamma["energy_kwh"].value is None and str(row.gamma["energy_kwh"].why).startswith("not measured")


def test_baselines_and_pickers_are_marked(entry: Entry) -> None:
    assert {row.arm for row in entry.rows if row.baseline} == {"head", "full", RANDOM}
    assert (of(entry, PARTIAL).picker, of(entry, RANDOM).picker, of(entry, "lora").picker) == ("norm", "random", "")
    assert (of(entry, "full").k.value, of(entry, PARTIAL).q.value) == (1.0, 1.0)
    assert of(entry, f"{PARTIAL} selection=influence q=0.5").q.value == 0.5


def test_every_run_behind_a_row_is_listed_with_its_curve_and_costs(entry: Entry) -> None:
    runs = of(entry, PARTIAL).runs
    assert [run.block for run in runs] == [0, 1, 2]
    assert all(run.curve and run.gamma["flops"] and run.commit and run.dirty is False for run in runs)
    assert [flops for flops, _ in runs[0].curve] == sorted(flops for flops, _ in runs[0].curve)
    assert len({run.trace_sha256 for row in entry.rows for run in row.runs}) == 18


def test_two_blocks_do_not_rank(whole: Path) -> None:
    entry = without(whole, PARTIAL, 2)
    assert "2 blocks ended well, 3 are asked for" in reasons(entry)
    assert of(entry, "lora").ranked


def test_a_block_that_is_left_out_in_the_middle_is_noticed(whole: Path) -> None:
    assert "blocks 1, 2: every block from 0 is part of a submission" in reasons(without(whole, PARTIAL, 0))


def test_nothing_ranks_without_full_tuning_in_the_same_blocks(whole: Path) -> None:
    entry = without(whole, "full", 1)
    assert "no full beside it in block 1" in reasons(entry)
    assert "no full beside it in block 1" in reasons(entry, "lora")


def test_a_reference_whose_rate_was_chosen_with_less_care_is_no_reference(whole: Path) -> None:
    edit_record(run_of(whole, "full", 1), lambda data: data["notes"].update(learning_rate_from="given"))
    entry = validate(whole)
    assert "no full beside it in block 1" in reasons(entry)
    assert "given by hand" in reasons(entry, "full")


def test_a_k_set_does_not_rank_without_a_drawn_one_of_the_same_k_but_adapters_do(whole: Path) -> None:
    entry = without(whole, RANDOM, 0, 1, 2)
    assert "no random-submodules k=0.15 beside it in block 0, 1, 2" in reasons(entry)
    assert of(entry, "lora").ranked and of(entry, "full").ranked


def test_rows_of_a_suite_that_does_not_rank_say_which_does(packed: Callable[[str], Path]) -> None:
    entry = validate(packed("quickstart"))
    assert {row.suite for row in entry.rows} == {"quickstart"}
    assert all("suite quickstart v1 does not rank" in row.unranked[0] for row in entry.rows)
    assert "core v1" in entry.rows[0].unranked[0]


def test_smoke_tests_never_rank(packed: Callable[[str], Path]) -> None:
    rows = validate(packed("methods")).rows
    assert rows and all("a smoke test" in row.unranked[0] for row in rows)


def test_an_arm_that_is_on_one_of_the_suites_tasks_only_does_not_rank(
    packed: Callable[[str], Path], tasks: Path
) -> None:
    file = tasks / "suites" / "small-core.toml"
    text = file.read_text()
    file.write_text(text.replace('["movie-snippets"]', '["movie-snippets", "banking77"]'))
    try:
        from cprbench.submissions import known

        known._suites.cache_clear()
        assert "its submission lacks banking77 x minilm for this arm" in reasons(validate(packed("board")))
    finally:
        file.write_text(text)
        known._suites.cache_clear()


def test_a_checkout_with_changes_does_not_rank(whole: Path) -> None:
    edit_record(run_of(whole, "lora", 1), lambda data: data["environment"].update(dirty=True))
    entry = validate(whole)
    assert "a checkout with changes" in reasons(entry, "lora")
    assert entry.status == "consistent" and of(entry, "full").ranked


def again(row: Row, psi: float = 0.0, **changes: Any) -> Row:
    """Return a row as runs of somebody else would make it: other samples, other hours, psi a little off."""
    runs = [
        run.model_copy(
            update={
                "trace_sha256": f"{number}",
                "psi": None if run.psi is None else run.psi + psi,
                "gamma": {**run.gamma, "device_hours": 1.0 + number},
            }
        )
        for number, run in enumerate(row.runs)
    ]
    return row.model_copy(update={"runs": runs, **changes})


def beside(row: Row, other: Row, authors: tuple[str, str] = ("Ada", "Grace")) -> Row:
    names = {"one": [authors[0]], "two": [authors[1]]}
    return beside_one_another({"one": [row], "two": [other]}, names)["one"][0]


def test_a_row_is_reproduced_by_runs_of_other_authors_that_agree(entry: Entry) -> None:
    row = of(entry, PARTIAL)
    assert beside(row, again(row)).tier == "reproduced"
    assert beside(row, again(row, psi=0.05)).tier == "reproduced"
    assert beside(row, again(row, psi=0.15)).tier == "consistent"  # 100 items tell that apart
    assert beside(row, again(row), ("Ada  Lovelace", "ada lovelace")).tier == "consistent"
    assert beside(row, again(row, tier="self-reported")).tier == "consistent"
    other = again(row)
    spent = [run.model_copy(update={"gamma": {**run.gamma, "flops": 1.0}}) for run in other.runs]
    assert beside(row, other.model_copy(update={"runs": spent})).tier == "consistent"
    same_hours = [a.model_copy(update={"gamma": b.gamma}) for a, b in zip(other.runs, row.runs, strict=True)]
    assert beside(row, other.model_copy(update={"runs": same_hours})).tier == "consistent"
    assert beside(row, again(of(entry, "lora"))).tier == "consistent"


def test_a_copy_ranks_nowhere_and_neither_does_what_it_was_copied_from_until_somebody_says_which(entry: Entry) -> None:
    row = of(entry, PARTIAL)
    found = beside(row, row)
    assert (found.tier, found.unranked) == (
        "consistent",
        ["its raw samples are those of submission two: one of them is a copy"],
    )
    assert beside(row, again(row)).ranked


def test_runs_that_no_meter_watched_are_copies_of_nobody(entry: Entry) -> None:
    row = of(entry, PARTIAL)
    blind = row.model_copy(update={"runs": [run.model_copy(update={"trace_sha256": ""}) for run in row.runs]})
    assert beside(blind, blind).ranked


def test_adding_to_every_clock_makes_no_other_run(whole: Path, entry: Entry) -> None:
    def later(rows: list[Any]) -> None:
        for line in rows:
            if "t" in line:
                line["t"] = round(line["t"] + 1000, 6)

    run = run_of(whole, PARTIAL, 0)
    edit_lines(run, "samples.jsonl", later)
    found = of(validate(whole), PARTIAL)
    assert [r.trace_sha256 for r in found.runs] == [r.trace_sha256 for r in of(entry, PARTIAL).runs]


def test_one_rate_that_was_tried_is_no_search(whole: Path) -> None:
    def searched(data: Any) -> None:
        rate = data["spec"]["training"]["learning_rate"]
        data["search"] = {"trials": 1, "runs": ["0123456789abcdef"], "learning_rates": [rate]}
        data["notes"]["learning_rate_from"] = "searched"

    edit_record(run_of(whole, "full", 1), searched)
    entry = validate(whole)
    assert "no full beside it in block 1" in reasons(entry)


def test_what_no_meter_read_says_why(entry: Entry) -> None:
    assert "powercap" in str(of(entry, "full").gamma["energy_kwh"].why)
    assert of(entry, "full").gamma["energy_kwh"].value is None


def test_an_entry_survives_being_stored(entry: Entry) -> None:
    assert Entry.model_validate(json.loads(entry.model_dump_json(by_alias=True))) == entry
