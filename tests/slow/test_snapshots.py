"""Runs that write blueprints on the way, for real: training does not notice, nobody is billed, ranks are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.random_models import folder_of
from cprbench.blueprint import files
from cprbench.blueprint.drift import compare
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import SpecError
from cprbench.runs.arms import arms_of
from cprbench.runs.planner import plan, plan_search, run_id
from cprbench.runs.runner import Options, run
from cprbench.runs.store import Run, load_run
from cprbench.spec import ArmSpec, RunRecord, RunSpec, SuiteSpec
from cprbench.surveys.snapshots import step_of
from tests.conftest import SMALL
from tests.runs.test_planner import inspected
from tests.test_sweeps import load

SHARES = (0.4, 1.0)
TEXT = {"max_tokens": 48, "learning_rate": 2e-3, "select_batches": 3, "select_batch_size": 8, "schedule": "constant"}
Pair = dict[bool, Run]


def suite(arm: ArmSpec, model: str = "random:llama-tiny") -> SuiteSpec:
    return SuiteSpec(tasks=["kjv-verses"], models=[model], blocks=1, arm=[arm])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same run with blueprints on the way and without: some layers are frozen, and those that train drop out."""
    folder = tmp_path_factory.mktemp("snapshots") / "runs"
    model = folder.parent / "dropping"
    shutil.copytree(folder_of("random:llama-tiny"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    found = {}
    for shares in (SHARES, ()):
        arm = ArmSpec(method="last-layers", settings={"k": 0.5}, snapshots=shares)
        options = Options(out=folder)
        done = run(suite(arm, f"random:{model}"), options=options, settings={**SMALL, **TEXT})  # type: ignore[dict-item]
        assert not done.failed, done.failed[0].error
        found[bool(shares)] = load_run(folder / done.records[0].run_id)
    return found


@pytest.fixture(scope="module")
def blueprints(runs: Pair) -> dict[float, Blueprint]:
    folder = runs[True].folder / "blueprints"
    return {share: files.read(folder / f"{share:.2f}.json") for share in SHARES}


def test_the_files_stand_in_the_runs_folder_and_in_its_manifest(runs: Pair) -> None:
    names = [f"blueprints/{share}.json" for share in ("0.40", "1.00")]
    listed = json.loads((runs[True].folder / "manifest.json").read_text())["files"]
    assert [name for name in listed if "/" in name] == names == runs[True].record.notes["blueprints"]
    assert not (runs[False].folder / "blueprints").exists()
    assert "blueprints" not in runs[False].record.notes
    assert "snapshots_missed" not in runs[True].record.notes


def test_each_is_of_the_model_as_far_as_it_had_come(runs: Pair, blueprints: dict[float, Blueprint]) -> None:
    record = runs[True].record
    assert isinstance(record.spec, RunSpec)
    assert record.notes["steps"] == 8
    for (share, found), step in zip(blueprints.items(), (4, 8), strict=True):
        assert found.training_checkpoint == share
        assert found.model is not None and found.measurement is not None
        assert found.model.revision == f"step {step} of 8, seed {record.spec.seed}"
        assert found.model.parameters == record.total_parameters
        assert found.model.source == "random:dropping"  # and not where it lies on this machine
        assert (found.measurement.batches, found.measurement.batch_size) == (3, 8)
        assert [domain.split for domain in found.domains] == ["validation"]
    hashes = {found.model.weights_sha256 for found in blueprints.values() if found.model is not None}
    assert len(hashes | {record.spec.model.weights_sha256}) == 3
    early, late = ([layer.gradient_norm for layer in found.layers] for found in blueprints.values())
    assert early != late


def test_the_notes_tell_how_far_ranks_held_as_a_comparison_of_the_files_does(
    runs: Pair, blueprints: dict[float, Blueprint]
) -> None:
    told = runs[True].record.notes["blueprint_ranks"]
    assert told == {"0.40-1.00": pytest.approx(compare(blueprints[0.4], blueprints[1.0]).correlation)}


def test_training_goes_on_as_if_nothing_had_been_measured(runs: Pair) -> None:
    with_them, without = (run.lines("history.jsonl") for run in (runs[True], runs[False]))
    assert [row["loss"] for row in with_them] == [row["loss"] for row in without]
    assert [row["flops"] for row in with_them] == [row["flops"] for row in without]
    measured, plain = runs[True].record, runs[False].record
    assert measured.psi == plain.psi
    assert measured.trained_parameters == plain.trained_parameters
    assert 0 < (plain.trained_parameters or 0) < (plain.total_parameters or 0)  # or freezing would not be seen


def test_a_blueprint_costs_what_it_says_and_none_of_it_is_billed(
    runs: Pair, blueprints: dict[float, Blueprint]
) -> None:
    measured, plain = runs[True].record, runs[False].record
    assert measured.gamma.flops == plain.gamma.flops
    assert measured.seconds["billed"] == measured.seconds["train"]

    def scored(record: RunRecord, quantity: str) -> Any:
        return next(r.value for r in record.readings if (r.phase, r.quantity) == ("score", quantity))

    made = [found.made for found in blueprints.values()]
    assert all(making is not None and making.flops for making in made)
    spent = sum(making.flops or 0 for making in made if making is not None)
    assert scored(measured, "flops") - scored(plain, "flops") == spent
    assert scored(measured, "seconds") > sum(making.seconds or 0 for making in made if making is not None)


def test_a_file_says_why_it_has_no_k_star_and_what_was_not_metered(blueprints: dict[float, Blueprint]) -> None:
    found = blueprints[1.0]
    assert found.k_star is None and found.k_star_why == "what a step costs by how much trains was not measured"
    assert all(layer.k_star is None and layer.k_star_why for layer in found.layers)
    assert found.made is not None
    assert set(found.made.why_missing) == {"device_hours", "energy_kwh", "memory_gb_hours", "co2_kg"}


def test_snapshots_are_part_of_a_runs_id_and_their_absence_is_not(runs: Pair) -> None:
    specs = {has: found.record.spec for has, found in runs.items()}
    assert isinstance(specs[True], RunSpec) and isinstance(specs[False], RunSpec)
    ids = {has: run_id(spec, 0, "smoke") for has, spec in specs.items() if isinstance(spec, RunSpec)}
    assert ids == {has: found.record.run_id for has, found in runs.items()}
    assert ids[True] != ids[False]
    stored = load("q-sweep")  # from before arms could have any
    assert [run_id(record.spec, record.block, record.role) for record in stored] == [r.run_id for r in stored]


def test_a_run_takes_the_snapshots_of_its_arm_and_a_trial_of_a_search_takes_none() -> None:
    asked, found = suite(ArmSpec(method="full", snapshots=SHARES)), [inspected()]
    (planned,) = plan(asked, found, arms_of(asked.arm), settings={})
    (trials,) = plan_search(asked, found, arms_of(asked.arm), settings={}, rates={"": [1e-4, 1e-3]}).values()
    assert planned.spec.snapshots == SHARES
    assert [trial.spec.snapshots for trial in trials] == [(), ()]


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ({"method": "lora"}, "snapshots are of a model's own submodules"),
        ({"method": "full", "budget": "device_hours=0.1"}, "nobody knows its steps beforehand"),
        ({"method": "full", "stop": {"eta": "0.1x"}}, "a stop rule may end it before them"),
    ],
)
def test_an_arm_that_cannot_have_snapshots_is_refused(arm: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        arms_of([ArmSpec(**arm, snapshots=SHARES)])


@pytest.mark.parametrize("shares", [(0.8, 0.5), (0.5, 0.5), (0.0,), (1.2,), (0.505,)])
def test_shares_that_do_not_rise_in_whole_per_cents_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"shares of training rise|greater than 0|less than or equal to 1"):
        ArmSpec(method="full", snapshots=shares)


