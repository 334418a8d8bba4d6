"""A submission is what its raw files say: real runs pass every rule, and an edit of any of them does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cprbench.errors import SubmissionError
from cprbench.submissions.packing import pack
from cprbench.submissions.rules import RULES
from cprbench.submissions.validation import BUNDLE_RULES, validate
from tests.conftest import ROOT
from tests.records_factory import make_external, store_run
from tests.submissions.altering import edit_lines, edit_record, rehash, run_of, told

PARTIAL = "partial k=0.15"


@pytest.mark.parametrize("name", ["quickstart", "board"])
def test_real_runs_are_consistent_under_every_rule(packed: Callable[[str], Path], name: str) -> None:
    entry = validate(packed(name))
    assert (entry.status, [f for f in entry.findings if f.level != "unranked"]) == ("consistent", []), told(entry)
    assert set(entry.checked) == {"B1", "B2", *(rule.code for rule in RULES)}
    assert entry.rows


def test_of_every_method_only_what_a_scan_or_a_foreign_adapter_trained_is_left_open(
    packed: Callable[[str], Path],
) -> None:
    entry = validate(packed("methods"))
    assert (entry.status, {(f.code, f.level) for f in entry.findings if f.level != "unranked"}) == (
        "unverified",
        {("F1", "unverified")},
    ), told(entry)
    open_ = {row.method for row in entry.rows if row.tier == "self-reported"}
    assert open_ == {"spectrum", "peft"}


def test_the_psi_of_a_loop_that_is_not_ours_is_its_authors_word(tmp_path: Path, tasks: Path) -> None:
    record = make_external()
    store_run(tmp_path / "runs", record)
    pack(tmp_path / "runs", tmp_path / "theirs", name="theirs", authors=["Ada"])
    entry = validate(tmp_path / "theirs")
    assert entry.status in ("unverified", "contradicted")
    assert "psi is its author's word" in told(entry)


def test_the_rules_have_codes_of_their_own_and_say_what_to_do() -> None:
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert all(rule.title and rule.cure and not rule.cure.endswith(".") for rule in RULES)


def set_to(*path: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("I1", set_to("block", value=7)),
        ("I1", set_to("role", value="smoke")),
        ("I1", set_to("spec", "training", "epochs", value=3)),
        ("I1", set_to("previous", value="0123456789abcdef")),
        ("I2", set_to("spec", "seed", value=1)),
        ("I3", set_to("spec", "task", "data_sha256", value="0" * 64)),
        ("I3", set_to("psi", "primary", value="nll")),
        ("I4", set_to("spec", "model", "parameters", value=1_000_000)),
        ("I4", set_to("spec", "model", "label", value="a better model")),
        ("I4", set_to("spec", "model", "config", "vocab_size", value=100)),
        ("I5", set_to("arm", value="full")),
        ("I5", set_to("spec", "method", "settings", "k", value=0.1)),
        ("I5", set_to("spec", "method", "name", value="no-such-method")),
        ("I5", set_to("blueprint", value="0" * 64)),
        ("I6", set_to("limits", "eval_items", value=50)),
        ("I6", set_to("suite_version", value=2)),
        ("I6", set_to("suite", value=None)),
        ("I7", set_to("notes", "learning_rate_from", value="searched")),
        ("I7", set_to("notes", "learning_rate_from", value="wherever")),
        ("I7", set_to("spec", "training", "learning_rate", value=0.5)),
        ("I8", set_to("environment", "packages", "torch", value="?")),
        ("I8", set_to("environment", "commit", value="main")),
        ("P2", set_to("psi", "final", "accuracy", value=0.99)),
        ("P2", set_to("psi", "base", "nll", value=0.1)),
        ("P2", set_to("psi", "items", value=99)),
        ("P2", set_to("psi", "final", value=None)),
        ("P5", set_to("selected_examples", value=3)),
        ("P5", set_to("selection_sha256", value="0" * 64)),
        ("P6", set_to("batches_sha256", value="0" * 64)),
    ],
)
def test_a_record_that_is_edited_and_hashed_again_contradicts_itself(
    submission: Path, code: str, change: Callable[[Any], None]
) -> None:
    edit_record(run_of(submission, PARTIAL, 1), change)
    entry = validate(submission)
    assert entry.status in ("contradicted", "unverified"), told(entry)
    assert code in {finding.code for finding in entry.findings}, told(entry)
    assert not entry.rows or entry.status == "unverified"


def right(rows: list[Any]) -> None:
    """Make every prediction right, as somebody would who is sure of his method."""
    for row in rows:
        row["prediction"] = row["reference"]


def righter(rows: list[Any]) -> None:
    """The same with likelihoods that say so."""
    for row in rows:
        told = row["scores"]["log_likelihoods"]
        best = max(told.values())
        other = next(choice for choice, value in told.items() if value != best or choice != row["reference"])
        told[row["reference"]], told[other] = best, min(told.values())
        row["prediction"], row["scores"]["nll"] = row["reference"], -told[row["reference"]]


def swap_labels(rows: list[Any]) -> None:
    for row in rows:
        row["reference"] = row["prediction"]
        row["scores"]["nll"] = -row["scores"]["log_likelihoods"][row["prediction"]]


@pytest.mark.parametrize(
    ("code", "name", "change"),
    [
        ("P1", "predictions.jsonl", right),
        ("P1", "predictions.jsonl", lambda rows: rows[3]["scores"].update(nll=0.1)),
        ("P1", "predictions.jsonl", lambda rows: rows[3].update(extra=1)),
        ("P1", "predictions.jsonl", lambda rows: rows[3]["scores"]["log_likelihoods"].update(positive=-20.0)),
        ("P2", "predictions.jsonl", righter),
        ("P3", "predictions.jsonl", swap_labels),
        ("P3", "predictions.jsonl", lambda rows: rows.pop()),
        ("P3", "predictions.jsonl", lambda rows: rows.reverse()),
        ("P3", "base_predictions.jsonl", lambda rows: rows[0].update(id="another")),
        ("P4", "base_predictions.jsonl", righter),
    ],
)
def test_predictions_that_are_edited_are_found_out(
    submission: Path, code: str, name: str, change: Callable[[list[Any]], Any]
) -> None:
    edit_lines(run_of(submission, PARTIAL, 1), name, change)
    entry = validate(submission)
    assert entry.status == "contradicted"
    assert code in {finding.code for finding in entry.findings}, told(entry)


def test_what_is_not_named_by_its_manifest_makes_a_submission_invalid(submission: Path) -> None:
    run = run_of(submission, "full", 1)
    (run / "record.json").write_text((run / "record.json").read_text() + " ")
    entry = validate(submission)
    assert (entry.status, entry.rows) == ("invalid", [])
    assert "manifest says" in told(entry)
    rehash(run)
    assert validate(submission).status == "consistent"
    (run / "work.jsonl").unlink()
    assert "lists other files" in told(validate(submission))
    shutil.rmtree(submission / "runs")
    assert "holds no run" in told(validate(submission))


def test_a_submission_without_its_file_or_with_an_unknown_key_says_so(submission: Path) -> None:
    file = submission / "submission.toml"
    text = file.read_text()
    file.write_text(text + 'licence = "MIT"\n')
    assert "did you mean" in told(validate(submission)).lower()
    file.write_text(text.replace("Ada Lovelace", "Ada\\u202eLovelace"))
    assert validate(submission).status == "invalid"
    file.unlink()
    assert "submission.toml is missing" in told(validate(submission))
    with pytest.raises(SubmissionError, match="no such submission"):
        validate(submission / "nowhere")


def test_references_that_are_not_here_leave_a_submission_unverified_and_it_does_not_rank(
    submission: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CPRBENCH_CACHE", str(tmp_path / "empty"))
    entry = validate(submission, offline=True)
    assert (entry.status, {row.tier for row in entry.rows}) == ("unverified", {"self-reported"})
    assert not any(row.ranked for row in entry.rows)
    assert any(f.code == "P3" and "--data" in f.cure for f in entry.findings)


def test_a_trial_that_is_left_out_is_told(submission: Path) -> None:
    run = run_of(submission, "full", 1)
    rate = json.loads((run / "record.json").read_text())["spec"]["training"]["learning_rate"]
    search = {"trials": 1, "runs": ["0123456789abcdef"], "learning_rates": [rate], "best_at_edge": False}

    def searched(data: Any) -> None:
        data["search"] = search
        data["notes"]["learning_rate_from"] = "searched"

    edit_record(run, searched)
    assert "trial 0123456789abcdef of its search is not in the submission" in told(validate(submission))
    search |= {"trials": 0, "runs": []}
    edit_record(run, searched)
    assert "0 trials of 1 rates are no search" in told(validate(submission))
    search |= {"trials": 1, "runs": [run_of(submission, "lora", 1).name]}
    edit_record(run, searched)
    assert "did not try" in told(validate(submission))


def test_validating_imports_no_torch_and_runs_nothing(packed: Callable[[str], Path], tasks: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cprbench.submissions.validation import validate; "
        f"entry = validate(Path({str(packed('board'))!r})); "
        "print(entry.status, [n for n in 'torch transformers pandas sklearn matplotlib'.split() if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "consistent []\n"


def test_the_documents_list_the_rules() -> None:
    text = (ROOT / "docs/submissions.md").read_text(encoding="utf-8")
    table = text.split("<!-- rules -->\n")[1].split("<!-- /rules -->")[0]
    rows = [f"| {rule.code} | {rule.title} |\n" for rule in (*BUNDLE_RULES, *RULES)]
    assert table == "| rule | what must hold of every run |\n|---|---|\n" + "".join(rows)
