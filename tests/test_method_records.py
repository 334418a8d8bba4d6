"""A smoke record of every method on movie-snippets: made by the command line, read again here."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cprbench.adapt.methods import METHODS
from cprbench.runs.store import load_runs
from cprbench.spec import RunRecord, RunSpec
from tests.conftest import ROOT

#: What this machine cannot run, and why; tests/gpu/test_gpu_methods.py runs it where it can.
NOT_HERE = {"qlora": "4-bit weights need a CUDA GPU"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    folder = tmp_path_factory.mktemp("methods")
    with zipfile.ZipFile(ROOT / "tests" / "records" / "methods.zip") as archive:
        archive.extractall(folder)
    found = load_runs(Path(folder))
    assert not found.damaged
    return {run.record.arm: run.record for run in found.runs}


def test_every_method_has_a_record_but_those_that_need_a_gpu(records: dict[str, RunRecord]) -> None:
    assert {record.spec.method.name for record in records.values()} == set(METHODS) - set(NOT_HERE)
    for record in records.values():
        assert record.status == "ok" and record.role == "smoke"
        assert record.psi.final is not None and record.psi.items == 64
        assert record.notes["prefix_cache"]["mode"] in ("memory", "off")


def test_each_says_exactly_what_trained_and_what_the_optimizer_held(records: dict[str, RunRecord]) -> None:
    for record in records.values():
        assert record.trained_parameters is not None and record.new_head_parameters == 2 * 384 + 2
        assert record.optimizer_state_bytes == 2 * 4 * (record.trained_parameters + record.new_head_parameters)
        assert (record.k_reached is None) or 0 < record.k_reached <= 1
    assert records["full"].trained_parameters == records["full"].total_parameters
    assert records["head"].trained_parameters == 0


def test_flops_are_a_count_or_absent_with_a_reason(records: dict[str, RunRecord]) -> None:
    for arm, record in records.items():
        billed = next(r for r in record.readings if (r.phase, r.quantity) == ("billed", "flops"))
        if "ia3" in arm:
            assert record.gamma.flops is None and billed.why_missing == "adapters of type IA3 have no FLOP count"
        else:
            assert record.gamma.flops == billed.value and billed.value


def test_all_of_them_followed_one_recipe(records: dict[str, RunRecord]) -> None:
    recipes = set()
    for record in records.values():
        assert isinstance(record.spec, RunSpec)
        recipes.add(record.spec.training.model_copy(update={"learning_rate": None}).model_dump_json())
    assert len(recipes) == 1
