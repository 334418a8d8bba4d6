"""The Markdown report: what people read, whoever wrote the records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from cprbench.judge.groups import Figure
from cprbench.render.formats.writing import render_report
from cprbench.render.numbers import number, percent, score, signed, times
from cprbench.render.text import escape
from cprbench.spec import Environment, Reading, RunRecord
from tests.records_factory import CPU, GPU, make_psi, make_record, make_search

PARTIAL = "partial k=0.15"
#: A mark of every kind that would make Markdown show something else than the text.
EVIL = "a|b <img src=x onerror=alert(1)> [link](http://evil.example) **bold** `code` # h\nsecond line"


MAIN = "What each arm keeps"


def runs(**partial: Any) -> list[RunRecord]:
    """Return head, full and partial in two blocks."""
    table = {"head": (0.6, 100), "full": (0.8, 1000), PARTIAL: (0.75, 500)}
    return [
        make_record(arm=arm, block=block, final=final, gamma={"flops": flops}, **(partial if arm == PARTIAL else {}))
        for arm, (final, flops) in table.items()
        for block in (0, 1)
    ]


def cells(report: str) -> Iterator[list[str]]:
    """Yield the cells of every line of a table."""
    for line in report.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(report: str, title: str) -> list[list[str]]:
    """Return the rows of the table under a title that begins so, its header among them."""
    below = report.split(f"**{title}")[1].split("\n\n", 2)[1]
    return list(cells(below))


def row(report: str, first: str, title: str) -> list[str]:
    """Return the cells of the row that begins with `first` in the table of that title."""
    (wanted,) = [line for line in table(report, title) if line[0] == first]
    return wanted


def test_the_report_has_scores_costs_and_multiples_of_every_arm() -> None:
    report = render_report(runs())
    assert "## movie-snippets v1 x all-MiniLM-L6-v2" in report
    assert f"\n{CPU}. 2 blocks: points, no interval.\n" in report
    assert "Gains are on accuracy, against method head (the model got a new random head) in the same block." in report
    assert row(report, PARTIAL, MAIN) == [
        *(PARTIAL, "2", "0.750", "+0.150", "75 %", "0.50x", "1.50x", "points only, 2 blocks"),
    ]
    assert row(report, PARTIAL, "Scores") == [
        *(PARTIAL, "2", "0", "0.500", "0.600", "0.750", "+0.150", "75 %", "15 %"),
    ]
    assert row(report, PARTIAL, "Cost per run") == [
        *(PARTIAL, "3600", "1.00", "2.00", "not measured", "4.00", "not measured", "500", "none (declared rate)"),
    ]
    assert row(report, PARTIAL, "Multiple of full") == [
        *(PARTIAL, "75 %", "0.75x", "0.75x", "not measured", "0.75x", "not measured", "1.50x"),
    ]
    assert "full" not in [line[0] for line in table(report, "Multiple of full")]


def test_the_answer_says_what_is_kept_at_which_cost_and_whether_that_is_shown() -> None:
    answer = f"{PARTIAL} keeps 75 % of full's gain for 0.50x its FLOPs (1.50x its gain per FLOP)"
    assert f"\n{answer}: points only, 2 blocks.\n" in render_report(runs())
    alone = render_report([make_record(arm="head", final=0.6)])
    assert "\nNo arm can be compared with full tuning here.\n" in alone


def test_models_without_a_new_head_are_shown_against_their_base() -> None:
    report = render_report([make_record(arm="full", new_head_parameters=0)])
    assert "against the untouched base" in report
    assert "\n" + CPU + ". 1 block: points, no interval.\n" in report


def test_what_was_not_measured_is_a_word_with_its_reason_and_never_a_number() -> None:
    report = render_report(runs())
    assert "- kWh: no meter here\n" in report
    for line in cells(report):
        assert not {"None", "nan", "inf", "0 kWh"} & set(line)
    missing = render_report([r for r in runs() if r.arm != "head"])
    assert row(missing, PARTIAL, "Scores")[4] == row(missing, PARTIAL, "Scores")[6] == "no head run in every block"


def test_a_reason_stands_only_with_the_runs_that_it_belongs_to() -> None:
    on_gpu = [Reading(phase="billed", quantity="cpu_energy_joules", value=None, why_missing="the GPU said no")]
    records = [make_record(arm="full"), make_record(arm="full", hardware_class=GPU, readings=on_gpu)]
    report = render_report(records)
    for reason in ("no meter here", "the GPU said no"):
        assert report.count(f"- kWh: {reason}\n") == 1
        (group,) = [part for part in report.split("\n## ") if reason in part and "x all-MiniLM" in part]
        assert (GPU if "GPU" in reason else CPU) in group


def test_failed_runs_are_listed_with_their_errors() -> None:
    broken = make_record(block=2, status="out_of_memory", error="no room for 3 GB")
    report = render_report([*runs(), broken])
    assert "Runs that did not end well:" in report
    assert f"- {broken.run_id} {PARTIAL}, block 2: out\\_of\\_memory: no room for 3 GB\n" in report
    assert row(report, PARTIAL, MAIN)[1] == "2"
    assert "did not end well" not in render_report(runs())


def test_damaged_directories_are_named_at_the_end() -> None:
    report = render_report(runs(), {"b" * 16: "no manifest.json", "a" * 16: "record.json: altered"})
    end = report.split("## Damaged records, left out\n")[1]
    assert end.strip().splitlines() == [
        *("What is wrong with them:", "", f"- {'a' * 16}: record.json: altered", f"- {'b' * 16}: no manifest.json"),
    ]
    assert "Damaged" not in render_report(runs(), {})


def test_runs_with_limits_of_the_command_line_say_that_they_never_rank() -> None:
    notice = "A smoke test: limits or a recipe were given on the command line, so these runs never rank."
    smoke = render_report([make_record(arm="full", role="smoke", limits={"max_examples": 64})])
    assert notice in smoke
    assert ", max_examples 64." in smoke.replace("\\_", "_")
    assert notice not in render_report(runs())


def test_the_suite_and_its_version_are_named() -> None:
    report = render_report([make_record(arm="full", suite="quickstart", suite_version=3)])
    assert f"{CPU}, suite quickstart v3. 1 block" in report


def test_the_cost_of_a_search_has_a_column_of_its_own() -> None:
    trials = [make_record(role="search", block=9, run_id=str(i) * 16) for i in (1, 2)]
    report = render_report([*runs(search=make_search(*trials)), *trials])
    assert row(report, PARTIAL, "Cost per run")[-1] == "2 trials, 7200 s"
    lost = render_report(runs(search=make_search(*trials)))
    assert row(lost, PARTIAL, "Cost per run")[-1].startswith("2 trials, the records of its trials are not here")


def test_a_search_whose_cost_is_unknown_has_no_unit() -> None:
    trial = make_record(role="search")
    lost = render_report(runs(search=make_search(trial)))
    assert row(lost, PARTIAL, "Cost per run")[-1] == "1 trial, the records of its trials are not here"


def test_what_is_folded_is_cut_until_a_pull_request_can_hold_it() -> None:
    tasks = [f"task-{i}" for i in range(4)]
    report = render_report([make_record(arm=f"partial k=0.{i:03}", spec={"task": t}) for t in tasks for i in range(50)])
    assert len(report) <= 60_000
    assert len(table(report, MAIN)) == 2 + 50  # the answer's table is whole
    cut = [int(found) for found in re.findall(r"\n(\d+) more: `cprbench report --format html,csv` has all", report)]
    assert max(cut) > 50 - 40  # of fifty rows fewer than the usual forty are left
    assert "more: `cprbench report" not in render_report(runs())


def test_no_runs_make_a_report_that_says_so() -> None:
    assert "There are no runs to report." in render_report([])


# --- the same bytes ---------------------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes_in_any_order() -> None:
    records = [*runs(), make_record(arm="full", hardware_class=GPU), make_record(arm="lora", block=1, status="failed")]
    report = render_report(records)
    assert render_report(records) == report
    assert render_report(records[::-1]) == report
    assert report.isascii() or "GB·h" in report


def test_the_order_of_failed_runs_does_not_follow_the_order_given() -> None:
    records = [make_record(block=block, status="failed") for block in range(3)]
    assert render_report(records[::-1]) == render_report(records)


# --- hostile names ----------------------------------------------------------------------------------


def test_escaped_text_is_one_line_with_every_mark_of_markdown_escaped() -> None:
    assert escape("a|b `c` *d* _e_ [f] <g> #h \\i") == "a\\|b \\`c\\` \\*d\\* \\_e\\_ \\[f\\] \\<g\\> \\#h \\\\i"
    assert escape("one\n\n two\t\r\nthree\u2028four") == "one two three four"


def assert_harmless(report: str) -> None:
    """Assert that EVIL shows as text: no tag, no link, no emphasis, no line and no cell of its own."""
    assert "evil.example" in report
    for active in (
        r"(?<!\\)<img",
        r"(?<!\\)\]\(",
        r"(?<!\\)\*\*bold",
        r"(?<!\\)`code",
        r"a(?<!\\)\|b",
        r"^second line",
    ):
        assert not re.search(active, report, re.MULTILINE), active
    for lines in re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE):  # a table's
        assert len({len(line) for line in cells(lines)}) == 1, lines


@pytest.mark.parametrize(
    "overrides",
    [
        {"spec": {"task": EVIL}},
        {"spec": {"model": EVIL}},
        {"environment": Environment(hardware_class=EVIL)},
        {"status": "failed", "error": EVIL},
        {"readings": [Reading(phase="billed", quantity="cpu_energy_joules", value=None, why_missing=EVIL)]},
        {"arm": EVIL, "status": "failed", "method": "full"},
    ],
    ids=["task", "model", "hardware class", "error", "reason", "arm"],
)
def test_a_hostile_text_in_a_record_is_shown_as_text(overrides: dict[str, Any]) -> None:
    assert_harmless(render_report([make_record(**{"arm": "full"} | overrides)]))


@pytest.mark.parametrize(
    "overrides",
    [
        {"suite": EVIL, "suite_version": 1},
        {"limits": {EVIL: 1}},
        {"psi": make_psi(metric=EVIL)},
        {"readings": [Reading(phase="billed", quantity=EVIL, value=1.0, source="modelled")]},
    ],
    ids=["suite", "limit", "metric", "quantity"],
)
def test_a_hostile_text_in_a_field_of_few_words_is_shown_as_text(overrides: dict[str, Any]) -> None:
    assert_harmless(render_report([make_record(**{"arm": "full"} | overrides)]))


def test_a_hostile_arm_in_the_headline_is_shown_as_text() -> None:
    records = [*runs(), *(make_record(arm=EVIL, method="lora", block=block) for block in (0, 1))]
    assert_harmless(render_report(records))


def test_a_hostile_name_or_reason_of_a_damaged_directory_is_shown_as_text() -> None:
    assert_harmless(render_report([], {EVIL: "altered"}))
    assert_harmless(render_report([], {"a" * 16: EVIL}))


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (0.123456, "0.123"),
        (0.00012345, "0.000123"),
        (0.0000012345, "1.23e-06"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (999.4, "999"),
        (123456.7, "123457"),
        (1234567.0, "1.23e+06"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(Figure(value)) == text


def test_what_has_no_number_is_its_reason_in_every_format() -> None:
    for show in (number, score, signed, percent, times):
        assert show(Figure.none("n/e: gain_not_positive")) == "n/e: gain_not_positive"
        assert show(Figure(None)) == "not measured"


def test_scores_gains_shares_and_multiples_have_their_own_formats() -> None:
    assert score(Figure(0.12345)) == "0.123"
    assert (signed(Figure(0.1)), signed(Figure(-0.1)), signed(Figure(0.0))) == ("+0.100", "-0.100", "+0.000")
    assert (percent(Figure(0.756)), times(Figure(1.5))) == ("76 %", "1.50x")


def test_what_making_a_blueprint_cost_stands_beside_the_runs_that_used_it_and_is_not_in_theirs() -> None:
    made = {"flops": 7.5e12, "device_hours": 0.25, "energy_kwh": None}
    notes = {"blueprint": {"model_id": "acme/tiny", "made": made}}
    report = render_report(runs(blueprint="ab" * 32, notes=notes))
    (line,) = [line for line in report.splitlines() if line.startswith("Blueprint abababababab of acme/tiny")]
    assert "0.25 device hours" in line and "7.5e+12 FLOPs" in line and "kWh" not in line
    assert line.endswith("Not billed to these runs.")
    assert "Blueprint" not in render_report(runs())
    unpaid = render_report(runs(blueprint="ab" * 32, notes={"blueprint": {"model_id": "acme/tiny", "made": None}}))
    assert "making it cost not measured" in unpaid


def test_an_arm_that_trains_fully_on_chosen_data_has_its_multiple_and_a_sweep_s_answer_names_the_best_two() -> None:
    def arm(name: str, final: float, flops: int) -> RunRecord:
        return make_record(arm=name, final=final, gamma={"flops": flops})

    records = [arm("head", 0.6, 100), arm("full", 0.8, 1000)]
    records += [arm(f"full selection=random q=0.{i}", 0.6 + i / 50, 100 * i + 100) for i in range(1, 8)]
    report = render_report(records)
    assert "| full selection=random q=0.1 | 10 % | " in report.split("Multiple of full")[1]
    assert "\nOf 7 arms, the most kept and the most per FLOP:\n" in report
    answer = "full selection=random q=0.7 keeps 70 % of full's gain for 0.80x its FLOPs (0.87x its gain per FLOP)"
    assert [line for line in report.splitlines() if " keeps " in line and line[0] not in "|-"] == [
        f"{answer}: points only, 1 block."
    ]


def test_predictors_stand_on_the_page_beside_the_loss_alone_and_published_scores_with_their_cost() -> None:
    def chosen(block: int, own: float | None) -> RunRecord:
        told = {"spearman": own, "spearman_within_class": None, "spearman_of_loss": 0.8, "measured": 64}
        return make_record(arm="full selection=predicted q=0.3", block=block, notes={"selection": {"predictor": told}})

    report = render_report([chosen(0, 0.9), chosen(1, 0.7), chosen(2, None)])
    lines = [line for line in report.splitlines() if line.startswith("- full selection=predicted")]
    assert lines == [
        "- full selection=predicted q=0.3, block 0: overall 0.900, within classes not defined, the loss alone 0.800.",
        "- full selection=predicted q=0.3, block 1: overall 0.700, within classes not defined, the loss alone 0.800. "
        "The loss alone ranks better.",
        "- full selection=predicted q=0.3, block 2: overall not defined, within classes not defined, the loss alone "
        "0.800.",
    ]
    assert "held-out" not in render_report([make_record()])
    scores = {"made": {"flops": 2.5e12, "core_hours": None}, "block": 0}
    published = make_record(arm="full selection=influence q=0.3", notes={"selection": {"scores": scores}})
    assert "making them cost 2.5e+12 FLOPs. Not billed to these runs." in render_report([published])


def test_runs_by_several_processes_have_a_table_of_their_own_that_says_so() -> None:
    together = Environment(hardware_class=CPU, facts={"processes": 2})
    page = render_report([make_record(arm="full"), make_record(arm="full", environment=together, run_id="2" * 16)])
    assert page.count(f"\n{CPU}. ") == 1
    assert "## movie-snippets v1 x all-MiniLM-L6-v2, 2 processes\n" in page
    assert page.count(f"{CPU}, 2 processes") == 1
