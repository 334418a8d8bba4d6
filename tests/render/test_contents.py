"""What a report says, whatever the records are: nothing is averaged over machines, guessed or left out in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cprbench.judge.verdicts import Verdict
from cprbench.render.document import Choice, Drawing, Items, Part, Prose, Report, Section, Table
from cprbench.render.report.contents import report_of
from cprbench.spec import Environment, Reading, RunRecord
from tests.blueprint.example import full_blueprint
from tests.judge.test_retention import swept
from tests.records_factory import (
    CPU,
    GPU,
    make_blocks,
    make_evidence,
    make_external,
    make_psi,
    make_record,
    make_search,
)

PARTIAL = "partial k=0.15"
FINALS = {"head": (0.6, 0.61, 0.59), "full": (0.8, 0.82, 0.81), PARTIAL: (0.75, 0.78, 0.76)}
FLOPS = {"head": (100, 100, 100), "full": (1000, 1000, 1000), PARTIAL: (500, 510, 490)}


def parts(section: Section) -> Iterator[Part]:
    for inside in section.walk():
        yield from inside.parts


def tables(section: Section) -> dict[str, Table]:
    return {part.name: part for part in parts(section) if isinstance(part, Table)}


def column(table: Table, name: str) -> dict[str, str]:
    """Return first cell -> cell of a column."""
    at = table.columns.index(name)
    return {row[0].text: row[at].text for row in table.rows}


def words(report: Report) -> str:
    """Return all text of a report, a line each."""
    lines: list[str] = [report.title]
    for section in (*report.groups, *report.rest):
        lines += [inside.title for inside in section.walk()]
        for part in parts(section):
            match part:
                case Prose(paragraphs):
                    lines += paragraphs
                case Items(title, items):
                    lines += [title, *items]
                case Table():
                    lines += [part.title, *part.columns, *part.notes, *(cell.text for row in part.rows for cell in row)]
                case Drawing():
                    lines += [part.title, part.text]
                case Choice():
                    lines += [part.title, *(option.text for _, option in part.options)]
    return "\n".join(lines)


def of(*records: RunRecord, **more: Any) -> Report:
    return report_of(make_evidence(*records, **more))


def group_of(*records: RunRecord) -> Section:
    (found,) = of(*records).groups
    return found


# --- the answer --------------------------------------------------------------------------------------


def answer(finals: dict[str, Sequence[float]], flops: dict[str, Sequence[int]]) -> str:
    """Return the sentence about PARTIAL."""
    lead = group_of(*make_blocks(finals, flops)).parts[0]
    assert isinstance(lead, Prose) and lead.lead
    (told,) = (line for line in lead.paragraphs if line.startswith(PARTIAL))
    return told


def test_the_answer_comes_first_with_intervals_cost_and_a_verdict_in_words() -> None:
    told = answer(FINALS, FLOPS)
    assert told.startswith(f"{PARTIAL} keeps 78 % [")
    assert " of full's gain for 0.50x [" in told and " its FLOPs (1.56x [" in told
    assert told.endswith(": trade-off: cheaper, but worse (indicative: fewer than 6 blocks).")


def test_a_method_that_is_better_and_cheaper_dominates_and_one_that_is_neither_is_dominated() -> None:
    better = FINALS | {PARTIAL: (0.85, 0.88, 0.86)}
    assert ": dominates full" in answer(better, FLOPS)
    assert ": dominated by full" in answer(FINALS, FLOPS | {PARTIAL: (2000, 2010, 1990)})
    assert ": trade-off: better, but costs more" in answer(better, FLOPS | {PARTIAL: (2000, 2010, 1990)})
    alike = FINALS | {PARTIAL: (0.79, 0.84, 0.80)}
    assert ": not told apart from full (psi not told apart)" in answer(alike, FLOPS)


def test_doing_next_to_nothing_is_below_the_capability_floor_in_words() -> None:
    assert "below the capability floor (keeps less than 50 % of full's gain)" in answer(
        FINALS | {PARTIAL: (0.64, 0.66, 0.64)}, FLOPS | {PARTIAL: (101, 102, 103)}
    )


@pytest.mark.parametrize("blocks", [1, 2])
def test_one_or_two_blocks_are_points_without_a_verdict(blocks: int) -> None:
    finals = {arm: values[:blocks] for arm, values in FINALS.items()}
    told = answer(finals, FLOPS)
    assert told.endswith(f": points only, {blocks} block{'s' if blocks > 1 else ''}.")
    assert "[" not in told
    assert "points, no interval" in words(of(*make_blocks(finals, FLOPS)))


# --- odd inputs ----------------------------------------------------------------------------------------


def test_a_single_run_is_a_report_of_what_it_is() -> None:
    group = group_of(make_record(arm="full"))
    assert column(tables(group)["main"], "blocks") == {"full": "1"}
    assert column(tables(group)["main"], "gain") == {"full": "no head run in every block"}


def test_no_run_at_all_is_said() -> None:
    assert "There are no runs to report." in words(of())


def test_runs_that_all_failed_have_no_numbers_and_every_error_is_listed() -> None:
    records = [make_record(arm=arm, status="failed", error=f"{arm} broke") for arm in ("head", "full", PARTIAL)]
    group = group_of(*records)
    assert column(tables(group)["main"], "blocks") == {"head": "0", "full": "0", PARTIAL: "0"}
    assert set(column(tables(group)["main"], "accuracy").values()) == {"no run ended well"}
    assert set(column(tables(group)["main"], "against full").values()) == {"no run ended well"}
    text = words(of(*records))
    assert all(f"{record.run_id} {record.arm}, block 0: failed: {record.arm} broke" in text for record in records)
    costs = tables(group)["costs"]
    assert all(cell.value is None for row in costs.rows for cell in row)


def test_energy_that_was_not_measured_is_a_word_with_its_reason_everywhere() -> None:
    report = of(*make_blocks(FINALS, FLOPS))
    (group,) = report.groups
    assert set(column(tables(group)["costs"], "kWh").values()) == {"not measured"}
    assert "kWh: no meter here" in words(report)
    (plane,) = (part for part in parts(group) if isinstance(part, Choice))
    assert "kWh" not in [label for label, _ in plane.options]
    assert "No figure, for no arm has a number of it: kWh, kg CO2." in words(report)


def test_hardware_classes_are_split_and_never_averaged() -> None:
    here = make_blocks(FINALS, FLOPS)
    there = make_blocks(FINALS, FLOPS, hardware_class=GPU)
    there = [r.model_copy(update={"gamma": r.gamma.model_copy(update={"device_hours": 3.0})}) for r in there]
    groups = of(*here, *there).groups
    assert [group.title.rpartition(", ")[2] for group in groups] == [CPU, GPU] or len(groups) == 2
    hours = [set(column(tables(group)["costs"], "device hours").values()) for group in groups]
    assert sorted(map(tuple, hours)) == [("1.00",), ("3.00",)]
    assert {CPU in group.title for group in groups} == {True, False}


def test_an_external_loop_has_a_table_of_its_own_that_says_so() -> None:
    report = of(make_record(arm="full"), make_external(arm="their loop"))
    assert len(report.groups) == 2
    (theirs,) = (group for group in report.groups if "their loop" in column(tables(group)["main"], "blocks"))
    assert "Measured around an external loop" in "\n".join(
        line for part in parts(theirs) if isinstance(part, Prose) for line in part.paragraphs
    )
    assert column(tables(theirs)["hyper-parameters"], "learning rate") == {"their loop": "not told"}


def test_the_best_rate_at_the_edge_of_its_grid_is_said() -> None:
    trial = make_record(role="search", arm="full", block=9)
    searched = make_record(arm="full", search=make_search(trial).model_copy(update={"best_at_edge": True}))
    assert ", best at the grid's edge" in column(tables(group_of(searched, trial))["costs"], "search")["full"]


def test_submodules_that_differ_by_block_are_counted() -> None:
    sets = [make_record(arm=PARTIAL, block=b, trained_submodules=[f"ffn.{b}"]) for b in (0, 1)]
    assert column(tables(group_of(*sets))["hyper-parameters"], "trained submodules") == {PARTIAL: "2 different sets"}


def test_search_trials_have_a_column_of_their_own_and_no_row() -> None:
    trial = make_record(role="search", arm=PARTIAL, block=9)
    group = group_of(*make_blocks(FINALS, FLOPS), trial)
    assert column(tables(group)["ledger"], "search")[PARTIAL].startswith("1 trial, 3600 s")
    assert trial.run_id not in [row[2].text for row in tables(group)["blocks"].rows]


def test_every_run_stands_behind_its_mean_in_the_table_of_blocks() -> None:
    records = make_blocks(FINALS, FLOPS)
    rows = tables(group_of(*records))["blocks"].rows
    assert {row[2].text for row in rows} == {record.run_id for record in records}
    assert [row[0].text for row in rows][:4] == ["head", "head", "head", "full"]


def test_a_run_that_the_stop_rule_ended_says_where_and_why() -> None:
    told = {"stopped_at": 16, "of_steps": 20, "why": "psi gained per flops stayed below eta"}
    text = words(of(make_record(arm="full stop=0.1x", notes={"stop": told})))
    assert "full stop=0.1x, block 0: stopped at step 16 of 20: psi gained per flops stayed below eta" in text


def test_the_source_of_every_quantity_is_named_and_its_flags() -> None:
    read = Reading(phase="billed", quantity="flops", value=3, source="counted", flags=["cached"])
    rows = tables(group_of(make_record(arm="full", readings=[read])))["sources"].rows
    assert [cell.text for cell in rows[0]] == ["flops", "counted", "1", "cached"]


def test_versions_that_differ_between_runs_are_all_named() -> None:
    def on(version: str, run_id: str) -> RunRecord:
        return make_record(
            arm="full", run_id=run_id * 16, environment=Environment(hardware_class=CPU, packages={"torch": version})
        )

    table = tables(group_of(on("2.13.0", "1"), on("2.14.0", "2")))["versions"]
    assert column(table, "value")["package torch"] == "2.13.0 (1 runs); 2.14.0 (1 runs)"


def test_where_no_flops_are_counted_nothing_is_the_most_per_flop() -> None:
    records = [make_record(arm=f"lora n={i}", final=0.6 + i / 50, gamma={"flops": None}) for i in range(1, 9)]
    records += [make_record(arm="head", final=0.6), make_record(arm="full", final=0.8, gamma={"flops": None})]
    lead = group_of(*records).parts[0]
    assert isinstance(lead, Prose)
    assert lead.paragraphs[0] == "Of 8 arms, the most kept:"
    assert [line.split(" keeps")[0] for line in lead.paragraphs[1:]] == ["lora n=8"]


def test_only_the_head_that_gains_are_measured_against_is_called_the_reference() -> None:
    records = [make_record(arm=arm, new_head_parameters=0, final=0.5) for arm in ("head", "full")]
    assert "the reference of gains" not in words(of(*records))
    assert "the reference of gains" in words(of(*make_blocks(FINALS, FLOPS)))


def test_without_scores_no_figure_is_said_to_lack_a_cost() -> None:
    text = words(of(make_external(arm="full", psi=make_psi(None, None))))
    assert "No figure, for no arm has a number of accuracy: FLOPs" in text


def test_groups_of_other_weights_or_data_are_called_differently() -> None:
    other = {**make_record().spec.model.model_dump(), "weights_sha256": "ab" * 32}
    record = make_record(arm="full", run_id="1" * 16)
    changed = record.spec.model_copy(update={"model": type(record.spec.model).model_validate(other)})
    titles = [
        group.title for group in of(record, record.model_copy(update={"spec": changed, "run_id": "2" * 16})).groups
    ]
    assert len(set(titles)) == 2 and any("weights abababab" in title for title in titles)


def test_a_run_that_a_later_one_repeats_and_a_failed_trial_have_their_errors_too() -> None:
    first = make_record(arm="full", status="failed", error="out of luck", run_id="1" * 16)
    again = make_record(arm="full", run_id="1" * 16 + "-2", previous="1" * 16)
    trial = make_record(arm="full", role="search", status="failed", error="too high a rate", run_id="3" * 16)
    text = words(of(first, again, trial))
    assert f"{'1' * 16} full, block 0: failed: out of luck" in text
    assert f"{'3' * 16} full, block 0: failed: too high a rate" in text
    assert "There are no runs to report, only trials of a search." in words(of(trial))


def test_what_some_runs_lack_says_how_many() -> None:
    measured = [make_record(arm="full", block=b, gamma={"energy_kwh": 0.1}) for b in (1, 2)]
    assert "kWh: no meter here (1 of 3 runs)" in words(of(make_record(arm="full"), *measured))
    unread = make_record(arm="full", gamma={"memory_gb_hours": None})
    assert "memory is" not in words(of(unread)) and "memory is rss" in words(of(make_record(arm="full")))


def test_what_a_loop_of_others_did_is_not_told() -> None:
    group = group_of(make_external(arm="their loop"))
    row = tables(group)["hyper-parameters"].rows[0]
    assert [cell.text for cell in row[3:]] == ["not told", "not told", "not told"]
    assert column(tables(group)["recipe"], "value")["seeds"] == "not told"


def test_the_trained_submodules_of_the_head_are_said_and_those_of_failed_runs_are_not() -> None:
    alone = group_of(make_record(arm="head", trained_submodules=[]), make_record(arm="full", status="failed"))
    assert column(tables(alone)["hyper-parameters"], "trained submodules") == {
        "head": "the new head alone",
        "full": "no run ended well",
    }


def test_intervals_that_lack_the_error_of_the_items_say_why_and_no_others_do() -> None:
    assert "Intervals leave out the error of the test items: no predictions are stored." in words(
        of(*make_blocks(FINALS, FLOPS))
    )
    assert "Intervals leave out" not in words(of(*(r for r in make_blocks(FINALS, FLOPS) if r.block < 2)))


def test_what_the_ledger_counts_stands_by_phase() -> None:
    counted = [Reading(phase="train", quantity="flops", value=70, source="counted")]
    group = group_of(make_record(arm="full", readings=counted))
    assert column(tables(group)["ledger-flops"], "train") == {"full": "70.0"}
    assert column(tables(group)["ledger-flops"], "select") == {"full": "0"}


def test_a_machine_that_was_not_steady_and_code_with_changes_are_said() -> None:
    def on(rate: float, block: int) -> RunRecord:
        facts = {"rates": {"copy_gb_per_second": rate}}
        where = Environment(
            hardware_class=CPU, facts=facts, commit="abc", dirty=True, devices=[{"name": "H100", "index": 0}]
        )
        return make_record(arm="full", block=block, environment=where, resumed=True)

    text = words(of(on(30.0, 0), on(20.0, 1)))
    assert "copy_gb_per_second differed by over 15 % between runs of this hardware class" in text
    assert "abc (with changes)" in text and "index=0 name=H100" in text and ", resumed" in text
    assert "differed" not in words(of(on(30.0, 0), on(29.0, 1)))


def test_notes_and_facts_that_say_something_else_stop_no_report() -> None:
    facts = {"processes": "two", "rates": {"copy": "fast"}, "memory_bytes": [], "carbon": 3, "cpu": {}}
    notes = {"selection": {"predictor": {"spearman": "high"}, "scores": {"made": "yes"}}, "blueprint": 3, "stop": []}
    odd = make_record(arm="full", environment=Environment(hardware_class=CPU, facts=facts), notes=notes, blueprint="a")
    assert "1 block: points" in words(of(odd))


def test_doing_little_is_never_the_most_per_flop() -> None:
    finals = {"head": (0.5,), "full": (0.9,)} | {f"partial k=0.{i}": (0.75 + i / 100,) for i in range(1, 8)}
    costs = {"head": (1,), "full": (1000,), "tiny": (2,)} | {f"partial k=0.{i}": (500 + i,) for i in range(1, 8)}
    lead = group_of(*make_blocks(finals | {"tiny": (0.51,)}, costs)).parts[0]
    assert isinstance(lead, Prose)
    assert not [line for line in lead.paragraphs if line.startswith("tiny")]


def test_reasons_are_folded_where_they_are_many() -> None:
    for shares, folded in (({0.1: 0.62, 0.2: 0.61, 0.4: 0.70}, False), ({}, None)):
        found = [part for part in parts(group_of(*swept(shares))) if isinstance(part, Items)]
        told = [part for part in found if part.title.startswith("Without a number")]
        assert [part.folded for part in told] == ([] if folded is None else [len(told[0].items) > 3])
    mixed = [*swept({0.1: 0.62, 0.2: 0.61}), make_record(arm="lora", final=0.7, notes={"adapters": {}})]
    (told,) = (p for p in parts(group_of(*mixed)) if isinstance(p, Items) and p.title.startswith("Without a number"))
    assert len(told.items) > 3 and told.folded


# --- what holds of all ---------------------------------------------------------------------------------


def test_claims_stand_with_their_verdicts_and_those_without_evidence_are_folded() -> None:
    verdicts = [
        Verdict("held", "supported", 1.2, 1.1, 1.3, "the interval is above 1", text="It pays."),
        Verdict("failed", "refuted", 0.5, 0.4, 0.6, "the whole interval is not above 1"),
        Verdict("unasked", "open", None, None, None, "there are no runs of suite gpu-7b here"),
    ]
    report = report_of(make_evidence(make_record()), verdicts)
    (claims,) = (section for section in report.rest if section.name == "claims")
    assert column(tables(claims)["claims"], "verdict") == {"held": "supported", "failed": "refuted"}
    (folded,) = (part for part in claims.parts if isinstance(part, Items))
    assert folded.folded and folded.items == ("unasked: there are no runs of suite gpu-7b here",)
    assert "1 supported, 1 refuted, 1 open." in words(report)


def test_a_blueprint_beside_the_runs_is_a_heat_map_with_a_column_for_what_is_in_no_layer() -> None:
    report = of(make_record(), blueprints={"tiny.json": full_blueprint()})
    (section,) = (section for section in report.rest if section.name == "blueprint-1")
    heat = tables(section)["heat"]
    assert [part.items for part in section.parts if isinstance(part, Items)] == [("Nothing.",)]
    assert heat.columns == (
        "submodule",
        *(f"{tag} {kind}" for tag in ("general", "bio") for kind in ("attn", "ffn", "other")),
    )
    texts = {row[0].text: [cell.text for cell in row[1:4]] for row in heat.rows}
    assert texts["embed"] == ["", "", "60.0"] and texts["layer 0"] == ["18.5", "3.0", ""]
    shades = {row[0].text: row[3].shade for row in heat.rows}
    assert shades == {"layer 0": None, "layer 1": None, "embed": 6}


def test_damaged_directories_are_named() -> None:
    assert "a run: altered" in words(of(make_record(), damaged={"a run": "altered"}))


def test_names_of_sections_and_of_tables_in_a_group_are_unique() -> None:
    report = of(*make_blocks(FINALS, FLOPS), make_record(arm="full", hardware_class=GPU))
    names = [inside.name for section in (*report.groups, *report.rest) for inside in section.walk()]
    assert len(set(names)) == len(names)
    for group in report.groups:
        own = [(type(part), part.name) for part in parts(group) if not isinstance(part, Prose | Items)]
        assert len(set(own)) == len(own)
