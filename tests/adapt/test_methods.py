"""Contract tests over the method registry, and what each method really trains."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cprbench.adapt import models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import load_dataset
from cprbench.adapt.export import save_merged
from cprbench.adapt.gradients.measure import submodule_norms
from cprbench.adapt.methods import METHODS, Context, Method, Prepared, Target, build_method, method_class
from cprbench.adapt.settings import label, settings_of
from cprbench.blueprint.exchange import to_axolotl
from cprbench.errors import MethodError, SpecError, TrainingError
from cprbench.spec import RunSpec, TrainingSpec
from cprbench.tasks import load_task

ENCODER_NORMS = {"embed": 9.0, "attn.0": 1.0, "ffn.0": 2.0, "attn.1": 5.0, "ffn.1": 4.0, "head": 3.0}


def load(folder: Path, labels: int | None) -> models.LoadedModel:
    return models.load(resolve(str(folder), offline=True), labels, seed=3, attention="sdpa")


def norms_of(loaded: models.LoadedModel) -> Context:
    return Context(3, measure_norms=lambda: {cell: ENCODER_NORMS.get(cell, 1.0) for cell in loaded.partition.sizes})


def four_bit_here(name: str) -> bool:
    """Return whether a method wants 4-bit weights; skips where they cannot be had."""
    wanted = bool(getattr(method_class(name), "four_bit", False))
    if wanted and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed: no model can be loaded in 4 bits")
    return wanted


def made(name: str, partition: models.Partition, tmp_path: Path) -> Method:
    """Return a method with settings under which a small model has something to train."""
    settings: dict[str, Any] = {"k": 0.4} if "k" in settings_of(build_method(name, {})) else {}
    if name == "spectrum":
        (tmp_path / "scan.yaml").write_text(to_axolotl(partition.parameters["ffn.1"]))
        settings["scan"] = str(tmp_path / "scan.yaml")
    if name == "peft":
        config = {"peft_type": "LORA", "r": 2, "target_modules": ["query", "q_proj", "output.dense", "down_proj"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        settings["config"] = str(tmp_path / "adapter_config.json")
    return build_method(name, settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_frozen_dataclass_of_its_settings_named_like_its_file(name: str) -> None:
    kind = method_class(name)
    assert dataclasses.is_dataclass(kind)
    assert kind.name == name
    assert name.replace("+", "-") == kind.__module__.rpartition(".")[2].replace("_", "-")
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().name = "other"
    assert build_method(name, settings_of(kind())) == kind()
    assert set(kind.learning_rates) <= {"encoder", "causal"}
    assert kind.label_settings == tuple(key for key in kind.label_settings if key in settings_of(kind()))


def check(method: Method, loaded: models.LoadedModel) -> None:
    """Ask a method what the planner asks."""
    sizes, tensors = loaded.partition.sizes, loaded.partition.parameters
    method.check(Target(loaded.kind, sizes, tensors, device="cuda", bitsandbytes=True))


def own_names(loaded: models.LoadedModel, prepared: Prepared) -> set[str]:
    """Return the parameters that should train by what a method states, the new head's included."""
    if prepared.adapters is None:
        parts = prepared.tensors or {cell: loaded.partition.parameters[cell] for cell in prepared.trained_submodules}
        return {*loaded.partition.new_head, *(name for names in parts.values() for name in names)}
    found = set(loaded.partition.new_head)
    for cell in prepared.trained_submodules:
        for name in loaded.partition.parameters[cell]:
            path = name.removesuffix(".weight")
            ends = (key.removeprefix(f"{cell}/") for key in prepared.adapters)
            if name.endswith(".weight") and any(path.endswith(f".{end}") for end in ends):
                found |= {f"{path}.lora_{side}.default.weight" for side in "AB"}
    return found


@pytest.mark.filterwarnings("ignore:.*script_method")  # bitsandbytes 0.50 at import
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_every_method_adapts_a_small_model_and_states_what_trains(
    name: str, kind: str, minilm2: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder, labels = (minilm2, 2) if kind == "encoder" else (tiny_llama, None)
    checkpoint = resolve(str(folder), offline=True)
    loaded = models.load(checkpoint, labels, seed=3, attention="sdpa", four_bit=four_bit_here(name))
    method = made(name, loaded.partition, tmp_path)
    if kind not in method.learning_rates or (name, kind) == ("bitfit", "causal"):  # this Llama has no biases
        with pytest.raises(MethodError):
            check(method, loaded)
        with pytest.raises(MethodError):
            method.prepare(loaded, norms_of(loaded))
        return
    check(method, loaded)
    prepared = method.prepare(loaded, norms_of(loaded))
    assert prepared.trained_submodules == models.trained_cells(loaded)
    trained = {n: p for n, p in prepared.model.named_parameters() if p.requires_grad}
    assert set(trained) == own_names(loaded, prepared)  # what trains is what the FLOPs are counted from
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert prepared.uncounted is None

    # The optimizer is built afterwards and holds exactly these, with two float32 moments each.
    optimizer = training.build_optimizer(loaded.model, TrainingSpec(), 1e-3)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, trained.values()))
    for parameter in loaded.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert training.state_bytes(optimizer) == 2 * 4 * sum(p.numel() for p in trained.values())


