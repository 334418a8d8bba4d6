"""One model trained by two processes together (gloo): the same result as by one, and everybody's cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from cprbench.errors import SpecError
from cprbench.meters.trace import Trace
from cprbench.runs import child
from cprbench.runs.runner import Options, run
from cprbench.runs.store import load_runs
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec
from tests.conftest import SMALL

ARMS = [
    ArmSpec(method="full"),
    ArmSpec(method="partial", settings={"k": 0.3, "pick": "per-cost"}),
    ArmSpec(method="last-layers", settings={"k": 0.3}, selection="influence", selection_settings={"q": 0.5}),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[int, Path]:
    """The same suite by one process and by two; 51 examples in batches of 10 leave one for the last batch."""
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=ARMS)
    settings: dict[str, Any] = {**SMALL, "max_examples": 51, "batch_size": 10, "epochs": 2}
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp(f"by-{processes}")
        run(suite, options=Options(out=folders[processes], processes=processes), settings=settings)
    return folders


def records(folder: Path) -> dict[str, RunRecord]:
    found = {}
    for stored in load_runs(folder).runs:
        assert stored.record.status == "ok", stored.record.error
        found[stored.record.spec.method.name] = stored.record  # type: ignore[union-attr]
    return found


def test_two_processes_reach_the_psi_that_one_reaches(both: dict[int, Path]) -> None:
    one, two = records(both[1]), records(both[2])
    for name, record in one.items():
        assert two[name].run_id == record.run_id  # how many processes is no part of what a run is
        assert record.psi.final is not None and two[name].psi.final is not None
        assert two[name].psi.final["accuracy"] == record.psi.final["accuracy"]
        assert two[name].psi.final["nll"] == pytest.approx(record.psi.final["nll"], abs=1e-4)
        assert two[name].batches_sha256 == record.batches_sha256
        assert two[name].selection_sha256 == record.selection_sha256
        assert two[name].notes["processes"] == 2 and "processes" not in record.notes
        histories = [
            [json.loads(line)["loss"] for line in (both[n] / record.run_id / "history.jsonl").read_text().splitlines()]
            for n in (1, 2)
        ]
        assert histories[1] == pytest.approx(histories[0], abs=1e-4)


def test_the_work_of_all_processes_is_counted_once_and_their_memory_is_summed(both: dict[int, Path]) -> None:
    one, two = records(both[1]), records(both[2])
    for name in ("full", "last-layers"):  # what per-cost times differs from one run to the next
        flops = [
            next(r for r in record.readings if (r.phase, r.quantity) == ("train", "flops"))
            for record in (one[name], two[name])
        ]
        # Shares are padded to their own longest sequence, so the padding differs and the rest does not; a process that
        # only keeps step with the last example repeats it.
        real = [float(r.value or 0) - float(r.detail["padding"]) for r in flops]
        assert real[0] <= real[1] <= 1.08 * real[0]
        peaks = {r.quantity: r.value for r in two[name].readings if r.phase == "train"}
        by_rank = [peaks["rank0_peak_rss_bytes"], peaks["rank1_peak_rss_bytes"]]
        assert peaks["peak_rss_bytes"] == sum(by_rank)  # type: ignore[arg-type]
        assert all(value > 1e8 for value in by_rank)  # type: ignore[operator]
        assert two[name].gamma.memory_gb_hours is not None
        trace = Trace.load(both[2] / two[name].run_id / "samples.jsonl")
        assert trace.missing["cuda_reserved_bytes"] == "several processes: each has an allocator of its own"
    assert two["full"].optimizer_state_bytes == one["full"].optimizer_state_bytes
    assert two["full"].trained_parameters == one["full"].trained_parameters


def test_when_one_process_dies_the_run_fails_with_its_reason_and_nothing_hangs(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(processes: int, variables: Any) -> list[dict[str, str]]:
        first, *rest = real(processes, variables)
        return [first, *(helper | {"PYTHONPATH": str(tmp_path / "hostile")} for helper in rest)]

    real = child._together
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(child, "_together", together)
    monkeypatch.setattr(child, "_GRACE_SECONDS", 1.0)
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=[ArmSpec(method="full")])
    done = run(suite, options=Options(out=tmp_path / "runs", processes=2), settings=SMALL)
    assert [(r.status, r.error) for r in done.records] == [("failed", "the child was killed by SIGKILL")]


def test_a_process_that_is_killed_in_mid_run_is_named_and_not_what_the_other_one_heard(
    tmp_path: Path, tiny_llama: Path
) -> None:
    def kill_the_helper(planned: Any, event: Any) -> None:
        if event["event"] == "step" and event["step"] == 3:
            for process in psutil.Process().children(recursive=True):
                if process.environ().get("RANK") == "1":
                    process.kill()

    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=[ArmSpec(method="full")])
    options = Options(out=tmp_path, processes=2)
    (record,) = run(suite, options=options, settings=SMALL, observe=kill_the_helper).records
    assert (record.status, record.error) == ("failed", "the child was killed by SIGKILL")
    assert record.gamma.flops and record.environment.facts["processes"] == 2


def test_a_budget_of_memory_picks_one_set_for_all_processes(tmp_path: Path, tiny_llama: Path) -> None:
    arm = ArmSpec(method="partial", settings={"budget": "memory=2GiB"})
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(tiny_llama)], blocks=1, arm=[arm])
    (record,) = run(suite, options=Options(out=tmp_path, processes=2), settings=SMALL).records
    assert record.status == "ok", record.error
    assert record.trained_submodules


def test_at_least_one_process_trains(tmp_path: Path) -> None:
    suite = SuiteSpec(tasks=["movie-snippets"], models=["minilm"], blocks=1, arm=[ArmSpec(method="full")])
    with pytest.raises(SpecError, match=r"--processes 0: at least one\."):
        run(suite, options=Options(out=tmp_path, processes=0))
