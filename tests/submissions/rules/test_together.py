"""Several processes, examples that have words, scores that an earlier attempt paid for, and bases in 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cprbench.adapt.data import Dataset, Example
from cprbench.meters.trace import Sample, Window
from cprbench.submissions.dossier import Dossier
from cprbench.submissions.rules import RULES as ALL
from cprbench.submissions.rules.evidence import Step
from cprbench.submissions.rules.history import _Clock
from cprbench.submissions.validation import _block_of
from tests.submissions.rules.dossiers import found_by, run_of, with_lines, with_record
from tests.submissions.rules.test_costs import on_gpu, second_attempt

WORK = "work.jsonl"


def told_of(run: Dossier, processes: Any) -> Dossier:
    def change(record: Any) -> None:
        record["notes"]["processes"] = processes
        record["environment"]["facts"]["processes"] = processes

    return with_record(run, change)


def halves(p: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a pass as two, of one example and of the others, each as long as the longest."""
    one = {"batch": 1, "tokens": p["length"], "squared": p["length"] ** 2, "scored": 1}
    rest = {key: p[key] - value for key, value in one.items()}
    return [p | one, p | rest] if p["batch"] > 1 else [p]


def dealt(run: Dossier, *, tokens: int = 0) -> Dossier:
    """Return a run as one of two processes. `tokens`: by how many its first step is shorter."""

    def change(rows: list[Any]) -> None:
        found: list[Any] = []
        fresh: list[Any] = []
        for p in rows:
            if p["phase"] != "train":
                found.append(p)
            elif not p["backward"]:
                fresh = halves(p)
            else:
                for number, half in enumerate(halves(p)):
                    found += [*fresh[number : number + 1], half]
                fresh = []
        first = next(p for p in found if p["phase"] == "train" and p["backward"] and p["batch"] > 1)
        first["tokens"] -= tokens
        rows[:] = found

    return told_of(with_lines(run, WORK, change), 2)


@pytest.mark.parametrize("arm", ["full", "last-layers k=0.15"])
def test_what_several_processes_trained_on_is_summed_up(arm: str) -> None:
    run = run_of("methods", arm)
    assert found_by(dealt(run), "G2", "F5", "F6", "F7") == {}
    assert "an epoch before had" in found_by(dealt(run, tokens=3), "F6")["F6"]

    def nothing_fresh(rows: list[Any]) -> None:
        rows[:] = [p for p in rows if p["phase"] != "train" or p["backward"]]

    if arm != "full":
        assert "frozen layers ran on 0" in found_by(with_lines(dealt(run), WORK, nothing_fresh), "F6")["F6"]


def test_several_processes_see_the_batches_of_the_block() -> None:
    mates = run_of("methods", "full").mates
    last = max((mate for mate in mates if mate.record.arm in ("full", "bitfit")), key=lambda mate: mate.run_id)
    assert found_by(dealt(last), "F7") == {}
    assert "training: other shapes" in found_by(dealt(last, tokens=2), "F7")["F7"]


def test_processes_are_told_once_and_are_no_more_than_their_devices() -> None:
    run = run_of("methods", "full")
    alone = with_record(run, lambda r: r["notes"].update(processes=2))
    assert "facts.processes" in found_by(alone, "G2")["G2"]
    assert (
        "facts.processes" in found_by(with_record(run, lambda r: r["environment"]["facts"].update(processes=7)))["G2"]
    )
    for processes in (1, 0, "2", 2.0):
        assert "it tells of several" in found_by(told_of(run, processes), "G2")["G2"]
    assert "each holds one of its 1 devices" in found_by(told_of(on_gpu(300.0), 2), "G2")["G2"]
    assert "backward pass of every process" in found_by(told_of(run, 3), "F6")["F6"]


# --- words ------------------------------------------------------------------------------------------