@pytest.mark.filterwarnings("ignore:.*script_method")
@pytest.mark.parametrize("name", [name for name in METHODS if getattr(method_class(name), "adapts", False)])
def test_the_seed_of_a_block_fixes_how_adapters_start_and_nothing_else_does(
    name: str, minilm2: Path, tmp_path: Path
) -> None:
    checkpoint, four_bit = resolve(str(minilm2), offline=True), four_bit_here(name)

    def started(seed: int, drawn_before: int) -> dict[str, torch.Tensor]:
        loaded = models.load(checkpoint, 2, seed=3, attention="sdpa", four_bit=four_bit)
        torch.rand(drawn_before)
        before = torch.get_rng_state()
        made(name, loaded.partition, tmp_path).prepare(loaded, dataclasses.replace(norms_of(loaded), seed=seed))
        assert torch.equal(torch.get_rng_state(), before)  # and it moves no other stream
        return {n: p.detach() for n, p in loaded.model.named_parameters() if ".lora_" in n}

    first, again, other = started(1, 0), started(1, 1000), started(2, 0)
    assert first and all(torch.equal(value, again[n]) for n, value in first.items())
    assert all(not torch.equal(value, other[n]) for n, value in first.items() if "lora_A" in n)
    assert all(not value.any() for n, value in first.items() if "lora_B" in n)


@torch.no_grad()
def log_likelihoods(loaded: models.LoadedModel, items: list[objectives.Item]) -> list[list[float]]:
    loaded.model.eval()
    return objectives.objective_for(loaded).log_likelihoods(items)[0]


