"""The frozen-prefix cache and gradient checkpointing: the same losses, and exactly the counted work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from cprbench.adapt import objectives, prefix, training
from cprbench.adapt.methods.adapters import insert, lora_ranks
from cprbench.adapt.models import (
    LoadedModel,
    first_trained_layer,
    layer_linears,
    layers_of,
    partition,
    task_head,
    trained_cells,
)
from cprbench.adapt.prefix import CachePlan, Room, plan_cache
from cprbench.meters.flops import Trained
from cprbench.plans import forecast
from cprbench.spec import TrainingSpec
from tests.adapt.small_models import engine, flops, items, small
from tests.test_flops import CAUSAL

#: A family of every build: the others differ in sizes and names alone.
BUILDS = ("bert", "distilbert", "gemma", "gpt2", "llama with a tied lm_head", "mistral", "qwen3")
ROOMY = Room(memory=1 << 20, disk=1 << 24)
SETS = {"the last layer": ("attn.2", "ffn.2"), "ffn.1": ("ffn.1",), "nothing but the head": ("head",)}


def fit(
    loaded: LoadedModel, room: Room = ROOMY, precision: str = "fp32", folder: Path | None = None, **recipe: Any
) -> tuple[list[float], list[Any], CachePlan]:
    """Train for 3 epochs; return the losses, the passes told, and what was kept."""
    settings = TrainingSpec.model_validate({"cache_prefix": "off", "batch_size": 4, "epochs": 3, **recipe})
    objective = _objective(loaded)
    pool = items(loaded, 10)
    plan = training.plan_batches([item.length for item in pool], 4, 3, seed=1)
    batches = [[pool[i] for i in batch] for batch in plan]
    here = engine(precision)
    cache = plan_cache(loaded, objective, batches, settings, room, bf16=precision == "bf16")
    losses, works = [], []

    def after_step(step: int, loss: float, done: Any) -> None:
        losses.append(loss)
        works.extend(done)

    torch.manual_seed(5)
    training.train(loaded, objective, here, batches, settings, 1e-3, after_step, cache=cache, folder=folder)
    return losses, works, cache


def _objective(loaded: LoadedModel) -> objectives.Objective:
    kind = objectives.Classification if loaded.kind == "encoder" else objectives.ChoiceLikelihood
    return kind(loaded.model, 0)


@pytest.mark.parametrize("trains", SETS)
@pytest.mark.parametrize("name", BUILDS)
def test_losses_and_weights_are_the_same_with_and_without_the_cache(name: str, trains: str, tmp_path: Path) -> None:
    if trains == "nothing but the head" and name not in CAUSAL:
        cells: tuple[str, ...] = ()  # the new head alone
    else:
        cells = SETS[trains]
    without = small(name, cells)
    in_memory, on_disk, a_bit = (copy.deepcopy(without) for _ in range(3))
    expected, _, _ = fit(without)
    found, works, cache = fit(in_memory, cache_prefix="auto")
    assert cache.mode == "memory" and cache.first_layer == first_trained_layer(without) > 0
    assert found == pytest.approx(expected, abs=1e-5)
    assert fit(on_disk, cache_prefix="disk", folder=tmp_path)[0] == pytest.approx(expected, abs=1e-5)
    tight = fit(a_bit, Room(memory=2000, disk=0), cache_prefix="memory")
    assert tight[0] == pytest.approx(expected, abs=1e-5)
    below = [work.shape.batch for work in works if work.last_layer is not None]
    assert sum(below) == 10  # every example went through the frozen layers once
    assert 10 < sum(work.shape.batch for work in tight[1] if work.last_layer is not None) < 30
    for name, parameter in without.model.named_parameters():
        torch.testing.assert_close(in_memory.model.get_parameter(name), parameter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("setting", ["cache", "checkpointing", "both"])
@pytest.mark.parametrize("trains", [("ffn.1",), ("attn.1", "ffn.2"), ("attn.0",)])
@pytest.mark.parametrize("name", [name for name in BUILDS if name != "mistral"])  # torch counts no sliding window
def test_the_passes_told_are_what_torch_executes(name: str, trains: tuple[str, ...], setting: str) -> None:
    loaded = small(name, trains, dropout=0.0)
    recipe: dict[str, Any] = {"cache_prefix": "auto"} if setting != "checkpointing" else {}
    recipe |= {"gradient_checkpointing": True} if setting != "cache" else {}
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        _, works, _ = fit(loaded, **recipe)
    assert (
        flops(loaded, Trained(frozenset(trains), bool(loaded.partition.new_head)), works) == counter.get_total_flops()
    )


@pytest.mark.parametrize("targets", ["everything", "what a layer ends with"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "gemma", "llama", "qwen3"])
def test_the_passes_told_are_what_torch_repeats_through_adapters(name: str, targets: str) -> None:
    """Attention's own dropout is off, since torch's counter does not see the kernel that would take its place."""
    loaded = small(name, (), dropout=0.0)
    linears = layer_linears(loaded)
    last = ("output.dense", "c_proj", "down_proj")
    wanted = [path for path, end in linears.items() if targets == "everything" or end.endswith(last)]
    insert(loaded, {"peft_type": "LORA", "r": 4, "target_modules": wanted, "fan_in_fan_out": name == "gpt2"}, seed=1)
    ranks, _ = lora_ranks(loaded, linears)
    _executes(loaded, Trained(frozenset(trained_cells(loaded)), bool(loaded.partition.new_head), ranks))


@pytest.mark.parametrize("trains", [("ffn.1",), ("attn.0", "ffn.2"), ("attn.1",)])
def test_what_a_layer_ends_with_is_repeated_where_dropout_follows_it(trains: tuple[str, ...]) -> None:
    loaded = small("gpt2", trains, dropout=0.0)
    loaded.model.config.resid_pdrop = 0.1
    for layer in layers_of(loaded.model):
        layer.mlp.dropout.p = layer.attn.resid_dropout.p = 0.1
    _executes(loaded, Trained(frozenset(trains), new_head=False))


def _executes(loaded: LoadedModel, trained: Trained) -> None:
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        _, works, _ = fit(loaded, gradient_checkpointing=True)
    assert flops(loaded, trained, works) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_checkpointing_changes_no_loss_and_keeps_no_activation_of_a_layer(name: str) -> None:
    plain = small(name, ("attn.1",))
    again = copy.deepcopy(plain)
    expected, _, _ = fit(plain)
    found, works, _ = fit(again, gradient_checkpointing=True)
    assert found == pytest.approx(expected, abs=1e-6)
    assert {work.first_layer for work in works if work.recompute} == {1}
    layers = layers_of(again.model)
    assert [layer.training for layer in layers] == [False, True, True]  # of layer 2 only the shell: no dropout there
    frozen = [module for module in layers[2].modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(module.training for module in frozen)


def test_bf16_states_keep_the_loss_within_one_percent() -> None:
    """bf16 keeps 8 bits, so a state is rounded by up to 0.4 %; layers above and the mean over a batch even that out."""
    AcceleratorState._reset_state(True)
    try:
        plain = small("qwen3", ("attn.2",))
        kept = copy.deepcopy(plain)
        expected, _, _ = fit(plain, precision="bf16")
        found, _, cache = fit(kept, precision="bf16", cache_prefix="memory")
    finally:
        AcceleratorState._reset_state(True)
    assert cache.bytes_per_token == 2 * 64
    assert found == pytest.approx(expected, rel=1e-2)
    assert found != expected


@pytest.mark.parametrize(
    ("trains", "recipe", "room", "why"),
    [
        (("attn.0",), {}, ROOMY, "the backward pass reaches the first layer"),
        (("attn.2", "embed"), {}, ROOMY, "the backward pass reaches the first layer"),
        (("attn.2",), {"compile": True}, ROOMY, "training.compile: a compiled model begins at its input"),
        (("attn.2",), {"cache_prefix": "off"}, ROOMY, "training.cache_prefix = off"),
        (("attn.2",), {}, Room(100, 200), "17 664 bytes"),
    ],
)
def test_nothing_is_kept_where_nothing_can_be_and_the_record_says_why(
    trains: tuple[str, ...], recipe: dict[str, Any], room: Room, why: str
) -> None:
    loaded = small("bert", trains)
    pool = items(loaded, 10)
    settings = TrainingSpec.model_validate({"cache_prefix": "auto", **recipe})
    plan = plan_cache(loaded, _objective(loaded), [pool, pool], settings, room, bf16=False)
    needed = 256 * sum(len(item.ids) for item in pool)
    expected = (
        why if "bytes" not in why else f"{needed} bytes of states, more than there is room for (200 bytes on disk)"
    )
    assert plan.told() == {"mode": "off", "why": expected}
    once = plan_cache(loaded, _objective(loaded), [pool], TrainingSpec(), ROOMY, bf16=False)
    assert once.mode == "off"


def test_examples_that_are_seen_once_are_not_kept_and_disk_takes_what_memory_cannot() -> None:
    loaded = small("bert", ("attn.2",))
    pool = items(loaded, 10)
    once = plan_cache(loaded, _objective(loaded), [pool], TrainingSpec(), ROOMY, bf16=False)
    assert once.why == "every example is trained on once"
    twice = plan_cache(loaded, _objective(loaded), [pool, pool], TrainingSpec(), Room(100, 1 << 20), bf16=False)
    assert twice.mode == "disk"


def test_adapters_on_input_tables_reach_down_to_them() -> None:
    loaded = small("bert", ())
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["word_embeddings"]}
    insert(loaded, config, seed=1)
    assert first_trained_layer(loaded) == 0
    assert trained_cells(loaded) == ("embed",)
    loaded = small("bert", ())
    insert(loaded, config | {"target_modules": ["layer.2.output.dense"]}, seed=1)
    assert first_trained_layer(loaded) == 2


def test_a_plan_knows_the_room_that_a_run_takes() -> None:
    assert (forecast._CACHE_MEMORY, forecast._CACHE_DISK) == (prefix._MOST_MEMORY, prefix._MOST_DISK)


def test_states_are_kept_of_tried_builds_alone() -> None:
    """ELECTRA projects its embeddings in cell head, before the layers: they would train, and kept states grow stale."""
    config = transformers.ElectraConfig(
        vocab_size=101, embedding_size=32, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96,
    )  # fmt: skip
    model = transformers.ElectraForSequenceClassification(config)
    loaded = LoadedModel(model, None, "encoder", partition(model, task_head(model)), 2)
    loaded.train_only(("head",))
    pool = items(loaded, 4)
    plan = plan_cache(loaded, _objective(loaded), [pool, pool], TrainingSpec(), ROOMY, bf16=False)
    assert plan.told() == {"mode": "off", "why": "model_type 'electra': states of its layers have not been tried"}
