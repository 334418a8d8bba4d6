"""Runs on chosen examples, for real: what choosing costs is billed, once it was measured as well as the first time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cprbench.adapt import models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import load_dataset, sample_by_label
from cprbench.adapt.gradients import influence
from cprbench.adapt.selection import scores
from cprbench.render.formats.writing import render_report
from cprbench.runs.runner import Options, run
from cprbench.sessions.score_cache import CACHED, FOLDER, USED
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec
from cprbench.surveys import data_scores
from cprbench.tasks import load_task
from tests.conftest import SMALL

ALL = {"max_examples": 64, "epochs": 2}
Records = dict[str, RunRecord]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("selected") / "runs"


@pytest.fixture(scope="module")
def records(folder: Path, tiny_llama: Path) -> Records:
    """Influence at two shares, and the two baselines of the smaller one."""
    arms = [
        ArmSpec(method="full", selection="influence", selection_settings={"q": 0.25}, baselines=True),
        ArmSpec(method="full", selection="influence", selection_settings={"q": 0.5}),
    ]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=arms)
    done = run(suite, options=Options(out=folder), settings={**SMALL, **ALL})
    assert not done.failed and not done.skipped
    return {record.arm: record for record in done.records}


def billed(record: RunRecord, quantity: str, *, cached: bool | None = None) -> float:
    found = [
        r.value
        for r in record.readings
        if (r.phase, r.quantity) == ("select", quantity) and (cached is None or (CACHED in r.flags) == cached)
    ]
    return float(sum(value for value in found if value is not None))


def test_a_run_trains_on_the_chosen_share_and_its_steps_shrink_with_it(records: Records) -> None:
    quarter, half = records["full selection=influence q=0.25"], records["full selection=influence q=0.5"]
    assert (quarter.selected_examples, half.selected_examples) == (16, 32)
    assert (quarter.notes["steps"], half.notes["steps"]) == (4, 8)
    assert (quarter.notes["examples_trained_on"], half.notes["examples_trained_on"]) == (16, 32)
    assert quarter.spec.selection.settings["q"] == 0.25
    assert quarter.notes["selection"]["q_reached"] == 0.25
    assert quarter.selection_sha256 != records["full selection=random q=0.25 warm=true"].selection_sha256


def test_choosing_is_billed_as_select_and_random_choice_is_not(records: Records) -> None:
    chosen, drawn = records["full selection=influence q=0.25"], records["full selection=random q=0.25 warm=true"]
    assert (chosen.seconds["select"] or 0) > 0 and (chosen.gamma.flops or 0) > (drawn.gamma.flops or 0)
    assert billed(drawn, "flops") == 0  # a causal model has no head to warm
    parts = (chosen.seconds["select"] or 0) + (chosen.seconds["train"] or 0)
    assert chosen.seconds["billed"] == pytest.approx(parts)


def test_scores_that_an_earlier_run_measured_are_billed_again(records: Records, folder: Path) -> None:
    runs = [r for r in records.values() if r.spec.selection.name == "influence"]
    first, second = sorted(runs, key=lambda r: billed(r, "flops", cached=True))
    assert billed(first, "flops", cached=True) == 0 < billed(first, "flops")
    assert billed(second, "flops", cached=False) == 0
    assert billed(second, "flops") == billed(first, "flops")
    # The window of scoring alone is what is taken over: what surrounds it was this run's own.
    assert 0 < billed(second, "seconds", cached=True) <= billed(first, "seconds")
    assert second.seconds["select"] == pytest.approx(billed(second, "seconds"))
    assert second.seconds["billed_last_attempt"] == pytest.approx(second.seconds["billed"])
    for record in (first, second):
        train = next(r.value for r in record.readings if (r.phase, r.quantity) == ("train", "flops"))
        assert record.gamma.flops == billed(record, "flops") + (train or 0)
    assert first.notes["cross_influence"]["sums"] == second.notes["cross_influence"]["sums"]
    assert len(list((folder / FOLDER).iterdir())) == 1
    assert not list(folder.glob(f"*/{USED}"))  # the record's folder holds what a record is made of


def test_a_run_that_meets_another_arm_s_bill_spends_as_much_within_a_step(records: Records) -> None:
    followed = records["full selection=influence q=0.25"]
    follower = records["full selection=random flops_of=influence q=0.25 warm=true"]
    assert follower.spec.selection.settings["flops"] == followed.gamma.flops
    assert followed.gamma.flops is not None and follower.gamma.flops is not None
    step = max(1, follower.gamma.flops // follower.notes["steps"])
    assert followed.gamma.flops - 2 * step <= follower.gamma.flops <= followed.gamma.flops
    assert (follower.selected_examples or 0) > (followed.selected_examples or 0)


def test_a_sweep_that_is_asked_for_again_is_reused_its_followers_too(
    records: Records, folder: Path, tiny_llama: Path
) -> None:
    arms = [ArmSpec(method="full", selection="influence", selection_settings={"q": 0.25}, baselines=True)]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=arms)
    again = run(suite, options=Options(out=folder), settings={**SMALL, **ALL})
    assert (again.reused, len(again.records)) == (3, 3)


def test_a_follower_of_an_arm_that_failed_is_not_run_and_named(tmp_path: Path, tiny_llama: Path) -> None:
    predicted = {"q": 0.25, "features": "cheap", "floor": 1.0}  # nothing reaches it, so the run fails
    arms = [ArmSpec(method="full", selection="predicted", selection_settings=predicted, baselines=True)]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=arms)
    done = run(suite, options=Options(out=tmp_path), settings={**SMALL, "max_examples": 32})
    failed = next(r for r in done.records if r.status == "failed")
    assert "held-out Spearman" in (failed.error or "") and "selection.floor" in (failed.error or "")
    assert (failed.seconds["select"] or 0) > 0 and failed.gamma.flops  # choosing failed, and was paid for
    assert list(done.skipped) == [f"full selection=random flops_of={failed.arm.partition('=')[2]} warm=true, block 0"]


def test_a_file_of_scores_holds_what_the_engine_gives_and_a_run_that_takes_it_measures_nothing(
    tmp_path: Path, tiny_llama: Path, records: Records
) -> None:
    out = tmp_path / "scores.parquet"
    data_scores.score(str(tiny_llama), "movie-snippets", out, max_examples=64, precision="fp32")
    found = scores.read(out)
    loaded = models.load(resolve(str(tiny_llama), offline=True), None, 0, "sdpa")
    chosen = sample_by_label(load_dataset(load_task("movie-snippets")).train, 64, "movie-snippets/train")
    items = objectives.tokenize(loaded, chosen, 48)
    engine = training.Engine.start("fp32", bf16_is_fast=False)
    exact = influence.measure(loaded, objectives.objective_for(loaded), engine, items, 16, lambda *seen: None)
    assert exact.norms is not None and found.ids == [example.id for example in chosen]
    assert found.cells == list(loaded.partition.sizes)  # in partition order, each with its own numbers
    for column, cell in enumerate(loaded.partition.sizes):
        np.testing.assert_allclose(found.norms[:, found.cells.index(cell)], exact.norms[:, column], rtol=1e-3)
    np.testing.assert_allclose(found.influence, exact.influence, rtol=1e-3)
    settings = {"q": 0.25, "scores": str(out)}
    arms = [ArmSpec(method="full", selection="influence", selection_settings=settings)]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=arms)
    (record,) = run(suite, options=Options(out=tmp_path / "runs"), settings={**SMALL, **ALL}).records
    measured = records["full selection=influence q=0.25"]
    assert record.selection_sha256 == measured.selection_sha256
    assert (record.gamma.flops or 0) < (measured.gamma.flops or 0)
    assert record.spec.selection.settings["scores"] == "scores.parquet"
    told = record.notes["selection"]["scores"]
    assert told["made"]["flops"] == found.info.made.flops  # type: ignore[union-attr]
    assert "making them cost" in render_report([record]) and "Not billed to these runs" in render_report([record])