@pytest.mark.filterwarnings("ignore:.*script_method")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_what_a_method_trained_is_saved_as_safetensors_and_scores_the_same_psi_again(
    name: str, kind: str, minilm2: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder, labels = (minilm2, 2) if kind == "encoder" else (tiny_llama, None)
    checkpoint = resolve(str(folder), offline=True)
    loaded = models.load(checkpoint, labels, seed=3, attention="sdpa", four_bit=four_bit_here(name))
    method = made(name, loaded.partition, tmp_path)
    if kind not in method.learning_rates or (name, kind) == ("bitfit", "causal"):
        pytest.skip(f"{name} does not go with this model")
    prepared = method.prepare(loaded, norms_of(loaded))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    items = objectives.tokenize(loaded, load_dataset(load_task("movie-snippets")).test[:12], 48)
    scored = log_likelihoods(loaded, items)
    save_file({n: p.detach() for n, p in loaded.model.named_parameters() if p.requires_grad}, tmp_path / "delta")

    model = {"source": str(folder), "label": "x", "revision": None, "config": {}, "kind": kind, "parameters": 1}
    spec = RunSpec.model_validate(
        {
            "task": {"name": "x", "version": 1, "data_sha256": "0" * 64},
            "model": {**model, "weights_sha256": checkpoint.weights_sha256},
            "method": {"name": name, "settings": settings_of(method)},
            "selection": {"name": "all"},
            "seed": 3,
            "training": {},
        }
    )
    for file in tmp_path.glob("*.*"):  # a scan and a config are not asked again
        file.unlink()
    note = json.loads(json.dumps(prepared.notes.get("adapter_config")))
    save_merged(spec, str(folder), load_file(tmp_path / "delta"), tmp_path / "plain", labels, adapter_config=note)
    plain = load(tmp_path / "plain", labels)
    assert all("lora" not in n for n, _ in plain.model.named_parameters())
    assert log_likelihoods(plain, items) == [pytest.approx(row, abs=2e-5) for row in scored]


def test_partial_fills_by_rank_of_norm_and_says_what_it_reached(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    prepared = build_method("partial", {"k": 0.09}).prepare(loaded, norms_of(loaded))
    sizes, total = loaded.partition.sizes, loaded.partition.total
    # embed is not asked for, attn.1 fits, ffn.1 does not fit on top of it, head does, attn.0 does.
    assert prepared.trained_submodules == ("attn.0", "attn.1", "head")
    assert prepared.k_asked == 0.09
    assert prepared.k_reached == pytest.approx(sum(sizes[c] for c in prepared.trained_submodules) / total)
    trained = sum(p.numel() for n, p in loaded.model.named_parameters() if p.requires_grad)
    assert trained == round(prepared.k_reached * total) + 2 * 384 + 2


def test_everything_at_once_needs_no_choice_so_none_is_paid_for(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    method = build_method("partial", {"k": 1, "embed": True})
    assert not method.chooses

    def refuse() -> dict[str, float]:
        raise AssertionError("measured although there is nothing to choose")

    prepared = method.prepare(loaded, Context(3, measure_norms=refuse))
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert prepared.k_reached == 1.0


def test_nothing_below_the_lowest_trained_submodule_gets_a_backward_pass(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    build_method("partial", {"k": 0.08}).prepare(loaded, norms_of(loaded))  # attn.1 and head
    in_graph: dict[str, bool] = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, i, out, name=name: in_graph.update({name: out.requires_grad}))
    loss, _ = objectives.objective_for(loaded).loss([objectives.Item((101, 2023, 102), (), 1)])
    loss.backward()  # type: ignore[no-untyped-call]
    assert not any(graph for name, graph in in_graph.items() if "layer.0." in name)
    assert all(graph for name, graph in in_graph.items() if "layer.0." not in name)
    assert all(p.grad is None for p in loaded.model.get_submodule("bert.embeddings").parameters())


def test_submodule_norms_are_those_of_the_batch_mean_gradient(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    examples = [e for e in load_dataset(load_task("movie-snippets")).train[:40] if len(e.prompt) < 120][:8]
    items = objectives.tokenize(loaded, examples, 48)
    engine = training.Engine.start("fp32", bf16_is_fast=False)
    seen: list[objectives.Shape] = []
    norms = submodule_norms(
        loaded, objectives.objective_for(loaded), engine, [items], lambda shape, extra: seen.append(shape)
    )
    loaded.model.requires_grad_(True).eval()
    texts = loaded.tokenizer([e.prompt for e in examples], return_tensors="pt", padding=True)
    answers = torch.tensor([e.answer for e in examples])
    loaded.model(**texts, labels=answers).loss.backward()
    for cell, names in loaded.partition.parameters.items():
        squares = [float(loaded.model.get_parameter(n).grad.pow(2).sum()) for n in names]
        assert norms[cell] == pytest.approx(sum(squares) ** 0.5, rel=1e-4), cell
    assert [shape.batch for shape in seen] == [8]


def test_frozen_parts_run_without_dropout_and_trained_parts_with_it(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    loaded.train_only(["attn.1"])
    training.set_modes(loaded.model)
    modes = {name: module.training for name, module in loaded.model.named_modules()}
    assert not modes["bert.encoder.layer.0.attention.output.dropout"]
    assert not modes["bert.embeddings.dropout"]
    assert not modes["bert.encoder.layer.1.output.dropout"]
    assert modes["bert.encoder.layer.1.attention.output.dropout"]
    assert modes["dropout"]  # before the new head


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(minilm2: Path) -> None:
    loaded = load(minilm2, 2)
    loaded.train_only(())
    with torch.no_grad():
        loaded.model.get_parameter("classifier.weight").fill_(float("inf"))
    item = objectives.Item((101, 2023, 102), (), 1)
    engine = training.Engine.start("fp32", bf16_is_fast=False)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step 1 .*Lower the learning rate"):
        training.train(
            loaded, objectives.objective_for(loaded), engine, [[item]] * 2, TrainingSpec(), 0.1, lambda *_: None
        )


def test_batches_depend_on_the_seed_and_the_lengths_alone_and_are_bucketed_by_length() -> None:
    lengths = [(i * 7919) % 60 + 4 for i in range(400)]
    first = training.plan_batches(lengths, 16, 2, seed=1)
    assert first == training.plan_batches(lengths, 16, 2, seed=1)
    assert first != training.plan_batches(lengths, 16, 2, seed=2)
    assert len(first) == 50
    assert sorted(i for batch in first[:25] for i in batch) == list(range(400))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in first[:25])
    assert padded < 1.15 * sum(lengths)


def test_the_learning_rate_goes_up_then_down_over_the_real_steps() -> None:
    recipe = TrainingSpec(warmup_fraction=0.06)
    scales = [training.learning_rate_scale(step, 100, recipe) for step in range(100)]
    assert max(scales) == scales[6] == 1.0
    assert scales[0] == pytest.approx(1 / 7)
    assert scales[99] == pytest.approx(1 / 94)
    cold = TrainingSpec(warmup_fraction=0.0)
    assert [training.learning_rate_scale(step, 4, cold) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_constant_schedule_stays_up_after_its_warm_up() -> None:
    recipe = TrainingSpec(warmup_fraction=0.1, schedule="constant")
    scales = [training.learning_rate_scale(step, 20, recipe) for step in range(20)]
    assert scales == [pytest.approx(1 / 3), pytest.approx(2 / 3), *[1.0] * 18]


def test_labels_show_headline_settings_and_whatever_differs_from_the_defaults() -> None:
    assert label(build_method("partial", {})) == "partial k=0.15"
    assert label(build_method("partial", {"k": 1, "embed": True})) == "partial k=1 embed=true"
    assert label(build_method("lora", {"r": 8})) == "lora"
    assert label(build_method("lora", {"r": 4})) == "lora r=4"


def test_settings_that_a_method_lacks_or_that_are_ill_typed_are_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown setting partial.kk. Did you mean 'k'"):
        build_method("partial", {"kk": 0.1})
    with pytest.raises(SpecError, match="Method 'full' has no settings"):
        build_method("full", {"k": 0.1})
    with pytest.raises(SpecError, match=r"lora.r = 2.5: it should be a valid integer"):
        build_method("lora", {"r": 2.5})
    with pytest.raises(SpecError, match=r"partial.embed = 1: it should be a valid boolean"):
        build_method("partial", {"embed": 1})
    with pytest.raises(SpecError, match="Did you mean 'partial'"):
        build_method("partal", {})
