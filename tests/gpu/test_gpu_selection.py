"""Scores of examples on a real GPU: the CPU's, at a rate that is printed. Skipped with a reason where there is none."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cprbench.adapt import models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import load_dataset
from cprbench.adapt.gradients import influence
from cprbench.blueprint.drift import spearman
from cprbench.runs.runner import Options, run
from cprbench.spec import ArmSpec, SuiteSpec
from cprbench.tasks import load_task
from tests.conftest import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


@pytest.mark.parametrize(("name", "labels"), [("minilm", 2), ("smollm2-135m", None)])
def test_scores_on_the_gpu_are_those_of_the_cpu(name: str, labels: int | None) -> None:
    examples = load_dataset(load_task("movie-snippets")).train[:64]
    loaded = models.load(resolve(name, offline=False), labels, 0, "sdpa")
    items = objectives.tokenize(loaded, examples, 48)
    found = {}
    for precision, device in (("fp32", "cpu"), ("fp32", "cuda"), ("bf16", "cuda")):
        AcceleratorState._reset_state(True)  # accelerate holds one precision per process
        engine = training.Engine.start(precision, bf16_is_fast=True)
        loaded.model.to(device)
        objective = objectives.objective_for(loaded)
        began = time.perf_counter()
        found[precision, device] = influence.measure(
            loaded, objective, engine, items, 32, lambda *seen: None, states=True
        )
        rate = len(items) / (time.perf_counter() - began)
        print(f"\n{name} {precision} on {device}: {rate:.0f} examples a second")  # noqa: T201
    AcceleratorState._reset_state(True)
    cpu, gpu, low = found.values()
    np.testing.assert_allclose(gpu.norms, cpu.norms, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gpu.losses, cpu.losses, rtol=1e-3)
    np.testing.assert_allclose(gpu.states, cpu.states, rtol=1e-2, atol=1e-3)
    assert (spearman(low.influence.tolist(), cpu.influence.tolist()) or 0) > 0.98
    means = influence.input_means(loaded, items)
    loaded.model.cpu()
    np.testing.assert_allclose(means, influence.input_means(loaded, items), rtol=1e-4, atol=1e-6)


def test_choosing_on_the_gpu_is_billed_in_device_time_and_memory(tmp_path: Path, minilm2: Path) -> None:
    arms = [ArmSpec(method="partial", selection="influence", selection_settings={"q": 0.5}, baselines=True)]
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(minilm2)], blocks=1, arm=arms)
    done = run(suite, options=Options(out=tmp_path), settings={**SMALL, "epochs": 2})
    assert not done.failed
    chosen = next(r for r in done.records if r.spec.selection.name == "influence")
    assert chosen.environment.devices and (chosen.seconds["select"] or 0) > 0
    assert chosen.gamma.memory_gb_hours is not None and chosen.gamma.memory_basis in ("device", "reserved")
