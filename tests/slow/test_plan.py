"""Plans against real runs on this machine: the peak of memory, state and trained parameters, and FLOPs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.plans.parameters import layout
from cprbench.runs.store import load_runs
from tests.conftest import ROOT

CASES = [
    ("movie-snippets", "minilm", "head,full,lora,partial", ("training.max_examples=64", "select.warmup_steps=2")),
    ("pubmedqa", "smollm2-135m", "full,last-layers", ("training.max_examples=24", "training.max_tokens=192")),
]


def cprbench(*words: str, limits: tuple[str, ...]) -> str:
    limits = (*limits, "training.eval_items=16", "training.validation_items=8")
    command = [sys.executable, "-m", "cprbench", *words, *(word for pair in limits for word in ("--set", pair))]
    # One thread: what each thread's own heap keeps is no part of the model.
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("task", "model", "methods", "limits"), CASES, ids=[case[1] for case in CASES])
def test_a_plan_comes_within_15_percent_of_the_measured_peak(
    task: str, model: str, methods: str, limits: tuple[str, ...], real_data: Path, tmp_path: Path
) -> None:
    words = (task, "--model", model, "--method", methods, "--data", str(real_data))
    cprbench("run", *words, "--blocks", "1", "--out", str(tmp_path), limits=limits)
    document: dict[str, Any] = json.loads(cprbench("plan", *words, "--json", limits=limits))
    rows = {row["arm"]: row for row in document["models"][0]["rows"]}
    records = {found.record.arm: found.record for found in load_runs(tmp_path).runs}
    assert set(records) == set(rows)
    for arm, record in records.items():
        row = rows[arm]
        assert row["peak_bytes"] == pytest.approx(record.peak_memory_bytes, rel=0.15), arm
        # Whole sequences are an upper bound: these are half as long.
        assert record.gamma.flops is not None
        assert 1 <= row["flops"] / record.gamma.flops < 2, arm
        if row["set"] == "known":
            assert row["trained_parameters"] == record.trained_parameters
            assert row["new_head_parameters"] == record.new_head_parameters
            assert record.optimizer_state_bytes == row["optimizer_bytes"]


def test_smollm2_has_the_parameters_that_its_config_tells() -> None:
    checkpoint = resolve("smollm2-135m", offline=False)
    found = layout(checkpoint.config, "causal", None)
    assert found.sizes == dict(models.empty_partition(checkpoint, None).sizes)
    assert found.total == 134_515_008
