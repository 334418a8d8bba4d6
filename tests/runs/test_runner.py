"""Real runs, small: what the records hold, and what happens when a run goes wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from cprbench.errors import MethodError, ModelError, SpecError, StoreError, TrainingError
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.runs.planner import Planned
from cprbench.runs.runner import Options, run
from cprbench.runs.store import load_run, load_runs
from cprbench.spec import PHASES, ArmSpec, SuiteSpec
from tests.conftest import SMALL, Arm

ARMS = [
    ("head", {}),
    ("full", {}),
    ("lora", {}),
    ("partial", {"k": 0.15}),
]


def suite(model: Path, *methods: str, blocks: int = 1) -> SuiteSpec:
    arms = [ArmSpec(method=method) for method in methods]
    return SuiteSpec(tasks=["movie-snippets"], models=[str(model)], blocks=blocks, arm=arms)


def losses(runs: Path, run_id: str) -> list[float]:
    return [row["loss"] for row in load_run(runs / run_id).lines("history.jsonl")]


@pytest.mark.parametrize(("method", "settings"), ARMS, ids=[name for name, _ in ARMS])
def test_a_record_holds_what_every_reader_needs(
    method: str, settings: dict[str, Any], minilm2: Path, run_arm: Arm, runs_folder: Path
) -> None:
    record = run_arm(minilm2, method, settings=settings)
    assert (record.status, record.error, record.role) == ("ok", None, "smoke")
    assert record.limits == {"max_examples": 64, "eval_items": 48}
    folder = runs_folder / record.run_id
    names = {
        "record.json",
        "history.jsonl",
        "samples.jsonl",
        "predictions.jsonl",
        "base_predictions.jsonl",
        "work.jsonl",
    }
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == names
    assert record.psi.items == 48 == len((folder / "predictions.jsonl").read_text().splitlines())
    assert record.psi.base is not None and record.psi.final is not None
    assert set(record.psi.final) == {"accuracy", "macro_f1", "nll"}

    gamma, seconds = record.gamma, record.seconds
    assert set(seconds) == {*PHASES, "billed", "billed_last_attempt"}
    assert seconds["billed"] == pytest.approx(seconds["select"] + seconds["train"])  # type: ignore[operator]
    assert gamma.device_hours == pytest.approx(seconds["billed"] / 3600)  # type: ignore[operator]
    assert gamma.core_hours == pytest.approx(gamma.device_hours * len(os.sched_getaffinity(0)))  # type: ignore[operator]
    assert gamma.memory_gb_hours and gamma.flops and record.peak_memory_bytes
    assert record.peak_memory_bytes > 3e8
    for reading in record.readings:
        assert (reading.value is None) == (reading.why_missing is not None)
    assert {r.phase for r in record.readings} >= {"setup", "train", "validate", "score"}
    by_phase = {r.phase: r.value for r in record.readings if r.quantity == "flops"}
    assert gamma.flops == by_phase["train"] + by_phase.get("select", 0)  # type: ignore[operator]
    assert record.new_head_parameters == 2 * 384 + 2
    assert (seconds["select"] > 0) == (method == "partial")  # type: ignore[operator]

    rows = load_run(folder).lines("history.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["flops"] == gamma.flops
    assert rows[-1]["validation"] == record.psi.validation
    assert rows[-1]["gamma"]["rss_gb_hours"] == pytest.approx(gamma.memory_gb_hours, rel=0.05)
    assert rows[-1]["seconds"] == pytest.approx(seconds["billed"], rel=0.05)


def test_samples_replay_to_the_same_readings(minilm2: Path, run_arm: Arm, runs_folder: Path) -> None:
    record = run_arm(minilm2, "full")
    trace = Trace.load(runs_folder / record.run_id / "samples.jsonl")
    again = account(trace, "not recounted here", cores=2, accelerators=0)
    assert again.seconds == record.seconds
    assert again.gamma.memory_gb_hours == record.gamma.memory_gb_hours
    assert again.peak_memory_bytes == record.peak_memory_bytes


def test_training_all_of_partials_submodules_gives_full_tunings_losses_exactly(
    minilm2: Path, run_arm: Arm, runs_folder: Path
) -> None:
    full = run_arm(minilm2, "full", learning_rate=1e-4)
    everything = run_arm(minilm2, "partial", settings={"k": 1, "embed": True}, learning_rate=1e-4)
    assert losses(runs_folder, everything.run_id) == losses(runs_folder, full.run_id)
    assert everything.psi == full.psi
    assert everything.k_reached == 1.0
    assert everything.seconds["select"] == 0.0


def test_all_methods_of_a_block_see_the_same_batches_and_the_same_base(minilm2: Path, run_arm: Arm) -> None:
    records = [run_arm(minilm2, method, settings=settings) for method, settings in ARMS]
    assert len({r.batches_sha256 for r in records}) == 1
    assert len({r.selection_sha256 for r in records}) == 1
    assert len({r.spec.seed for r in records}) == 1
    assert len({str(r.psi.base) for r in records}) == 1
    assert len({r.run_id for r in records}) == 4


def test_partial_pays_for_its_choice_and_says_what_it_chose(minilm2: Path, run_arm: Arm, runs_folder: Path) -> None:
    record = run_arm(minilm2, "partial", settings={"k": 0.15})
    assert record.arm == "partial k=0.15"
    assert record.k_asked == 0.15
    assert 0 < (record.k_reached or 0) <= 0.15
    assert record.trained_parameters == round((record.k_reached or 0) * record.total_parameters)
    assert set(record.notes["gradient_norm"]) == {"embed", "attn.0", "ffn.0", "attn.1", "ffn.1", "head"}
    phases = [row["phase"] for row in load_run(runs_folder / record.run_id).lines("history.jsonl")]
    assert phases == ["select"] * 2 + ["train"] * 6  # the warm-up's steps count among the planned ones


def test_a_causal_model_answers_the_same_task_file_and_is_measured_against_its_base(
    tiny_llama: Path, run_arm: Arm
) -> None:
    record = run_arm(tiny_llama, "full")
    assert record.status == "ok", record.error
    assert record.new_head_parameters == 0
    assert record.psi.final is not None and record.psi.base is not None
    assert record.psi.final["nll"] < record.psi.base["nll"]


def test_the_same_command_again_reuses_every_record(minilm2: Path, runs_folder: Path, run_arm: Arm) -> None:
    run_arm(minilm2, "full")
    events: list[Mapping[str, Any]] = []
    done = run(
        suite(minilm2, "full"),
        options=Options(out=runs_folder),
        settings=SMALL,
        observe=lambda planned, event: events.append(event),
    )
    assert done.reused == 1
    assert [event["event"] for event in events] == ["done"]


def test_a_run_that_diverges_becomes_a_failed_record_and_the_others_go_on(minilm2: Path, tmp_path: Path) -> None:
    done = run(
        suite(minilm2, "full", "head"),
        options=Options(out=tmp_path),
        settings={**SMALL, "learning_rate": 1e30, "clip_norm": 1e30},
    )
    assert len(done.records) == 2
    for record in done.failed:
        assert record.status == "failed"
        assert "the loss is" in str(record.error)
        assert record.psi.final is None
        assert (record.seconds["train"] or 0) > 0  # what it cost is kept
    assert "full" in [r.arm for r in done.failed]
    again = run(
        suite(minilm2, "full"),
        options=Options(out=tmp_path),
        settings={**SMALL, "learning_rate": 1e30, "clip_norm": 1e30},
    )
    assert again.reused == 1  # a failed run runs again only on request


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "cprbench.sessions.worker" in " ".join(p.cmdline())]


def child() -> psutil.Process:
    return workers()[0]


def test_a_killed_child_becomes_a_record_with_what_it_cost_and_a_retry_bills_both(
    minilm2: Path, tmp_path: Path
) -> None:
    def kill(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            child().send_signal(signal.SIGKILL)

    (record,) = run(suite(minilm2, "full"), options=Options(out=tmp_path), settings=SMALL, observe=kill).records
    assert record.status == "failed"
    assert record.error == "the child was killed by SIGKILL"
    assert record.gamma.flops  # counted from the passes that it had written down
    assert (record.seconds["billed"] or 0) > 0
    assert any("cut" in reading.flags for reading in record.readings)

    (again,) = run(suite(minilm2, "full"), options=Options(out=tmp_path, retry=True), settings=SMALL).records
    assert again.status == "ok"
    assert (again.run_id, again.previous) == (f"{record.run_id}-2", record.run_id)
    assert again.attempts == 2
    assert again.seconds["billed"] == pytest.approx(record.seconds["billed"] + again.seconds["billed_last_attempt"])  # type: ignore[operator]
    whole = [r.value for r in again.readings if r.quantity == "flops" and (r.phase, r.attempt) == ("billed", 2)]
    assert again.gamma.flops == record.gamma.flops + whole[0]  # type: ignore[operator]


def test_a_child_without_memory_becomes_an_out_of_memory_record(minilm2: Path, tmp_path: Path) -> None:
    def starve(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "start" and event["phase"] == "train":
            process = child()
            limit = process.memory_info().vms + 2**26
            process.rlimit(psutil.RLIMIT_AS, (limit, limit))

    (record,) = run(suite(minilm2, "full"), options=Options(out=tmp_path), settings=SMALL, observe=starve).records
    assert record.status == "out_of_memory", record.error


def test_ctrl_c_keeps_finished_runs_marks_the_running_one_and_the_same_command_goes_on(
    minilm2: Path, tmp_path: Path
) -> None:
    finished: list[str] = []

    def interrupt(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "done":
            finished.append(event["record"].run_id)
        if event["event"] == "step" and event["step"] == 3 and finished:
            raise KeyboardInterrupt

    plan = suite(minilm2, "full", "head")
    done = run(plan, options=Options(out=tmp_path), settings=SMALL, observe=interrupt)
    assert done.interrupted
    assert [r.status for r in done.records] == ["ok", "interrupted"]
    assert not workers()
    stored = load_runs(tmp_path)
    assert sorted(r.record.status for r in stored.runs) == ["interrupted", "ok"]
    assert not stored.damaged
    again = run(plan, options=Options(out=tmp_path), settings=SMALL)
    assert again.reused == 1
    assert [r.status for r in again.records] == ["ok", "ok"]
    assert again.records[1].attempts == 2


def test_what_cannot_be_run_is_refused_before_anything_runs(minilm2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = Options(out=tmp_path)
    with pytest.raises(SpecError, match="Did you mean 'movie-snippets'"):
        run(SuiteSpec(tasks=["movie-snipets"], models=["minilm"], arm=[ArmSpec(method="full")]), options=options)
    with pytest.raises(SpecError, match="Did you mean 'full'"):
        run(suite(minilm2, "ful"), options=options)
    with pytest.raises(ModelError, match="Did you mean 'minilm'"):
        run(suite(Path("minilmx"), "full"), options=options)
    with pytest.raises(MethodError, match="causal models have none"):
        run(suite(tiny_llama, "full", "head"), options=options, settings=SMALL)
    with pytest.raises(TrainingError, match="zero training examples"):
        run(suite(minilm2, "full"), options=options, settings={**SMALL, "max_examples": 0})
    small = ArmSpec(method="partial", settings={"k": 0.001})
    with pytest.raises(MethodError, match=r"below the smallest submodule: 'head' holds 0.0\d+ .*at least"):
        run(suite(minilm2, "partial").model_copy(update={"arm": [small]}), options=options, settings=SMALL)
    with pytest.raises(MethodError, match=r"outside \(0, 1\]"):
        run(
            suite(minilm2, "partial").model_copy(update={"arm": [ArmSpec(method="partial", settings={"k": 1.5})]}),
            options=options,
            settings=SMALL,
        )
    assert not load_runs(tmp_path).runs


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(minilm2: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write .*--out"):
        run(suite(minilm2, "full"), options=Options(out=tmp_path / "file" / "runs"), settings=SMALL)


def test_a_search_tries_every_rate_on_validation_only_and_the_run_names_its_trials(
    minilm2: Path, tmp_path: Path
) -> None:
    done = run(suite(minilm2, "head"), options=Options(out=tmp_path, search_rates={"": (1e-4, 1e-1)}), settings=SMALL)
    assert [r.role for r in done.trials] == ["search", "search"]
    assert all(r.psi.final is None and r.psi.items == 0 and r.psi.validation for r in done.trials)
    best = min(done.trials, key=lambda r: r.psi.validation["nll"])  # type: ignore[index]
    (record,) = done.records
    assert record.spec.training.learning_rate == best.spec.training.learning_rate
    assert record.search is not None
    assert record.search.trials == 2
    assert record.search.runs == [r.run_id for r in done.trials]


def test_ctrl_c_ends_a_search_as_well(minilm2: Path, tmp_path: Path) -> None:
    started: list[str] = []

    def interrupt(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "run":
            started.append(planned.run_id)
        if event["event"] == "step":
            raise KeyboardInterrupt

    rates = {"": (1e-4, 1e-3, 1e-2)}
    done = run(
        suite(minilm2, "full"), options=Options(out=tmp_path, search_rates=rates), settings=SMALL, observe=interrupt
    )
    assert done.interrupted
    assert len(started) == len(done.trials) == 1
    assert not done.records


def test_trained_tensors_that_a_stored_run_lacks_are_not_promised(
    minilm2: Path, run_arm: Arm, runs_folder: Path
) -> None:
    run_arm(minilm2, "head")
    with pytest.raises(StoreError, match="stored without its trained tensors.*Pass another --out"):
        run(suite(minilm2, "head"), options=Options(out=runs_folder, save="delta"), settings=SMALL)


def test_an_attempt_that_never_started_is_no_attempt(minilm2: Path, tmp_path: Path) -> None:
    def stop(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "run":
            raise RuntimeError("before the child exists")

    with pytest.raises(RuntimeError):
        run(suite(minilm2, "head"), options=Options(out=tmp_path), settings=SMALL, observe=stop)
    assert list(tmp_path.glob(".work/*/attempt-1"))
    (record,) = run(suite(minilm2, "head"), options=Options(out=tmp_path), settings=SMALL).records
    assert (record.status, record.attempts) == ("ok", 1)
    assert {reading.attempt for reading in record.readings} == {1}
