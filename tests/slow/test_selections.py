"""Every selection in a whole run, suites in a small form, and scoring that survives kill -9 in bounded memory."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cprbench.adapt.selection import SELECTIONS, scores
from cprbench.judge.cpr import compare
from cprbench.judge.retention import retention
from cprbench.runs.runner import Done, Options, run
from cprbench.spec import ArmSpec, SuiteSpec
from cprbench.tasks import load_suite
from tests.conftest import SMALL

ITERATIVE = {"q": 0.5, "rounds": 2, "steps": 2}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, minilm2: Path) -> Done:
    """Every selection with partial tuning, and those that need the method with adapters in place."""
    own = {"iterative": ITERATIVE, "all": {}, "predicted": {"q": 0.5, "floor": -1.0}}
    arms = [
        ArmSpec(method="partial", selection=name, selection_settings=own.get(name, {"q": 0.5})) for name in SELECTIONS
    ]
    arms += [ArmSpec(method="lora", selection=name, selection_settings=own.get(name, {"q": 0.5})) for name in
             ("cross", "iterative")]  # fmt: skip
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(minilm2)], blocks=1, arm=arms)
    out = tmp_path_factory.mktemp("every") / "runs"
    return run(suite, options=Options(out=out), settings={**SMALL, "epochs": 2})


def test_every_selection_trains_on_its_share_with_one_warm_up(every: Done) -> None:
    assert not every.failed, [record.error for record in every.failed]
    for record in every.records:
        name = record.spec.selection.name
        assert record.selected_examples == (64 if name == "all" else 32)
        before = {"iterative": 2 + 4}.get(name, 2)
        if record.spec.method.name == "lora" or name != "all":
            assert record.notes["warmup_steps_of_head"] == before, record.arm
        assert record.notes["steps"] == (16 if name == "all" else 8)
        assert record.psi.final is not None


def test_a_run_tells_how_many_examples_it_has_seen_beside_those_it_kept(every: Done) -> None:
    seen = {r.arm: (r.notes["examples_trained_on"], r.batches_sha256) for r in every.records}
    warmed, whole = seen["partial k=0.15 selection=influence q=0.5"], seen["partial k=0.15"]
    assert 32 <= warmed[0] <= 32 + 16 and whole[0] == 64  # two batches of eight warmed the head
    assert len({digest for _, digest in seen.values()}) > 5


def test_parameters_are_picked_alike_whichever_examples_are_chosen(every: Done) -> None:
    picks = {
        tuple(r.trained_submodules)
        for r in every.records
        if r.spec.method.name == "partial" and r.spec.selection.name != "iterative"
    }
    assert len(picks) == 1


def test_scoring_through_adapters_costs_what_the_adapters_add(every: Done) -> None:
    by_arm = {r.arm: r for r in every.records}
    bare, through = by_arm["partial k=0.15 selection=influence q=0.5"], by_arm["lora selection=cross q=0.5"]

    def scoring(record: object) -> float:
        return sum(r.value or 0 for r in record.readings if (r.phase, r.quantity) == ("select", "flops"))  # type: ignore[attr-defined]

    # partial pays for its probe beside the warm-up and the scores; the adapters' part is small but there.
    assert 0 < scoring(through) < scoring(bare)


def test_the_sweeps_give_retention_tables_in_a_small_form(tmp_path: Path, minilm2: Path) -> None:
    suite = load_suite("k-by-q")
    arms = [arm.model_copy(update={"selection_settings": {"q": 0.3}} if arm.selection != "all" else {})
            for arm in suite.arm]  # fmt: skip
    arms = [arm.model_copy(update={"settings": {"k": 0.2}} if arm.settings else {}) for arm in arms]
    small = suite.model_copy(update={"models": [str(minilm2)], "blocks": 1, "arm": arms})
    done = run(small, options=Options(out=tmp_path), settings={**SMALL, "epochs": 2, "max_examples": 96})
    assert not done.failed and {record.role for record in done.records} == {"smoke"}
    (group,) = compare(done.records)
    table = retention(group)
    assert table is not None
    rows = {row.arm: row for row in table.rows}
    assert set(rows) == {
        "full",
        "full selection=influence q=0.3",
        "partial k=0.2",
        "partial k=0.2 selection=influence q=0.3",
    }
    for name, row in rows.items():
        assert row.predicted["eq34_t"].value is not None
        if name != "full":
            assert row.random["q"].ratio.value is not None and row.random["q"].equal
            assert row.random["flops"].ratio.value == pytest.approx(1, abs=0.1)
    joint, data = rows["partial k=0.2 selection=influence q=0.3"], rows["full selection=influence q=0.3"]
    assert (joint.predicted["eq34_t"].value or 0) <= (data.predicted["eq34_t"].value or 0)


def score(model: Path, out: Path, *more: str, task: str = "movie-snippets") -> list[str]:
    command = [sys.executable, "-m", "cprbench", "data", "score", task, "--model", str(model), "--out", str(out)]
    return [*command, "--precision", "fp32", *more]


def test_scoring_that_is_killed_goes_on_from_its_parts_and_bills_both_attempts(
    tmp_path: Path, tiny_llama: Path
) -> None:
    out, whole = tmp_path / "killed.parquet", tmp_path / "whole.parquet"
    process = subprocess.Popen(score(tiny_llama, out), start_new_session=True)
    parts = tmp_path / ".work" / out.name / "parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("0*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in [process.pid, *_children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    first = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.npz") if ".tmp" not in path.name}
    assert first and not out.exists()
    subprocess.run(score(tiny_llama, out), check=True)
    subprocess.run(score(tiny_llama, whole), check=True)
    killed, once = scores.read(out), scores.read(whole)
    assert killed.ids == once.ids and len(killed.ids) == 6328
    np.testing.assert_allclose(killed.norms, once.norms, rtol=1e-5)
    assert killed.info.made is not None and once.info.made is not None
    assert (killed.info.made.flops or 0) >= (once.info.made.flops or 0)  # and what the kill has lost
    assert not (tmp_path / ".work").exists()
    refused = subprocess.run(score(tiny_llama, out), capture_output=True, text=True)
    assert refused.returncode == 1 and "is there already" in refused.stderr


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_a_hundred_thousand_examples_are_scored_in_bounded_memory(tmp_path: Path, tiny_llama: Path) -> None:
    held = {}
    for count in (10_000, 100_000):
        rows = tmp_path / f"rows-{count}.csv"
        with rows.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(
                [f"film number {i} is {'good' if i % 3 else 'bad'}", "yn"[i % 3 == 0]] for i in range(count)
            )
        task = tmp_path / f"rows-{count}.toml"
        task.write_text(
            f'name = "rows"\nversion = 1\ndomain = "general"\nlicense = "MIT"\ncitation = "made"\nchance = 0.5\n'
            'primary = "accuracy"\nmetrics = ["accuracy"]\n'
            f'[[source]]\nkind = "files"\npath = "{rows.name}"\n[splits]\nby = "hash"\ntest = 0.01\n'
            '[example]\nkind = "choice"\nprompt = "{text}"\nanswer = "label"\nchoices = ["y", "n"]\n'
        )
        out = tmp_path / f"{count}.parquet"
        subprocess.run(score(tiny_llama, out, "--data", str(tmp_path), task=str(task)), check=True)
        info = scores.read(out).info
        assert info.examples > 0.98 * count and info.made is not None
        # Mean resident memory while scoring: its integral over time.
        assert info.made.memory_gb_hours is not None and info.made.seconds is not None
        held[count] = 1e9 * info.made.memory_gb_hours / (info.made.seconds / 3600)
    # Ninety thousand more texts are there, as Python holds them; not their tokens, and no gradients.
    assert held[100_000] - held[10_000] < 90_000 * 3_000
