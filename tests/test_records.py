"""Real records of the quickstart: everything derived in them is recomputed from their raw files, without torch."""

from __future__ import annotations

import io
import zipfile

import pytest
from rich.console import Console

from cprbench.adapt.scoring import Prediction, psi
from cprbench.judge.cpr import compare
from cprbench.meters.flops import Pass, Trained, count
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.render.terminal import print_groups
from cprbench.runs.store import Run, load_runs
from cprbench.spec import BILLED_PHASES, RunSpec, block_seed
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("quickstart")
    with zipfile.ZipFile(ROOT / "tests" / "records" / "quickstart.zip") as archive:
        archive.extractall(folder)
    found = load_runs(folder)
    assert not found.damaged
    assert len(found.runs) == 8
    return found.runs


def test_scores_are_those_of_the_predictions(runs: list[Run]) -> None:
    for run in runs:
        for name, told in (
            ("base_predictions.jsonl", run.record.psi.base),
            ("predictions.jsonl", run.record.psi.final),
        ):
            predictions = [Prediction.from_row(row) for row in run.lines(name)]
            assert len({p.id for p in predictions}) == run.record.psi.items == 800
            assert psi(predictions, ["accuracy", "macro_f1", "nll"]) == told


def test_flops_are_those_of_the_passes_that_ran(runs: list[Run]) -> None:
    for run in runs:
        record, notes = run.record, run.record.notes
        assert isinstance(record.spec, RunSpec)
        head = (record.new_head_parameters or 0) > 0
        trained = Trained(frozenset(record.trained_submodules), head, notes.get("adapters"))
        model = record.spec.model
        passes = [Pass.parse(row) for row in run.lines("work.jsonl")]
        found = count(model.config, model.kind, notes["labels"], trained, passes)
        assert record.gamma.flops == sum(f.total for (phase, _), f in found.items() if phase in BILLED_PHASES)
        by_phase = {r.phase: r for r in record.readings if r.quantity == "flops"}
        for (phase, _), flops in found.items():
            assert by_phase[phase].value == flops.total  # type: ignore[index]
            assert by_phase[phase].detail["padding"] == flops.padding  # type: ignore[index]


def test_readings_seconds_and_gamma_are_those_of_the_samples(runs: list[Run]) -> None:
    for run in runs:
        again = account(Trace.load(run.folder / "samples.jsonl"), "not counted here", cores=2, accelerators=0)
        record = run.record
        assert again.seconds == record.seconds
        assert again.gamma.memory_gb_hours == record.gamma.memory_gb_hours
        assert again.gamma.device_hours == record.gamma.device_hours
        told = [r for r in record.readings if r.quantity not in ("flops", "co2_kg")]
        assert [r for r in again.readings if r.quantity not in ("flops", "co2_kg")] == told


def test_every_quantity_of_every_phase_has_a_value_with_a_source_or_a_reason(runs: list[Run]) -> None:
    for run in runs:
        spans: dict[str, set[str]] = {}
        for reading in run.record.readings:
            assert (reading.value is None) == bool(reading.why_missing)
            assert (reading.source is None) == (reading.value is None)
            spans.setdefault(reading.phase, set()).add(reading.quantity)
        assert len({frozenset(quantities) for quantities in spans.values()}) == 1
        assert set(spans) >= {"setup", "train", "validate", "score", "billed"}


def test_all_arms_of_a_block_share_seed_data_batches_and_base(runs: list[Run]) -> None:
    for block in (0, 1):
        records = [run.record for run in runs if run.record.block == block]
        assert len(records) == 4
        for shared in ("batches_sha256", "selection_sha256"):
            assert len({getattr(r, shared) for r in records}) == 1
        assert len({str(r.psi.base) for r in records}) == 1
        weights = records[0].spec.model.weights_sha256
        assert {r.spec.seed for r in records} == {block_seed("movie-snippets", 1, str(weights), block)}


def test_the_readme_shows_the_table_of_these_records(runs: list[Run]) -> None:
    shown = io.StringIO()
    print_groups(Console(file=shown, width=80), compare([run.record for run in runs]))
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines) in (ROOT / "README.md").read_text(encoding="utf-8")
