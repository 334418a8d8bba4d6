"""qlora: refused where it cannot run; and where bitsandbytes is, a 4-bit model that trains, measures and merges."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cprbench.adapt import four_bit, models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import load_dataset
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import influence
from cprbench.adapt.methods import Context, Target, build_method
from cprbench.adapt.settings import settings_of
from cprbench.errors import MethodError, ModelError
from cprbench.runs.planner import Inspected
from cprbench.sessions import inspection
from cprbench.sessions.channel import Channel
from cprbench.tasks import load_task
from tests.cli.test_cli import refused

MISSING = importlib.util.find_spec("bitsandbytes") is None
needs_bitsandbytes = pytest.mark.skipif(MISSING, reason="bitsandbytes is not installed: pip install 'cprbench[qlora]'")
quiet = pytest.mark.filterwarnings("ignore:.*script_method")  # bitsandbytes 0.50 at import
TASK = "movie-snippets"


def test_qlora_has_the_settings_and_rates_of_lora() -> None:
    qlora, lora = build_method("qlora", {}), build_method("lora", {})
    assert settings_of(qlora) == settings_of(lora)
    assert qlora.learning_rates == lora.learning_rates


def test_a_machine_without_cuda_or_bitsandbytes_is_told_what_is_missing_and_what_to_use_instead() -> None:
    method = build_method("qlora", {})
    with pytest.raises(MethodError, match=r"needs an NVIDIA GPU with CUDA.*computes on 'cpu'\. Use lora"):
        method.check(Target("causal", {"attn.0": 1}, bitsandbytes=True))
    with pytest.raises(MethodError, match=r"needs bitsandbytes.*pip install 'cprbench\[qlora\]'.*or use lora"):
        method.check(Target("causal", {"attn.0": 1}, device="cuda"))
    with pytest.raises(MethodError, match=r"qlora\.r = 0"):
        build_method("qlora", {"r": 0}).check(Target("causal", {"attn.0": 1}, device="cuda", bitsandbytes=True))
    method.check(Target("causal", {"attn.0": 1}, device="cuda", bitsandbytes=True))


def test_the_inspecting_child_says_what_runs_here_compute_on(minilm2: Path) -> None:
    task = load_task(TASK)
    job = {"task": task.model_dump(mode="json"), "model": str(minilm2), "data": None, "offline": True}
    found = Inspected.of(task, json.loads(json.dumps(inspection.work(job, Channel(None, None)))))
    assert found.device == found.target.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.bitsandbytes == found.target.bitsandbytes == (not MISSING)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so it is not refused")
def test_the_command_refuses_before_anything_runs(minilm2: Path, tmp_path: Path) -> None:
    said = refused("run", TASK, "--model", str(minilm2), "--method", "lora,qlora", "--out", str(tmp_path / "runs"))
    assert "method 'qlora' needs an NVIDIA GPU with CUDA" in " ".join(said.split())
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_a_model_in_full_precision_is_not_passed_off_as_four_bit(minilm2: Path) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa")
    with pytest.raises(MethodError, match="not in 4 bits"):
        build_method("qlora", {}).prepare(loaded, Context(3))


@pytest.mark.skipif(not MISSING, reason="bitsandbytes is installed, so it is not missing")
def test_loading_in_four_bits_without_bitsandbytes_says_what_to_install(minilm2: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'cprbench\[qlora\]'"):
        models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa", four_bit=True)


# --- with bitsandbytes, which has a CPU backend too -------------------------------------------------


def packed(folder: Path, labels: int | None) -> models.LoadedModel:
    return models.load(resolve(str(folder), offline=True), labels, seed=3, attention="sdpa", four_bit=True)


def some_items(loaded: models.LoadedModel, n: int = 8) -> list[objectives.Item]:
    return objectives.tokenize(loaded, load_dataset(load_task(TASK)).test[:n], 48)


@needs_bitsandbytes
@quiet
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_only_linears_are_packed_and_the_partition_stays_that_of_the_unpacked_model(
    kind: str, minilm2: Path, tiny_llama: Path
) -> None:
    folder, labels = (minilm2, 2) if kind == "encoder" else (tiny_llama, None)
    loaded = packed(folder, labels)
    plain = models.load(resolve(str(folder), offline=True), labels, seed=3, attention="sdpa")
    assert loaded.partition == plain.partition
    packs = {name for name, module in loaded.model.named_modules() if four_bit.is_four_bit(module)}
    inside = set(models.layer_linears(plain))
    assert packs == (inside | {"bert.pooler.dense"} if kind == "encoder" else inside)
    for name, parameter in loaded.model.named_parameters():
        if name.removesuffix(".weight") in packs and name.endswith(".weight"):
            assert (parameter.dtype, parameter.requires_grad) == (torch.uint8, False)
            assert 2 * parameter.numel() == plain.model.get_parameter(name).numel()
        else:
            assert torch.equal(parameter, plain.model.get_parameter(name)), name


@needs_bitsandbytes
@quiet
def test_a_step_in_bf16_rounds_no_bias_and_scores_stay_float32(minilm2: Path) -> None:
    loaded = packed(minilm2, 2)
    build_method("qlora", {}).prepare(loaded, Context(3))
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters() if not p.requires_grad}
    seen: list[torch.dtype] = []
    query: Any = loaded.model.get_submodule("bert.encoder.layer.0.attention.self.query.base_layer")
    query.register_forward_hook(lambda module, inputs, output: seen.append(module.compute_dtype))
    objective = objectives.objective_for(loaded)
    items = some_items(loaded)
    optimizer = training.build_optimizer(loaded.model, training.TrainingSpec(), 1e-2)
    with torch.no_grad():
        first = objective.losses(items)[0]
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            objective.loss(items)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    loaded.model.eval()
    with torch.no_grad():
        assert objective.losses(items)[0].mean() < first.mean()
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32]
    for name, parameter in loaded.model.named_parameters():
        assert name not in before or torch.equal(parameter, before[name]), name


@needs_bitsandbytes
@quiet
def test_norms_of_examples_through_packed_weights_are_those_of_the_unpacked_model(minilm2: Path) -> None:
    """The merged model computes the same function, and its own engine needs no packed weight."""
    loaded = packed(minilm2, 2)
    prepared = build_method("qlora", {}).prepare(loaded, Context(3))
    cells = {
        cell: tuple(n for n, _ in loaded.model.named_parameters() if n.replace(".base_layer", "") in names)
        for cell, names in loaded.partition.parameters.items()
    }
    engine = Engine.start("fp32", bf16_is_fast=False)

    def norms(of: models.LoadedModel, parts: dict[str, tuple[str, ...]]) -> Any:
        objective = objectives.objective_for(of)
        return influence.measure(of, objective, engine, some_items(of), 4, lambda *_: None, cells=parts).norms

    through = norms(loaded, cells)
    assert prepared.merge is not None
    plain = models.LoadedModel(prepared.merge(), loaded.tokenizer, "encoder", loaded.partition, 2)
    assert np.allclose(through, norms(plain, dict(loaded.partition.parameters)), rtol=1e-4)
    assert (through > 0).all()
