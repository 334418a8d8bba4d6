"""Loops that are not ours become full records: a command with its process tree, a with block, a Trainer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cprbench.errors import SpecError, StoreError
from cprbench.judge.cpr import compare
from cprbench.render.formats.writing import render_report
from cprbench.runs.external import measure, measure_command
from cprbench.runs.runner import export
from cprbench.runs.store import load_runs
from cprbench.spec import RESOURCES
from tests.conftest import ROOT, Arm

#: A command whose two children hold 150 MB each for a second, and that writes its scores.
_TREE = """
import json, subprocess, sys, time
hold = "import time; x = b'x' * 150_000_000; time.sleep(1.5)"
children = [subprocess.Popen([sys.executable, "-c", hold]) for _ in range(2)]
codes = [child.wait() for child in children]
scores = {"primary": "accuracy", "base": {"accuracy": 0.5}, "final": {"accuracy": 0.75}, "items": 4}
json.dump(scores, open(sys.argv[1], "w"))
"""


def test_a_commands_whole_process_tree_is_metered_and_its_scores_are_read(tmp_path: Path) -> None:
    scores = tmp_path / "psi.json"
    record = measure_command(
        [sys.executable, "-c", _TREE, str(scores)],
        task="movie-snippets",
        model="minilm",
        method="their loop",
        out=tmp_path / "runs",
        psi_file=scores,
    )
    assert (record.status, record.loop, record.arm) == ("ok", "external loop", "their loop")
    assert record.psi.final == {"accuracy": 0.75}
    assert record.gamma.memory_basis == "pss"
    assert 300e6 < (record.peak_memory_bytes or 0) < 500e6
    assert (record.seconds["train"] or 0) > 1.5
    assert record.gamma.flops is None
    assert {r.quantity for r in record.readings if r.value is None} >= {"flops", "co2_kg", "rss_byte_seconds"}
    (stored,) = load_runs(tmp_path / "runs").runs
    assert stored.record == record


def test_a_command_that_fails_or_leaves_an_old_score_file_is_a_failed_record(tmp_path: Path) -> None:
    scores = tmp_path / "psi.json"
    scores.write_text('{"primary": "accuracy", "final": {"accuracy": 0.99}}')

    def run(code: str) -> tuple[str, str]:
        record = measure_command(
            [sys.executable, "-c", code], task="t", model="m", method="a", out=tmp_path / "runs", psi_file=scores
        )
        assert record.psi.final is None
        return record.status, str(record.error)

    assert run("raise SystemExit(3)") == ("failed", "the command ended with code 3")
    assert run("pass") == ("failed", f"the command did not write {scores}")
    status, error = run(f"open({str(scores)!r}, 'w').write('[1]')")
    assert status == "failed"
    assert "is not a psi file" in error
    with pytest.raises(SpecError, match=r"cannot start 'no-such-command'.*after --"):
        measure_command(["no-such-command"], task="t", model="m", method="a", out=tmp_path / "runs")


def test_code_in_a_with_block_is_metered_by_phase_and_tells_its_scores(tmp_path: Path) -> None:
    with measure(task="movie-snippets", model="minilm", out=tmp_path) as run:
        for step in range(1, 4):
            time.sleep(0.1)
            run.step(step, 1.0 / step)
        run.start("validate")
        time.sleep(0.2)
        run.start("train")
        run.psi("accuracy", {"accuracy": 0.8}, base={"accuracy": 0.5}, items=10)
    (stored,) = load_runs(tmp_path).runs
    record = stored.record
    assert record.status == "ok"
    assert 0.29 < (record.seconds["train"] or 0) < 1.5
    assert 0.19 < (record.seconds["validate"] or 0) < 1.0
    assert record.seconds["billed"] == record.seconds["train"]
    rows = stored.lines("history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["gamma"]["device_hours"] > rows[0]["gamma"]["device_hours"]
    assert rows[-1]["gamma"]["flops"] is None


def test_a_block_that_raises_is_a_failed_record_and_the_exception_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), measure(task="t", model="m", out=tmp_path):
        raise ZeroDivisionError("by zero")
    (stored,) = load_runs(tmp_path).runs
    assert (stored.record.status, stored.record.error) == ("failed", "ZeroDivisionError: by zero")
    with pytest.raises(StoreError, match="not ours"):
        export(stored.folder, tmp_path / "model")


def test_a_trainers_training_is_measured_by_the_callback_and_renders_beside_ours(
    minilm2: Path, run_arm: Arm, runs_folder: Path, tmp_path: Path
) -> None:
    import transformers
    from torch.utils.data import Dataset

    from cprbench.integrations.trainer import CprbenchCallback

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm2)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm2, num_labels=2)

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> dict[str, object]:
            return {**tokenizer(f"a film of {index} stars"), "labels": index % 2}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=8,
        num_train_epochs=2,
        eval_strategy="epoch",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    callback = CprbenchCallback(task="movie-snippets", model="minilm", out=tmp_path / "runs")
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[callback],
    )
    trainer.evaluate()
    trainer.train()
    record = callback.record
    assert record is not None
    assert (record.status, record.loop, record.arm) == ("ok", "external loop", "trainer")
    assert record.psi.primary == "nll"
    assert record.psi.base is not None
    assert set(record.psi.final or {}) == {"nll"}
    assert (record.seconds["validate"] or 0) > 0
    assert record.trained_parameters == sum(p.numel() for p in model.parameters())
    assert record.gamma.memory_gb_hours
    (stored,) = load_runs(tmp_path / "runs").runs
    assert [row["step"] for row in stored.lines("history.jsonl")] == list(range(1, 9))

    ours = run_arm(minilm2, "full")
    text = render_report([record, ours])
    assert text.count("## movie") == 2
    assert "external loop" in text
    assert len(compare([record, ours])) == 2  # never in one table: its recipe and data are not known


def test_the_command_line_measures_and_says_what_it_cost(tmp_path: Path) -> None:
    words = [
        "measure",
        "--out",
        str(tmp_path),
        "--carbon-intensity",
        "56",
        "--",
        sys.executable,
        "-c",
        "print('hello')",
    ]
    done = subprocess.run([sys.executable, "-m", "cprbench", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout
    assert "ok: " in done.stdout
    assert "FLOPs: the loop is not ours" in done.stdout
    (stored,) = load_runs(tmp_path).runs
    assert stored.record.environment.facts["carbon"]["intensity_g_per_kwh"] == 56


def test_doctor_tells_what_this_machine_measures_and_says_why_not_the_rest() -> None:
    command = [sys.executable, "-m", "cprbench", "doctor", "--json", "--no-rates"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout)
    measured = {row["quantity"]: row for row in found["measured"]}
    missing = {row["quantity"]: row["why"] for row in found["missing"]}
    assert measured["rss_byte_seconds"]["source"] == "sampled"
    assert not set(measured) & set(missing)
    assert all(missing.values())
    on_gpu, has_rapl = "gpu_energy_joules" in measured, "cpu_energy_joules" in measured
    assert has_rapl == any(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")) or not has_rapl
    assert on_gpu or "NVML" in missing["gpu_energy_joules"]
    assert found["hardware_class"]
    assert len(RESOURCES) == 6
