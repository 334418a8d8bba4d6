"""cprbench reproduce: what is refused before anything runs, what is asked for again, and when two runs agree."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cprbench.blueprint.files import sha256_of_file
from cprbench.cli import app
from cprbench.judge.agreement import agreement
from cprbench.render.agreement import text
from cprbench.runs import reproduction
from cprbench.runs.arms import arm_of
from cprbench.runs.planner import Inspected, Planned, run_id
from cprbench.runs.runner import Launcher
from cprbench.runs.store import Run
from cprbench.spec import Environment, Reading, RunRecord, RunSpec, block_seed
from cprbench.tasks import load_task
from tests.conftest import ROOT
from tests.records_factory import make_external, make_predictions, make_record, store_run
from tests.runs.test_planner import inspected

SIZES = {"embed": 52, **{f"{room}.{i}": size for i in range(6) for room, size in (("attn", 3), ("ffn", 5))}}


def found_for(record: RunRecord) -> Inspected:
    """Return what a child finds here of the task and model of a record."""
    assert isinstance(record.spec, RunSpec)
    task = load_task(record.spec.task.name)
    return replace(
        inspected(kind=record.spec.model.kind, train=4000, validation=900),
        **{"task": task, "task_ref": record.spec.task, "model": record.spec.model, "sizes": SIZES},
    )


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def asked(
    method: str = "full",
    *,
    version: str = "0.1.0",
    facts: Mapping[str, Any] | None = None,
    forged: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """Return the record of a run whose id and seed follow from its spec, except where they are `forged`."""
    environment = Environment(hardware_class="here", packages={"cprbench": version}, facts=dict(facts or {}))
    record = make_record(arm=method, environment=environment, **changes)
    assert isinstance(record.spec, RunSpec)
    ref, forged = record.spec.task, forged or {}
    seed = block_seed(ref.name, ref.version, record.spec.model.weights_sha256, record.block)
    own = record.spec.model_copy(update={"seed": forged.get("seed", seed)})
    name = run_id(own, record.block, record.role, version)
    return record.model_copy(update={"spec": own, "run_id": forged.get("run_id", name)})


def stored(folder: Path, record: RunRecord, right: int = 80, **files: str) -> Run:
    told = {"predictions": lines(make_predictions(right)), "base_predictions": lines(make_predictions(50))} | files
    return Run(record, store_run(folder, record, **told))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Planned]:
    """What was run: in place of a child, every run ends as its record says, with the answers of `stored`."""
    done: list[Planned] = []

    def run(self: Launcher, planned: Planned) -> RunRecord:
        done.append(planned)
        record = make_record(arm=planned.arm, block=planned.block, hardware_class="here", role=planned.role)
        record = record.model_copy(update={"spec": planned.spec, "run_id": planned.run_id})
        return stored(self._shelf.root, record).record

    monkeypatch.setattr(Launcher, "run", run)
    monkeypatch.setattr(reproduction, "inspect", lambda task, model, options: seen(found_for, model))
    return done


def seen(of: Callable[[RunRecord], Inspected], model: str) -> Inspected:
    """Return what is found here: the task and weights of the records that `asked` makes."""
    assert model == "minilm"
    return of(asked())


def reproduce(run: Path, out: Path, *words: str) -> Result:
    result = CliRunner().invoke(app, ["reproduce", str(run), "--out", str(out), *words])
    return result


def refused(result: Result) -> str:
    assert result.exit_code == 1
    return str(result.exception)


# --- running again ----------------------------------------------------------------------------------


def test_a_record_is_run_again_under_its_own_id_and_the_agreement_is_printed(
    runs: list[Planned], tmp_path: Path
) -> None:
    run = stored(tmp_path / "mine" / "runs", asked(suite="core", suite_version=1, limits={"max_examples": 1600}))
    told = reproduce(run.folder / "record.json", tmp_path / "again")
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[-1] == "reproduced"
    (planned,) = runs
    assert (tmp_path / "again" / run.record.run_id / "manifest.json").exists()
    assert planned.spec == run.record.spec
    assert (planned.run_id, planned.suite, planned.suite_version) == (run.record.run_id, "core", 1)
    assert planned.limits == {"max_examples": 1600}


def test_json_holds_every_line_and_the_verdict(runs: list[Planned], tmp_path: Path) -> None:
    run = stored(tmp_path / "runs", asked())
    told = json.loads(reproduce(run.folder, tmp_path / "again", "--json").stdout)
    assert told["verdict"] == "reproduced"
    assert told["differs"] == []
    assert told["same_predictions"] == 1.0
    by_name = {line["name"]: line for line in told["lines"]}
    assert by_name["FLOPs"]["agrees"] is True
    assert by_name["device_hours"]["ratio"] == 1.0


def test_a_run_that_comes_out_otherwise_exits_with_1(runs: list[Planned], tmp_path: Path) -> None:
    run = stored(tmp_path / "runs", asked(final=0.99), right=99)
    told = reproduce(run.folder, tmp_path / "again")
    assert told.exit_code == 1
    assert told.output.splitlines()[-1] == "differs: accuracy after"


@pytest.mark.parametrize("fixture", ["board", "quickstart", "suites"])
def test_every_stored_run_is_planned_as_it_was(fixture: str) -> None:
    with zipfile.ZipFile(ROOT / "tests" / "records" / f"{fixture}.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith("record.json")]
        records = [RunRecord.model_validate_json(archive.read(name)) for name in names]
    kinds = set()
    for record in (record for record in records if record.role != "search"):
        assert isinstance(record.spec, RunSpec)
        task = reproduction.task_of(record)
        planned = reproduction.plan_again(record, replace(found_for(record), task=task), {})
        assert (planned.run_id, planned.spec, planned.arm) == (record.run_id, record.spec, arm_of(record.spec).label)
        assert planned.rate_from == record.notes["learning_rate_from"]
        kinds |= {"bill"} if record.spec.selection.settings.get("flops_of") else set()
        kinds |= {"budget"} if record.spec.budget else set()
    assert kinds == ({"bill", "budget"} if fixture == "suites" else set())


@pytest.mark.parametrize("given", [True, False])
def test_a_file_is_found_by_its_content_where_it_is_named_or_beside_the_run(
    given: bool, runs: list[Planned], tmp_path: Path
) -> None:
    place = tmp_path / ("elsewhere" if given else "runs")
    place.mkdir()
    config = place / "renamed.json"
    config.write_text(json.dumps({"peft_type": "IA3", "target_modules": ["query"], "feedforward_modules": []}))
    settings = {"config": "adapter_config.json", "config_sha256": sha256_of_file(config)}
    run = stored(tmp_path / "runs", asked("peft", spec={"settings": settings}))
    words = ["--file", str(config)] if given else []
    assert reproduce(run.folder, tmp_path / "again", *words).exit_code == 0
    assert runs[0].files == {"method": {"config": str(config)}, "selection": {}}
    assert runs[0].spec.method.settings == settings
    config.write_text("{}")
    assert "no file here has its sha256" in refused(reproduce(run.folder, tmp_path / "third", *words))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "failed"}, "failed, so there is nothing to agree with"),
        ({"role": "search"}, "a trial of a search"),
        ({"version": "0.0.9"}, "is of cprbench 0.0.9"),
        ({"forged": {"seed": 8}}, "do not follow from its spec"),
        ({"forged": {"run_id": "0123456789abcdef"}}, "do not follow from its spec"),
        ({"facts": {"processes": 2}}, "took 2 processes"),
        ({"spec": {"task": "unheard-of"}}, "not known here"),
        ({"spec": {"task": "../../tasks/movie-snippets"}}, "not known here"),
        ({"spec": {"task_version": 9}}, r"v9 is not known here \(v1\)"),
        ({"method": "qlora"}, "needs an NVIDIA GPU"),
        ({"spec": {"training": {"optimizer": "adamw8bit"}}}, "no CUDA device here"),
        ({"spec": {"model": "another"}}, "the run's weights are"),
        ({"method": "partial", "spec": {"settings": {"blueprint": "b.json"}}}, "no file here has its sha256"),
    ],
)
def test_what_cannot_be_run_again_here_is_refused_before_anything_runs(
    changes: dict[str, Any], why: str, runs: list[Planned], tmp_path: Path
) -> None:
    run = stored(tmp_path / "runs", asked(**changes))
    assert re.search(why, refused(reproduce(run.folder, tmp_path / "again")))
    assert not runs


def test_an_external_loop_is_refused(runs: list[Planned], tmp_path: Path) -> None:
    run = stored(tmp_path / "runs", make_external())
    assert "an external loop" in refused(reproduce(run.folder, tmp_path / "again"))


def test_other_examples_are_refused(runs: list[Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stored(tmp_path / "runs", asked())
    here = found_for(run.record)
    other = replace(here, task_ref=here.task_ref.model_copy(update={"data_sha256": "e" * 64}))
    monkeypatch.setattr(reproduction, "inspect", lambda *words: other)
    assert "here they are eeee" in refused(reproduce(run.folder, tmp_path / "again"))
    assert not runs


def test_a_record_is_not_compared_with_itself_nor_without_predictions(runs: list[Planned], tmp_path: Path) -> None:
    run = stored(tmp_path / "runs", asked())
    assert "nothing is compared with itself" in refused(reproduce(run.folder, tmp_path / "runs"))
    for text_ in ("", "no json\n", '{"id": 1}\n'):
        bare = stored(tmp_path / f"bare{len(text_)}", asked(), predictions=text_, base_predictions="")
        assert "no predictions that can be read" in refused(reproduce(bare.folder, tmp_path / "again"))
    assert not runs


# --- agreeing ---------------------------------------------------------------------------------------


def pair(tmp_path: Path, right: int = 80, **changes: Any) -> tuple[Run, Run]:
    """Return a stored run, and one like it with `right` right answers of 100 and other changes."""
    one = make_record(notes={"steps": 10}, batches_sha256="b" * 64)
    other = one.model_copy(
        update=changes | {"psi": one.psi.model_copy(update={"final": {"accuracy": right / 100}})},
    )
    return stored(tmp_path / "then", one), stored(tmp_path / "now", other, right=right)


def test_a_score_agrees_within_two_standard_errors_of_the_items(tmp_path: Path) -> None:
    near, far = agreement(*pair(tmp_path / "a", right=82)), agreement(*pair(tmp_path / "b", right=88))
    assert near.verdict == "reproduced"
    assert near.same_predictions == pytest.approx(0.98)
    assert far.verdict == "differs: accuracy after"
    line = {line.name: line for line in far.lines}["accuracy after"]
    # Eight answers of a hundred changed, all to the better: 2 sqrt(0.08 * 0.92 / 100).
    assert line.allowed == pytest.approx(0.0543, abs=0.003)
    assert line.difference == pytest.approx(0.08)
    assert "+0.080, MORE than 0.05" in text(far)


def test_a_score_that_its_own_predictions_do_not_make_differs(tmp_path: Path) -> None:
    one, other = pair(tmp_path)
    boast = one.record.model_copy(update={"psi": one.record.psi.model_copy(update={"final": {"accuracy": 0.9}})})
    assert agreement(Run(boast, one.folder), other).verdict == "differs: accuracy after"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gamma": {"flops": 1001}}, "FLOPs"),
        ({"notes": {"steps": 11}}, "steps"),
        ({"selected_examples": 1599}, "selected examples"),
        ({"trained_parameters": 1}, "trained parameters"),
        ({"total_parameters": 1}, "all parameters"),
        ({"new_head_parameters": 1}, "parameters of a new head"),
        ({"optimizer_state_bytes": None}, "optimizer bytes"),
        ({"trained_submodules": ["ffn.2"]}, "submodules"),
        ({"selection_sha256": "c" * 64}, "selection"),
        ({"batches_sha256": "c" * 64}, "batches"),
    ],
)
def test_counts_and_sets_are_equal_or_named(changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    if "gamma" in changes:
        changes = {"gamma": make_record().gamma.model_copy(update=changes["gamma"])}
    found = agreement(*pair(tmp_path, **changes))
    assert found.verdict == f"differs: {name}"
    assert "DIFFERS" in text(found)


def test_hours_and_memory_are_compared_within_one_hardware_class_only(tmp_path: Path) -> None:
    gamma = make_record().gamma.model_copy(update={"device_hours": 3.0})
    same = agreement(*pair(tmp_path / "a", gamma=gamma))
    other = agreement(*pair(tmp_path / "b", gamma=gamma, environment=Environment(hardware_class="a faster one")))
    assert [found.verdict for found in (same, other)] == ["reproduced"] * 2
    hours = [next(line for line in found.lines if line.name == "device_hours") for found in (same, other)]
    assert [(line.ratio, line.why) for line in hours] == [(3.0, None), (None, "other hardware")]
    assert "run again on a faster one: their hours are not compared" in " ".join(text(other).split())
    assert "kWh" in text(other) and "not measured" in text(other)


def test_other_versions_of_packages_are_told(tmp_path: Path) -> None:
    environment = make_record().environment.model_copy(update={"packages": {"torch": "2.14.0"}})
    found = agreement(*pair(tmp_path, environment=environment))
    assert found.verdict == "reproduced"
    assert "recorded with other versions: torch none then, 2.14.0 now" in text(found)


def test_of_several_attempts_the_last_ones_flops_count(tmp_path: Path) -> None:
    def flops(attempt: int, value: int) -> Reading:
        return Reading(phase="train", attempt=attempt, quantity="flops", value=value, source="counted")

    one, other = pair(tmp_path)
    gamma = one.record.gamma.model_copy(update={"flops": 1600})
    twice = one.record.model_copy(
        update={"attempts": 2, "gamma": gamma, "readings": [flops(1, 600), flops(2, 1000), flops(1, 1)]}
    )
    assert agreement(Run(twice, one.folder), other).verdict == "reproduced"
    assert "are of 2 attempts then and 1 now" in text(agreement(Run(twice, one.folder), other))


def test_a_run_that_fails_here_is_no_reproduction(tmp_path: Path) -> None:
    found = agreement(*pair(tmp_path, status="out_of_memory", error="16 GiB were not enough\x1b[2J"))
    assert found.verdict == "differs: status"
    assert "16 GiB were not enough\\x1b[2J" in text(found)


def test_texts_have_no_predictions_to_be_the_same(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prediction": "", "reference": "", "scores": {"nll": 1.0, "bytes": 4}} for i in range(9)]
    one, other = (
        stored(tmp_path / name, make_record(metric="nll", base=1.0, final=1.0, items=9), predictions=lines(rows))
        for name in ("then", "now")
    )
    assert agreement(one, other).same_predictions is None
    assert "nothing is predicted" in text(agreement(one, other))


def test_an_ending_that_hangs_on_the_machine_is_told(tmp_path: Path) -> None:
    budget = {"budget": {"resource": "device_hours", "amount": 0.5}}
    spec = make_record(spec=budget).spec
    one, other = pair(tmp_path)
    timed = one.record.model_copy(update={"spec": spec})
    assert "it ends by device_hours" in " ".join(agreement(Run(timed, one.folder), other).notes)
