"""The five suites as they ran here in a small form, read as `cprbench check` reads them: real runs in one folder."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from cprbench.blueprint import files
from cprbench.judge.claims import check, load_claims
from cprbench.judge.cpr import compare
from cprbench.judge.evidence import Evidence, gather
from cprbench.judge.verdicts import exit_code
from cprbench.render.formats.writing import render_report
from cprbench.render.verdicts import text
from cprbench.spec import RunRecord
from tests.conftest import ROOT

SUITES = ("k-sweep", "q-sweep", "k-by-q", "equal-budget", "stage1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suites")
    with zipfile.ZipFile(ROOT / "tests" / "records" / "suites.zip") as archive:
        archive.extractall(path)
    return path


@pytest.fixture(scope="module")
def evidence(folder: Path) -> Evidence:
    return gather(folder)


def of_arm(evidence: Evidence, arm: str, suite: str) -> RunRecord:
    (found,) = (r for r in evidence.records if (r.arm, r.suite) == (arm, suite))
    return found


def test_every_suite_ran_to_its_end_and_sweeps_share_the_runs_that_they_have_in_common(evidence: Evidence) -> None:
    assert not evidence.damaged
    assert {r.suite for r in evidence.records} == set(SUITES)
    assert {(r.role, r.status) for r in evidence.records} == {("smoke", "ok")}
    groups = {tuple(group.key["suites"]): len(group.arms) for group in compare(evidence.records)}
    assert groups == {
        ("k-by-q v1", "k-sweep v1", "q-sweep v2"): 44,
        ("equal-budget v1",): 17,
        ("stage1 v1",): 2,
    }


def test_every_claim_of_the_paper_gets_a_verdict_or_a_precise_reason_why_it_is_open(evidence: Evidence) -> None:
    claims = load_claims("paper")
    verdicts = check(claims, evidence)
    assert [verdict.id for verdict in verdicts] == [claim.id for claim in claims]
    assert exit_code(verdicts) == 2
    for claim, verdict in zip(claims, verdicts, strict=True):
        assert (verdict.verdict, bool(verdict.command)) == ("open", True)
        if claim.suite in SUITES and verdict.value is not None:
            assert verdict.reason.startswith("a smoke test:")  # with its number, which decides nothing
        else:
            assert verdict.reason.startswith(("could not be measured:", "there ", "arm ", f"{claim.arm!r} is below"))
    told = Counter(verdict.value is not None for verdict in verdicts)
    assert told[True] >= 20  # one small block has few gains above zero, and no file about models lies here
    assert max(map(len, text(verdicts).splitlines())) <= 80


def test_runs_at_equal_budgets_billed_what_they_were_given_and_never_more(evidence: Evidence) -> None:
    full = of_arm(evidence, "full", "equal-budget").gamma.flops or 0
    budgets = [r for r in evidence.records if r.spec.budget is not None]
    assert len(budgets) == 15
    for record in budgets:
        assert record.spec.budget is not None
        wanted = (record.spec.budget.share or 0) * full
        assert 0.9 * wanted < (record.gamma.flops or 0) <= wanted
    same = of_arm(evidence, "full budget=1x full", "equal-budget")
    assert same.batches_sha256 == of_arm(evidence, "full", "equal-budget").batches_sha256


def test_the_table_of_the_docs_is_that_of_these_runs(evidence: Evidence) -> None:
    shown = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
    full = of_arm(evidence, "full", "equal-budget").gamma.flops or 0
    stems = {"full": "full", "lora": "lora", "partial k=0.15": "partial k=0.15"}
    stems |= {
        f"{n} q=0.3": f"full selection={n} q=0.3" + " warm=true" * (n == "random") for n in ("influence", "random")
    }
    for name, stem in stems.items():
        line = f"{name:<16}"
        for share in ("0.25x", "0.5x", "1x"):
            run = of_arm(evidence, f"{stem} budget={share} full", "equal-budget")
            assert run.psi.final is not None
            share_billed = (run.gamma.flops or 0) / full
            line += f"  {run.psi.final['accuracy']:.3f}  {share_billed:.3f}x {run.notes['steps']:5d}"
        assert line in shown


def test_the_decoder_stopped_by_its_rule_paid_for_its_validations_and_left_blueprints(
    evidence: Evidence, folder: Path
) -> None:
    whole, stopped = (of_arm(evidence, arm, "stage1") for arm in ("full", "full stop=0.1x"))
    assert stopped.notes["stop"]["step"] < stopped.notes["stop"]["of_steps"] == whole.notes["steps"]
    billed = {name: r.seconds["billed"] or 0 for name, r in (("whole", whole), ("stopped", stopped))}
    assert billed["stopped"] == pytest.approx(
        (stopped.seconds["train"] or 0) + (stopped.seconds["validate"] or 0), 1e-3
    )
    assert billed["whole"] == pytest.approx(whole.seconds["train"] or 0, rel=1e-3)
    taken = [files.read(path) for path in sorted((folder / whole.run_id / "blueprints").glob("*.json"))]
    assert [blueprint.training_checkpoint for blueprint in taken] == [0.5, 0.8, 1.0]
    assert set(whole.notes["blueprint_ranks"]) == {"0.50-0.80", "0.50-1.00", "0.80-1.00"}


def test_the_report_of_all_of_them_renders(evidence: Evidence) -> None:
    report = render_report(evidence.records, {}, evidence)
    assert report.count("**Against billed FLOPs**") == 3
    assert "suites k-by-q v1, k-sweep v1, q-sweep v2" in report