def test_the_step_of_a_share_is_the_first_at_which_it_is_done() -> None:
    assert [step_of(percent / 100, 100) for percent in range(1, 101)] == list(range(1, 101))  # floats say 8 for 0.07
    assert [step_of(share, 8) for share in (0.01, 0.4, 0.5, 0.51, 1.0)] == [1, 4, 4, 5, 8]


def test_a_snapshot_before_anyone_knew_the_number_of_steps_is_told_as_missed(minilm2: Path, tmp_path: Path) -> None:
    arm = ArmSpec(
        method="full",
        selection="random",
        selection_settings={"q": 0.5, "warm": True},
        budget="flops=2e11",  # type: ignore[arg-type]
        snapshots=(0.01, 1.0),
    )
    asked = SuiteSpec(tasks=["movie-snippets"], models=[str(minilm2)], blocks=1, arm=[arm])
    (record,) = run(asked, options=Options(out=tmp_path / "runs"), settings=SMALL).records  # type: ignore[arg-type]
    assert record.status == "ok", record.error
    steps = record.notes["steps"]
    assert record.notes["warmup_steps_of_head"] == 2 < steps <= 200
    assert record.notes["blueprints"] == ["blueprints/1.00.json"]
    told = {"0.01": f"step {step_of(0.01, steps)} of {steps} was taken before the number of steps was known"}
    assert record.notes["snapshots_missed"] == told


def test_several_processes_take_no_snapshots(tmp_path: Path) -> None:
    arm = ArmSpec(method="full", snapshots=SHARES)
    with pytest.raises(SpecError, match="runs in one process"):
        run(suite(arm), options=Options(out=tmp_path / "runs", processes=2))
