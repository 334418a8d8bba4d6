"""Suite stage1 in smoke form, for real: one arm really stops, the other leaves blueprints that its verbs accept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cprbench.blueprint import files
from cprbench.runs.store import Run, load_run, load_runs
from cprbench.tasks import load_suite
from tests.conftest import ROOT

SETTINGS = {
    "training.max_examples": 640,
    "training.eval_items": 48,
    "training.validation_items": 32,
    "select.batches": 3,
}


def cprbench(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "cprbench", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("stage1") / "runs"
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    cprbench("run", "stage1", "--blocks", "1", *settings, "--out", str(folder))
    return {run.record.arm: run for run in load_runs(folder).runs}


def test_both_arms_end_well_and_learn_from_the_same_draw(runs: dict[str, Run]) -> None:
    assert set(runs) == {"full", "full stop=0.1x"}
    for run in runs.values():
        record = run.record
        assert (record.status, record.psi.primary) == ("ok", "bits_per_byte")
        assert record.psi.base is not None and record.psi.final is not None
        assert 7.9 < record.psi.base["bits_per_byte"] < 8.3  # it knows nothing: 257 tokens, one per byte
        assert record.psi.final["bits_per_byte"] < 5
    assert len({json.dumps(run.record.psi.base) for run in runs.values()}) == 1


def test_every_step_of_this_smoke_form_is_validated(runs: dict[str, Run]) -> None:
    rows = runs["full"].lines("history.jsonl")
    assert len(rows) == 20 == sum("validation" in row for row in rows)
    assert rows[-1]["validation"]["bits_per_byte"] < rows[0]["validation"]["bits_per_byte"]


def test_the_rule_stops_one_arm_and_bills_its_validations(runs: dict[str, Run]) -> None:
    stopped, whole = runs["full stop=0.1x"].record, runs["full"].record
    told = stopped.notes["stop"]
    assert told["stopped_at"] is not None and told["step"] < told["of_steps"] == 20 == whole.notes["steps"]
    seconds = stopped.seconds
    assert seconds["billed"] == pytest.approx((seconds["train"] or 0) + (seconds["validate"] or 0))
    assert whole.seconds["billed"] == whole.seconds["train"]
    shared = min(told["step"], 20)
    losses = [[row["loss"] for row in run.lines("history.jsonl")][:shared] for run in runs.values()]
    assert losses[0] == losses[1]


def test_the_verbs_of_blueprints_accept_what_the_run_left(runs: dict[str, Run]) -> None:
    folder = runs["full"].folder
    load_run(folder)  # every file is as the manifest says
    paths = [str(folder / name) for name in runs["full"].record.notes["blueprints"]]
    assert [files.read(path).training_checkpoint for path in paths] == [0.5, 0.8, 1.0]
    valid = cprbench("blueprint", "validate", *paths).splitlines()
    assert [line for line in valid if not line.partition(": ")[2].startswith("lacks")] == [f"{p}: valid" for p in paths]
    assert "at 50 % of its training" in cprbench("blueprint", "show", paths[0])
    found = json.loads(cprbench("blueprint", "compare", paths[0], paths[2], "--json"))
    assert found["correlation"] == pytest.approx(runs["full"].record.notes["blueprint_ranks"]["0.50-1.00"])


def test_the_suite_is_one_recipe_with_enough_validations_for_its_rule() -> None:
    suite = load_suite("stage1")
    rules = [arm.stop for arm in suite.arm if arm.stop is not None]
    assert len(rules) == 1 and suite.training["schedule"] == "constant"
    assert int(str(suite.training["validations"])) >= 2 * (rules[0].window + rules[0].patience)
    assert Path(ROOT / "tasks" / f"{suite.tasks[0]}.toml").exists()
