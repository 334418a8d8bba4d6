"""Plans: what trains, what it takes, what it costs, before anything has run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.configs import Config
from cprbench.blueprint.picking import fill
from cprbench.errors import CprbenchError, MethodError, ModelError, SpecError, TrainingError
from cprbench.meters.carbon import CarbonFactors
from cprbench.meters.flops import Pass, Trained, pass_flops
from cprbench.plans.boards import BOARDS, board
from cprbench.plans.forecast import Machine, Questions, document, frozen_state, plan_model, questions_of
from cprbench.plans.parameters import layout
from cprbench.runs.arms import arms_of
from cprbench.spec import ArmSpec
from cprbench.tasks import load_task, training_for
from tests.plans.tiny_models import CONFIGS, kind_of

TASK = load_task("movie-snippets")
FOUND = Questions(examples=100, labels=2, answer_tokens=1)
GPU = Machine("a100-80", BOARDS["a100-80"], 0.4, CarbonFactors(50.0, "given", None, 1.2), on_gpu=True)
CPU = Machine()
TRAINING = {"batch_size": 16, "epochs": 2, "select_warmup_steps": 3, "select_batches": 4, "precision": "fp32"}


def model(name: str) -> Config:
    return Config(name, name, kind_of(name), CONFIGS[name].to_dict())


def rows(name: str, method: str, machine: Machine = GPU, found: Questions = FOUND, **training: Any) -> list[Any]:
    settings: Mapping[str, Any] = {}
    if " " in method:
        method, _, words = method.partition(" ")
        settings = json.loads(words)
    recipe = training_for(TASK, {**TRAINING, **training}, "test")
    arms = arms_of([ArmSpec(method=method, settings=dict(settings))])
    found_rows: list[Any] = plan_model(model(name), arms, TASK, recipe, found, machine)["rows"]
    return found_rows


def row(name: str, method: str, machine: Machine = GPU, **more: Any) -> dict[str, Any]:
    (only,) = rows(name, method, machine, **more)
    assert isinstance(only, dict)
    return only


def flops(name: str, trained: Trained, *passes: Pass) -> int:
    labels = 2 if kind_of(name) == "encoder" else None
    return sum(pass_flops(CONFIGS[name].to_dict(), kind_of(name), labels, trained, one).total for one in passes)


def a_pass(trains: Any, batch: int, times: int, length: int = 48, **more: Any) -> Pass:
    given = {"tokens": batch * length, "scored": batch, "times": times, "backward": True, **more}
    return Pass(phase="train", attempt=1, trains=trains, batch=batch, length=length, **given)


SIZES = layout(CONFIGS["bert"].to_dict(), "encoder", 2).sizes


# --- what trains ------------------------------------------------------------------------------------


def test_full_lora_and_head_train_what_they_say() -> None:
    full, lora, head = (row("bert", name) for name in ("full", "lora", "head"))
    assert full["trained_parameters"] == sum(SIZES.values())
    assert lora["trained_parameters"] == 3 * 8 * (4 * 128 + 2 * 224)
    assert head["trained_parameters"] == 0
    assert head["new_head_parameters"] == 2 * 64 + 2
    assert {one["set"] for one in (full, lora, head)} == {"known"}


def test_bitfit_trains_every_bias_and_last_layers_a_k_set_from_the_output() -> None:
    biases = layout(CONFIGS["bert"].to_dict(), "encoder", 2).tensors.values()
    wanted = sum(math.prod(shape) for shapes in biases for name, shape in shapes.items() if name.endswith("bias"))
    assert row("bert", "bitfit")["trained_parameters"] == wanted
    last = row("bert", 'last-layers {"k": 0.3}')
    picked = fill(list(SIZES)[::-1], SIZES, sum(SIZES.values()), 0.3, embed=False)
    assert last["trained_parameters"] == sum(SIZES[cell] for cell in picked.submodules)
    assert last["k_reached"] == picked.k_reached


@pytest.mark.parametrize("method", ["partial", "random-submodules", "partial+lora"])
def test_a_set_that_only_the_run_can_choose_has_a_worst_and_a_best_case(method: str) -> None:
    found = row("bert", f'{method} {{"k": 0.2}}')
    worst, best = (fill(order, SIZES, sum(SIZES.values()), 0.2, embed=False) for order in (SIZES, [*SIZES][::-1]))
    assert found["set"] == "worst case"
    assert found["best_case"]["set"] == "best case"
    assert "attn.0" in worst.submodules and "attn.0" not in best.submodules
    if method != "partial+lora":
        assert found["trained_parameters"] == sum(SIZES[cell] for cell in worst.submodules)
    assert found["activation_bytes"] > found["best_case"]["activation_bytes"]
    assert found["flops"] > found["best_case"]["flops"]


def test_every_token_of_a_text_is_predicted_and_its_logits_are_counted() -> None:
    found = questions_of(load_task("kjv-verses"), data=None, offline=False)
    assert (found.examples, found.labels, found.answer_tokens) == (26_570, None, None)
    few, all_tokens = (row("llama", "full", found=replace(found, answer_tokens=n)) for n in (47, None))
    trained = Trained(frozenset(layout(CONFIGS["llama"].to_dict(), "causal", None).sizes), new_head=False)
    steps = 2 * [a_pass("method", 16, 26_570 // 16, 47, scored=16 * 47), a_pass("method", 10, 1, 47, scored=10 * 47)]
    assert all_tokens["flops"] == few["flops"] == flops("llama", trained, *steps)


def test_everything_with_the_input_tables_is_full_tuning_and_needs_no_measuring() -> None:
    whole, full = row("bert", 'partial {"k": 1.0, "embed": true}'), row("bert", "full")
    same = [key for key in full if key not in ("arm", "method", "k_asked")]
    assert [whole[key] for key in same] == [full[key] for key in same]


def test_a_blueprint_picks_really(tmp_path: Path) -> None:
    norms = {cell: 10.0 if cell in ("attn.1", "ffn.2") else 1.0 for cell in SIZES}
    layers = [
        {"id": cell, "gradient_norm": norms[cell], "alpha": None, "gamma": None, "k_star": None, "domain_tags": {}}
        | {"parameters": size}
        for cell, size in SIZES.items()
    ]
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"model_id": "tiny", "training_checkpoint": 1.0, "layers": layers}))
    k = (SIZES["attn.1"] + SIZES["ffn.2"]) / sum(SIZES.values())
    local, given = (
        row("bert", f'partial {{"k": {k}, "blueprint": "{file}", "blend_weight": {weight}}}') for weight in (0.5, 1.0)
    )
    for found in (local, given):
        assert found["set"] == "known"
        assert found["trained_parameters"] == SIZES["attn.1"] + SIZES["ffn.2"]
    assert local["flops"] > given["flops"]  # blended norms are measured here, published ones alone are not


def test_what_cannot_run_is_a_row_with_its_reason_and_an_error_where_nothing_can() -> None:
    assert "causal models have none" in row("llama", "head")["why_not"]
    assert "needs an NVIDIA GPU" in row("llama", "qlora", CPU)["why_not"]
    assert "below the smallest submodule" in row("bert", 'partial {"k": 0.001}')["why_not"]
    assert "spent on what a run measures" in row("bert", 'partial {"budget": "time=0.5"}')["why_not"]
    assert "needs a config" in row("bert", "peft")["why_not"]
    assert "warmup_steps takes 14" in row("bert", "partial", select_warmup_steps=14)["why_not"]
    recipe = training_for(TASK, TRAINING, "test")
    args = (TASK, recipe, FOUND, GPU, None)
    with pytest.raises(MethodError, match="head: method 'head' trains only a new task head"):
        document([model("llama")], arms_of([ArmSpec(method="head")]), *args)
    both = document([model("llama")], arms_of([ArmSpec(method="head"), ArmSpec(method="full")]), *args)
    assert ["why_not" in one for one in both["models"][0]["rows"]] == [True, False]


@pytest.mark.parametrize("tuner", [{"peft_type": "IA3"}, {"peft_type": "LORA", "r": 4}])
def test_a_peft_config_is_counted_when_it_runs(tuner: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**tuner, "target_modules": ["query"]}))
    why = row("bert", f'peft {{"config": "{file}"}}')["why_not"]
    assert "is counted when it runs. Where it is plain LoRA, plan lora of the same rank" in why


# --- FLOPs ------------------------------------------------------------------------------------------


def test_full_tuning_takes_a_forward_and_a_backward_pass_per_batch_of_every_epoch() -> None:
    everything = Trained(frozenset(SIZES), new_head=True)
    wanted = flops("bert", everything, a_pass("all", 16, 2 * 6), a_pass("all", 4, 2))
    assert row("bert", "full")["flops"] == wanted
    assert row("bert", "full", max_examples=32)["flops"] == flops("bert", everything, a_pass("all", 16, 4))


def test_a_causal_model_reads_no_last_token_and_scores_answers_alone() -> None:
    everything = Trained(frozenset(layout(CONFIGS["llama"].to_dict(), "causal", None).sizes), new_head=False)
    found = row("llama", "full", found=Questions(16, None, 3))
    assert found["flops"] == flops("llama", everything, a_pass("all", 16, 2, length=47, scored=48))


def test_warming_the_head_and_measuring_norms_are_on_the_bill() -> None:
    sizes = sum(SIZES.values())
    picked = fill(list(SIZES), SIZES, sizes, 0.15, embed=False).submodules
    trained = Trained(frozenset(picked), new_head=True)
    train = [a_pass("method", 16, 2 * 6 - 3), a_pass("method", 4, 2)]
    wanted = flops("bert", trained, a_pass("head", 16, 3), a_pass("all", 32, 4), *train)
    assert row("bert", "partial")["flops"] == wanted
    causal = row("llama", "partial", select_warmup_steps=999)
    assert "why_not" not in causal  # it has no new head to warm


def test_layers_below_what_trains_are_computed_once_where_their_states_are_kept() -> None:
    kept, again = (row("bert", 'last-layers {"k": 0.2}', cache_prefix=mode) for mode in ("auto", "off"))
    picked = fill([*SIZES][::-1], SIZES, sum(SIZES.values()), 0.2, embed=False).submodules
    first = min(int(cell[-1]) for cell in picked if "." in cell)
    assert first > 0
    trained, once = Trained(frozenset(picked), new_head=True), {"backward": False, "last_layer": first}
    below = [a_pass("method", 16, 6, **once), a_pass("method", 4, 1, **once)]
    above = [a_pass("method", 16, 12, first_layer=first), a_pass("method", 4, 2, first_layer=first)]
    assert kept["flops"] == flops("bert", trained, *below, *above)
    assert kept["flops"] < again["flops"]
    assert kept["cache_bytes"] == 100 * 48 * 64 * 4
    assert again["cache_bytes"] == 0
    assert row("bert", 'last-layers {"k": 0.2}', cache_prefix="disk")["cache_bytes"] == 0


@pytest.mark.parametrize(
    ("method", "training"),
    [("full", {}), ('last-layers {"k": 0.2}', {"epochs": 1}), ('last-layers {"k": 0.2}', {"compile": True})],
)
def test_nothing_is_kept_where_a_run_keeps_nothing(method: str, training: dict[str, Any]) -> None:
    assert row("bert", method, **training)["cache_bytes"] == 0


def test_gradient_checkpointing_takes_less_memory_and_more_flops() -> None:
    plain, again = (row("llama", "full", gradient_checkpointing=flag) for flag in (False, True))
    assert again["activation_bytes"] < plain["activation_bytes"] / 2
    assert 1.2 < again["flops"] / plain["flops"] < 1.4  # a third forward pass, without the output layer


def test_the_recipe_and_the_methods_settings_reach_the_bytes() -> None:
    plain = row("bert", "full")
    assert 4 * row("bert", "full", optimizer="adamw8bit")["optimizer_bytes"] == plain["optimizer_bytes"]
    assert row("bert", "full", attention="eager")["activation_bytes"] > plain["activation_bytes"]
    assert row("bert", "full", precision="bf16")["activation_bytes"] < plain["activation_bytes"]
    lora, dropped = (row("bert", f'lora {{"dropout": {p}}}') for p in (0.0, 0.1))
    assert dropped["activation_bytes"] > lora["activation_bytes"]
    assert row("llama", "qlora")["weight_bytes"] < row("llama", "lora")["weight_bytes"]
    partial = row("bert", "partial", batch_size=2)
    assert (partial["peak_in"], plain["peak_in"]) == ("select", "train")


def test_without_a_number_of_examples_flops_are_unknown_with_a_reason_and_bytes_are_not() -> None:
    found = row("bert", "full", found=Questions(None, 2, 1))
    assert (found["flops"], found["hours"], found["co2_kg"]) == (None, None, None)
    assert "number of training examples" in found["why_missing"]["flops"]
    assert found["why_missing"]["hours"] == found["why_missing"]["flops"]
    assert found["peak_bytes"] > found["weight_bytes"]
    assert row("bert", "full", found=Questions(None, 2, 1), max_examples=100)["flops"] == row("bert", "full")["flops"]


# --- hardware ---------------------------------------------------------------------------------------


def test_hours_kwh_and_co2_follow_from_stated_rates() -> None:
    found = row("llama", "full", precision="bf16")
    assert found["hours"] == pytest.approx(found["flops"] / (0.4 * 312e12) / 3600)
    assert found["kwh"] == pytest.approx(found["hours"] * 0.4)
    assert found["co2_kg"] == pytest.approx(found["kwh"] * 50 * 1.2 / 1000)
    assert row("llama", "full")["hours"] == pytest.approx(found["flops"] / (0.4 * 19.5e12) / 3600)  # fp32


def test_without_an_intensity_co2_is_none_and_without_a_board_hours_are_too() -> None:
    dark = Machine("t4-16", BOARDS["t4-16"], 0.4, None, on_gpu=True)
    found = row("bert", "full", dark, precision="auto")
    assert found["kwh"] > 0
    assert found["co2_kg"] is None
    assert "--country" in found["why_missing"]["co2_kg"]
    here = row("bert", "full", CPU)
    assert here["hours"] is None
    assert here["why_missing"]["hours"] == "no --hardware is named"


def test_auto_is_bf16_on_boards_that_have_it() -> None:
    assert GPU.precision("auto") == "bf16"
    assert Machine("t4-16", BOARDS["t4-16"], on_gpu=True).precision("auto") == "fp32"
    assert Machine(on_gpu=True).precision("auto") == "bf16"
    assert GPU.precision("fp32") == "fp32"


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_says_its_memory_in_its_name_and_where_its_rates_are_from(name: str) -> None:
    found = board(name)
    assert name.endswith(f"-{found.memory_gib}")
    assert found.memory_bytes == found.memory_gib * 2**30
    assert found.rate("bf16") >= found.rate("fp32") > 1e12
    assert "NVIDIA" in found.source
    assert 50 < found.watts < 1000


def test_an_unknown_board_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="'a100-80'"):
        board("a100-81")


def test_on_a_cpu_the_peak_holds_the_interpreter_and_on_a_gpu_it_does_not() -> None:
    here, there = row("bert", "full", CPU), row("bert", "full")
    assert here["peak_bytes"] > 480e6 > there["peak_bytes"]


def test_frozen_parameters_do_without_state_by_either_convention() -> None:
    assert frozen_state(5_600_000_000) == {
        "two float32 moments": 44_800_000_000,
        "two float32 moments and a float32 master copy": 67_200_000_000,
    }
    lora = row("bert", "lora")
    assert lora["frozen_parameters"] == sum(SIZES.values())
    assert lora["frozen_state_bytes"]["two float32 moments"] == 8 * sum(SIZES.values())
    assert row("bert", "full")["frozen_parameters"] == 0


# --- sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "hidden_dropout_prob", "x"),
        ("bert", "attention_probs_dropout_prob", [0.1]),
        ("bert", "hidden_dropout_prob", 1.5),
        ("llama", "attention_dropout", math.nan),
        ("llama", "attention_dropout", True),
        ("bert", "head_dim", "x"),
        ("bert", "num_key_value_heads", 0.5),
        ("llama", "head_dim", "x"),
        ("qwen3", "head_dim", None),
        ("llama", "hidden_size", "64"),
        ("llama", "hidden_size", 10**400),
        ("llama", "num_hidden_layers", 10**9),
        ("gpt2", "n_layer", 10**9),
        ("bert", "type_vocab_size", 10**400),
    ],
)
def test_a_config_with_a_setting_that_cannot_be_is_refused_by_its_name(name: str, key: str, value: Any) -> None:
    whole = model(name)
    altered = replace(whole, config={**whole.config, key: value})
    with pytest.raises(ModelError, match=f"{key} is ") as caught:
        plan_model(altered, arms_of([ArmSpec(method="full")]), TASK, training_for(TASK, TRAINING, "test"), FOUND, GPU)
    assert len(str(caught.value)) < 700


def test_dropout_of_zero_or_of_one_may_be_a_whole_number() -> None:
    whole = model("gpt2")
    altered = replace(whole, config={**whole.config, "resid_pdrop": 0, "attn_pdrop": 1})
    recipe = training_for(TASK, TRAINING, "test")
    (found,) = plan_model(altered, arms_of([ArmSpec(method="full")]), TASK, recipe, FOUND, GPU)["rows"]
    assert found["activation_bytes"] > 0


def test_the_data_tell_examples_labels_and_the_longest_answer() -> None:
    found = questions_of(TASK, data=None, offline=False)
    assert found.labels == 2
    assert found.examples is not None and 5_000 < found.examples < 10_000
    assert found.answer_tokens == 1


def test_absent_data_leave_what_the_task_file_tells(tmp_path: Path) -> None:
    task = load_task("pubmedqa")
    found = questions_of(task, data=tmp_path, offline=True)
    assert found.labels == 3
    assert found.examples == task.splits.counts.get("train")
    assert "none of its sources is present" in found.why
    with pytest.raises(CprbenchError, match="banking77"):  # its choices are its answers, so nobody knows how many
        questions_of(load_task("banking77"), data=tmp_path, offline=True)


def test_an_encoder_cannot_answer_a_task_whose_rows_bring_their_choices() -> None:
    with pytest.raises(TrainingError, match="causal"):
        rows("bert", "full", found=Questions(10, None, 4))
