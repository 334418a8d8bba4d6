"""Whole runs on whole models, and what needs an environment of its own. Minutes, not seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cprbench.adapt.data import load_dataset, sample_by_label
from cprbench.errors import StoreError
from cprbench.runs.runner import Options, export, run
from cprbench.runs.store import load_run, load_runs
from cprbench.spec import ArmSpec, SuiteSpec
from cprbench.tasks import load_task
from tests.conftest import ROOT, SMALL, Arm


def cprbench(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cprbench", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})})


@pytest.mark.parametrize("model", ["smollm2-135m", "minilm"])
def test_pubmedqa_is_adapted_by_a_causal_model_and_by_an_encoder(model: str, real_data: Path, tmp_path: Path) -> None:
    limits = ["--set", "training.max_examples=32", "--set", "training.eval_items=50"]
    words = ["run", "pubmedqa", "--model", model, "--method", "lora", "--blocks", "1", *limits]
    done = cprbench(*words, "--data", str(real_data), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (found,) = load_runs(tmp_path).runs
    record = found.record
    assert record.psi.items == 50
    assert record.role == "smoke"
    assert record.limits == {"max_examples": 32, "eval_items": 50}
    references = {row["reference"] for row in found.lines("predictions.jsonl")}
    assert references == {"yes", "no", "maybe"}
    if model == "smollm2-135m":
        assert record.spec.model.label == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
        assert record.new_head_parameters == 0


@pytest.mark.parametrize("method", ["lora", "partial", "full"])
def test_an_exported_model_loads_plainly_and_scores_the_same_psi(
    method: str, minilm2: Path, run_arm: Arm, runs_folder: Path, tmp_path: Path
) -> None:
    record = run_arm(minilm2, method, save="delta", learning_rate=1e-3, precision="bf16")
    export(runs_folder / record.run_id, tmp_path / "merged", offline=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    test = sample_by_label(load_dataset(load_task("movie-snippets")).test, 48, "movie-snippets/test")
    rows = {row["id"]: row for row in load_run(runs_folder / record.run_id).lines("predictions.jsonl")}
    right = 0
    for example in test:
        inputs = tokenizer(example.prompt, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        if inputs["input_ids"].shape[1] <= 48:
            kept = list(rows[example.id]["scores"]["log_likelihoods"].values())
            assert scores.tolist() == pytest.approx(kept, abs=1e-4)
        right += int(scores.argmax()) == example.answer
    assert record.psi.final is not None
    assert right / 48 == pytest.approx(record.psi.final["accuracy"], abs=0.03)
    with pytest.raises(StoreError, match="holds files already"):
        export(runs_folder / record.run_id, tmp_path / "merged", offline=True)


def test_an_offline_run_opens_no_connection(minilm2: Path, tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import socket, os\n"
        "def refuse(self, address, *rest):\n"
        "    open(os.environ['CONNECTIONS'], 'a').write(repr(address) + '\\n')\n"
        "    raise OSError('connections are refused in this test')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "socket.getaddrinfo = lambda *a, **k: refuse(None, a)\n"
    )
    log = tmp_path / "connections.txt"
    env = {"PYTHONPATH": f"{guard}{os.pathsep}{ROOT}", "CONNECTIONS": str(log)}
    probe = "import socket; socket.create_connection(('localhost', 9))"
    assert subprocess.run([sys.executable, "-c", probe], env={**os.environ, **env}, capture_output=True).returncode
    assert log.exists()  # the guard works, in a child of a child as well
    log.unlink()
    settings = [word for key, value in SMALL.items() for word in ("--set", f"training.{key}={value}")]
    words = ["run", "movie-snippets", "--model", "minilm", "--method", "full", "--blocks", "1", *settings]
    done = cprbench(*words, "--offline", "--out", str(tmp_path / "runs"), env=env)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()


def test_offline_without_a_cache_says_what_to_fetch(tmp_path: Path) -> None:
    env = {"CPRBENCH_CACHE": str(tmp_path / "empty")}
    done = cprbench("run", "movie-snippets", "--model", "minilm", "--method", "full", "--offline", env=env)
    assert done.returncode == 1
    assert "vaderSentiment==3.3.2 is not in the cache" in done.stderr


def test_ctrl_c_on_the_command_line_leaves_whole_records_and_exit_code_130(minilm2: Path, tmp_path: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"training.{key}={value}")]
    words = ["run", "movie-snippets", "--model", str(minilm2), "--method", "full,head", "--blocks", "3", *settings]
    command = [sys.executable, "-m", "cprbench", *words, "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[1/6]"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors
    found = load_runs(tmp_path)
    assert not found.damaged
    assert sorted(r.record.status for r in found.runs) == ["interrupted", "ok"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def suite(model: Path, *methods: str) -> SuiteSpec:
    return SuiteSpec(
        tasks=["movie-snippets"], models=[str(model)], blocks=1, arm=[ArmSpec(method=name) for name in methods]
    )


def test_a_full_disk_is_one_clear_error_and_finished_runs_stay(minilm2: Path, small_disk: Path) -> None:
    options = Options(out=small_disk / "runs")
    run(suite(minilm2, "head"), options=options, settings=SMALL)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as stream:
        while True:
            stream.write(b"x" * 4096)
            stream.flush()
    with pytest.raises(StoreError, match=r"No space left.*Finished runs are untouched"):
        run(suite(minilm2, "full"), options=options, settings=SMALL)
    filler.unlink()
    found = load_runs(options.out)
    assert [r.record.arm for r in found.runs] == ["head"]
    assert not found.damaged
    done = run(suite(minilm2, "full", "head"), options=options, settings=SMALL)
    assert done.reused == 1
    assert not done.failed


def test_a_read_only_folder_is_refused_before_anything_runs(minilm2: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="read-only"):
        run(suite(minilm2, "head"), options=Options(out=small_disk / "runs"), settings=SMALL)


def test_reading_verbs_work_where_torch_is_not_installed(
    minilm2: Path, run_arm: Arm, runs_folder: Path, tmp_path: Path
) -> None:
    run_arm(minilm2, "head")
    run_arm(minilm2, "full")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    for words in (["report", str(runs_folder)], ["status", str(runs_folder)], ["list", "tasks"], ["list", "methods"]):
        done = subprocess.run([python, "-m", "cprbench", *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    trees = []
    for name, interpreter in (("with", sys.executable), ("without", python)):
        words = ["report", str(runs_folder), "--format", "html,md,latex,csv,json", "--out", str(tmp_path / name)]
        done = subprocess.run([interpreter, "-m", "cprbench", *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        trees.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert trees[0] == trees[1] and len(trees[0]) > 15


def test_a_gguf_is_converted_once_and_scores_like_the_model_it_holds() -> None:
    from cprbench.adapt.checkpoints import resolve

    checkpoint = resolve("smollm2-135m", offline=False)
    again = resolve("smollm2-135m", offline=True)
    assert again == checkpoint
    assert checkpoint.kind == "causal"
    assert checkpoint.weights_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert "quantization_config" not in json.loads((checkpoint.folder / "config.json").read_text())
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_the_readmes_first_command_gives_the_table_that_it_shows(tmp_path: Path) -> None:
    done = cprbench("run", "tasks/suites/quickstart.toml", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    records = [run.record for run in load_runs(tmp_path).runs]
    assert len(records) == 8
    assert {r.role for r in records} == {"run"}
    assert {r.suite for r in records} == {"quickstart"}
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in done.stdout.splitlines():
        if row := re.match(r"(head|full|lora|partial k=0.15) +(\d\.\d{3}) ", line):
            arm, score = row[1], float(row[2])
            (told,) = re.findall(rf"^{re.escape(arm)} +(\d\.\d{{3}})", shown, re.M)
            assert score == pytest.approx(float(told), abs=0.03)  # another CPU rounds otherwise
    full = next(r for r in records if r.arm == "full")
    quantities = {r.quantity for r in full.readings if r.phase == "billed"}
    assert quantities >= {"seconds", "flops", "rss_byte_seconds", "gpu_energy_joules", "cpu_energy_joules", "co2_kg"}


def test_a_trainer_script_is_measured_from_inside_and_from_outside(minilm2: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "finetune_with_trainer.py"), "--model", str(minilm2)]
    scores = tmp_path / "scores.json"
    more = ["--scores", str(scores), "--out", str(tmp_path / "runs")]
    inside = subprocess.run([*script, *more, "--callback"], capture_output=True, text=True, cwd=tmp_path)
    assert inside.returncode == 0, inside.stderr
    words = ["measure", "--task", "movie-snippets", "--model", str(minilm2), "--psi-file", str(scores)]
    outside = cprbench(*words, "--arm", "trainer script", "--out", str(tmp_path / "runs"), "--", *script, *more)
    assert outside.returncode == 0, outside.stderr
    by_arm = {run.record.arm: run.record for run in load_runs(tmp_path / "runs").runs}
    assert set(by_arm) == {"trainer", "trainer script"}
    assert all(r.loop == "external loop" and r.status == "ok" for r in by_arm.values())
    final = {arm: (r.psi.final or {})["accuracy"] for arm, r in by_arm.items()}
    assert all(0.3 < score <= 1 for score in final.values())
    # From outside, start-up and evaluation are in the bill; from inside, only training is.
    assert (by_arm["trainer script"].seconds["billed"] or 0) > (by_arm["trainer"].seconds["billed"] or 0)
    text = cprbench("report", str(tmp_path / "runs"), "--format", "md").stdout
    assert "| trainer |" in text
    assert "| trainer script |" in text


def test_what_a_killed_parent_left_behind_is_billed_by_the_next_launch(minilm2: Path, tmp_path: Path) -> None:
    settings = [word for key, value in (SMALL | {"epochs": 8}).items() for word in ("--set", f"training.{key}={value}")]
    words = ["run", "movie-snippets", "--model", str(minilm2), "--method", "full", "--blocks", "1", *settings]
    command = [sys.executable, "-m", "cprbench", *words, "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(p.read_text().count("\n") > 3 for p in tmp_path.glob(".work/*/attempt-1/history.jsonl")):
        assert time.monotonic() < deadline, "the run never trained"
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = load_runs(tmp_path).runs
    record = found.record
    assert record.attempts == 2
    assert (record.seconds["billed"] or 0) > (record.seconds["billed_last_attempt"] or 0) > 0
    flops = {r.attempt: r.value for r in record.readings if (r.phase, r.quantity) == ("billed", "flops")}
    assert 0 < (flops[1] or 0) < (flops[2] or 0)
    assert record.gamma.flops == (flops[1] or 0) + (flops[2] or 0)
    assert not list(tmp_path.glob(".work/*/attempt-*"))
