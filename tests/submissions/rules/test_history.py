"""Histories that no trace has, ends that no rule gives, and what no machine does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.submissions.rules.dossiers import archive, found_by, run_of, with_lines, with_record

HISTORY = "history.jsonl"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[4].update(step=6), "not counted from 1"),
        (lambda rows: rows.pop(), "it has 39 steps, work.jsonl those of 40"),
        (lambda rows: rows[4].update(flops=rows[4]["flops"] + 1), "its passes make"),
        (lambda rows: rows[4].update(phase="select"), "step 5: phase select"),
        (lambda rows: rows[4].update(loss="low"), "line 5: loss"),
        (lambda rows: rows[4].update(more=1), "line 5: more"),
        (lambda rows: rows[4].update(gamma=None), "not at all"),
        (lambda rows: rows[9].pop("validation"), "validated: False"),
    ],
)
def test_a_step_stands_where_its_passes_put_it(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", "full"), HISTORY, change), "H1")["H1"]


def test_cached_scores_are_in_the_history_once_they_were_taken() -> None:
    run = run_of("suites", "full selection=influence q=0.3", suite="q-sweep")
    cached = sum(
        r.value for r in run.record.readings if "cached" in r.flags and (r.phase, r.quantity) == ("select", "flops")
    )
    never = with_lines(run, HISTORY, lambda rows: [r.update(flops=r["flops"] - int(cached)) for r in rows[2:]])
    assert cached and "has not billed" in found_by(never, "H1")["H1"]


def earlier(rows: list[Any]) -> None:
    for row in rows:
        row["seconds"] *= 0.5
        if "gamma" in row:
            row["gamma"]["device_hours"] *= 0.5
            row["gamma"]["core_hours"] *= 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (earlier, "no moment of train"),
        (lambda rows: rows[20].update(seconds=rows[19]["seconds"] - 0.001), "no moment of train"),
        (lambda rows: rows[39].update(seconds=1e5), "no moment of train"),
        (lambda rows: rows[39].pop("gamma"), "a running gamma stands at"),
        (lambda rows: rows[4].update(gamma=rows[39]["gamma"]), "a running gamma stands at"),
        (lambda rows: rows[39]["gamma"].update(flops=1), "gamma.flops is 1"),
        (lambda rows: rows[39]["gamma"].update(core_hours=1.0), "gamma.core_hours is 1.0"),
        (lambda rows: rows[39]["gamma"].update(rss_gb_hours=1.0), "gamma.rss_gb_hours is 1.0"),
        (lambda rows: rows[39]["gamma"].update(cpu_energy_joules=1.0), "gamma.cpu_energy_joules is 1.0"),
    ],
)
def test_a_step_stands_where_the_trace_puts_it(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("board", "full"), HISTORY, change), "H2")["H2"]


def test_running_gammas_are_checked_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cprbench.submissions.rules.history._MOST_TALLIES", 10)
    assert found_by(run_of("methods", "full"), "H2")["H2"].startswith("unverified history.jsonl: more validations")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[39]["validation"].update(nll=0.1), "the last one was"),
        (lambda rows: rows[9]["validation"].update(nll=-0.1), "nll is -0.1, below 0"),
        (lambda rows: rows[9]["validation"].update(accuracy=1.1), "accuracy is 1.1"),
        (lambda rows: rows[9]["validation"].pop("nll"), "validation has ['accuracy', 'macro_f1']"),
        (lambda rows: rows[8].update(validation=rows[9].pop("validation")), "the grid is [10, 20, 30, 40]"),
    ],
)
def test_validations_are_on_the_grid(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", "full"), HISTORY, change), "H3")["H3"]


# --- the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        (
            "full budget=0.25x full",
            lambda r: r["spec"]["budget"].update(amount=5e11),
            "ends at the last step that fits",
        ),
        ("full budget=0.25x full", lambda r: r["spec"]["budget"].update(share=0.5), "it was to bill 0.5 x full"),
        ("full budget=0.25x full", lambda r: r["notes"]["budget"].update(spent=1), "notes.budget is"),
        ("full stop=0.1x", lambda r: r["notes"]["stop"].update(ratio=1.0), "notes.stop: ratio is 1.0"),
        ("full stop=0.1x", lambda r: r["spec"]["stop"].update(eta="0.01x"), "notes.stop"),
        ("full stop=0.1x", lambda r: r["notes"]["stop"].update(of_steps=16), "it ended after 16 of 20 steps"),
    ],
)
def test_a_run_ends_where_its_budget_or_its_rule_ends_it(arm: str, change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_record(run_of("suites", arm), change), "H4")["H4"]


def test_a_bill_that_is_met_is_that_of_a_run_beside() -> None:
    run = next(r for r in archive("suites").values() if r.record.spec.selection.settings.get("flops_of"))
    assert found_by(run, "H4") == {}
    assert found_by(replace(run, mates=()), "H4")["H4"].startswith("unverified record.json: the bill that it meets")
    unsaid = with_record(run, lambda r: r["notes"]["selection"].pop("flops_asked"))
    assert "flops_asked is not" in found_by(unsaid, "H4")["H4"]
    other = with_record(run, lambda r: r["spec"]["selection"]["settings"].update(flops=1e15))
    assert "it was to bill 1 x" in found_by(other, "H4")["H4"]


# --- what no machine does ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (
            lambda r: [q.update(value=q["value"] / 100) for q in r["readings"] if q["quantity"] == "seconds"],
            "L1",
            "FLOP/s",
        ),
        (lambda r: r["environment"].update(hardware_class="x-1-2-3 scalar 2 cores"), "L1", "its hardware does 4.8e+10"),
        (lambda r: r["environment"]["facts"].update(rates=None, cores=None), "L1", ""),
        (lambda r: r.update(peak_memory_bytes=10**7), "L3", "the weights of its model take 90852864"),
        (lambda r: r["environment"]["facts"].update(memory_bytes=10**9), "L3", "its machine has 1000000000"),
        (lambda r: r["psi"]["final"].update(accuracy=0.51), "L4", "no whole number of 64 items"),
        (lambda r: r["psi"]["final"].update(nll=-1.0), "L4", "below 0"),
    ],
)
def test_no_machine_does_this(change: Callable[[Any], Any], code: str, told: str) -> None:
    found = found_by(with_record(run_of("methods", "full"), change), code)
    assert told in found[code] if told else not found


def test_no_optimizer_step_takes_no_time() -> None:
    def at_once(record: Any) -> None:
        for reading in record["readings"]:
            if (reading["phase"], reading["quantity"]) == ("train", "seconds"):
                reading["value"] = 1e-3

    assert "no optimizer step" in found_by(with_record(run_of("methods", "head"), at_once), "L1")["L1"]