def with_data(run: Dossier, words: Sequence[int]) -> Dossier:
    """Return a run whose task has prompts of so many words, after another, in every split."""
    assert run.spec is not None
    size = run.spec.training
    counts = {"train": size.max_examples or 0, "validation": size.validation_items, "test": run.record.psi.items}

    def split(name: str) -> tuple[Example, ...]:
        texts = ["one -- two " * (words[i % len(words)] // 2) for i in range(counts[name])]
        return tuple(Example(f"{name}-{i}", text, "", ("no", "yes"), i % 2) for i, text in enumerate(texts))

    data = Dataset(split("train"), split("validation"), split("test"), ("no", "yes"), f"{words}", "here")
    return replace(run, dataset=data)


def test_a_word_takes_a_token() -> None:
    run = run_of("methods", "full")
    assert run.spec is not None and run.spec.training.max_tokens == 48
    assert found_by(with_data(run, [2, 4]), "F5", "F6") == {}
    found = found_by(with_data(run, [400]), "F5", "F6")  # cut at max_tokens
    assert all(told.startswith("unverified") and "words and more" in told for told in found.values())
    assert list(found) == ["F5", "F6"] and "an epoch has" in found["F6"] and f"have {64 * 40} words" in found["F5"]


def test_chosen_examples_have_the_fewest_words_at_least() -> None:
    run = run_of("suites", "full selection=influence q=0.3", suite="q-sweep")
    assert "words and more" not in str(found_by(with_data(run, [2, 2, 80]), "F6"))
    assert "words and more" in found_by(with_data(run, [80]), "F6")["F6"]


# --- scores of earlier attempts ---------------------------------------------------------------------


def test_an_earlier_attempt_has_measured_what_a_later_one_did_not() -> None:
    run = run_of("board", "partial k=0.15 selection=influence q=0.5", block=0)

    def measures_nothing(rows: list[Any]) -> None:
        rows[:] = [p for p in rows if p["trains"] != "activations"]

    again = second_attempt(run, previous=True)
    later = with_lines(again, WORK, measures_nothing)
    assert found_by(later, "F6", "H1", "H2") == {}
    assert "it measured 0" in found_by(with_lines(run, WORK, measures_nothing), "F6")["F6"]
    for siblings in ({}, {run.run_id: with_lines(run, WORK, measures_nothing)}):
        found = found_by(replace(later, siblings=siblings), "F6")["F6"]
        assert found.startswith("unverified") and "no earlier attempt here" in found
    # What measured for itself says where its steps stand.
    moved = with_lines(again, "history.jsonl", lambda rows: [row.update(seconds=0.0, flops=1) for row in rows[-3:]])
    assert set(found_by(moved, "H1", "H2")) == {"H1", "H2"}


def test_what_a_killed_attempt_measured_is_not_to_be_had() -> None:
    (rule,) = [rule for rule in ALL if rule.code == "G5"]
    (lost,) = rule.check(second_attempt(run_of("methods", "full"), previous=False))
    assert lost.level == "unverified" and "into a new --out" in (lost.cure or "")


def test_what_is_not_known_here_is_no_reason_to_run_it_again() -> None:
    (rule,) = [rule for rule in ALL if rule.code == "F1"]
    (unknown,) = rule.check(run_of("methods", "spectrum k=0.15 scan=scan"))
    assert unknown.level == "unverified" and (unknown.cure or "").startswith("Nothing to do")


# --- 4 bits -----------------------------------------------------------------------------------------


def as_qlora(run: Dossier) -> Dossier:
    return with_record(run, lambda r: r["spec"]["method"].update(name="qlora"))


def test_qlora_is_beside_the_other_arms_and_starts_from_other_weights() -> None:
    run = run_of("methods", "lora")
    qlora = as_qlora(run)
    assert _block_of(qlora.record) == _block_of(run.record)
    (rule,) = [rule for rule in ALL if rule.code == "P4"]

    def rounded(rows: list[Any]) -> None:
        told = rows[0]["scores"]["log_likelihoods"]
        told |= {choice: value - 0.1 for choice, value in told.items()}

    other = with_lines(qlora, "base_predictions.jsonl", rounded)
    assert not list(rule.check(other)) and list(rule.check(replace(other, record=run.record)))
    last = max(run.mates, key=lambda mate: mate.run_id)
    assert not list(rule.check(replace(last, mates=[other, last])))


def test_qlora_needs_cuda() -> None:
    assert "without CUDA" in found_by(as_qlora(run_of("methods", "lora")), "G2")["G2"]
    assert found_by(as_qlora(on_gpu(300.0)), "G2") == {}


def test_what_failed_before_it_computed_may_say_that_its_torch_is_for_cpus() -> None:
    run = with_record(on_gpu(300.0), lambda r: r["environment"]["packages"].update(torch="2.13.0+cpu"))
    assert "built for CPUs" in found_by(run, "G2")["G2"]
    failed = {"status": "failed", "error": "CUDA is not available"}
    assert "built for CPUs" not in str(found_by(with_record(run, lambda r: r.update(failed)), "G2"))


# --- time -------------------------------------------------------------------------------------------


def test_a_validation_that_is_billed_has_a_window_of_its_own_however_short() -> None:
    edges = [("train", 0.0, 1.0), ("validate", 1.0, 1.05), ("train", 1.05, 2.0)]
    windows = [Window(phase, 1, Sample(a, {}), Sample(b, {})) for phase, a, b in edges]
    clock = _Clock(windows, [0.0])
    step = Step(step=1, phase="train", seconds=1.05, loss=1.0, flops=1, validation={"accuracy": 1.0})
    assert clock.moment(step, True) == 1.05
    assert clock.moment(Step(step=2, phase="train", seconds=1.5, loss=1.0, flops=2), True) == 1.5
    assert _Clock(windows[:1], [0.0]).moment(step, True) is None
