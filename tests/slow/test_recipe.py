"""What the recipe adds for all methods alike: checkpointing, 8-bit moments, compilation, kept states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.products import mkl_holds_back
from cprbench.errors import TrainingError
from cprbench.runs.planner import run_id
from cprbench.runs.runner import Options, run
from cprbench.spec import RECIPE_BEFORE, ArmSpec, RunRecord, RunSpec, SuiteSpec
from tests.conftest import SMALL, Arm

DEEP = {"k": 0.3}


def train_flops(record: RunRecord) -> float:
    return next(float(r.value or 0) for r in record.readings if (r.phase, r.quantity) == ("train", "flops"))


def test_a_run_that_keeps_states_costs_less_scores_the_same_and_says_what_it_kept(
    tiny_llama: Path, run_arm: Arm
) -> None:
    def once(**training: Any) -> RunRecord:
        return run_arm(tiny_llama, "last-layers", settings=DEEP, epochs=3, **training)

    off, auto, disk = once(cache_prefix="off"), once(), once(cache_prefix="disk")
    assert off.psi.final is not None
    for record in (auto, disk):
        assert record.psi.final == pytest.approx(off.psi.final, abs=1e-5)
        assert train_flops(record) < 0.85 * train_flops(off)
        assert record.run_id != off.run_id
    assert off.notes["prefix_cache"] == {"mode": "off", "why": "training.cache_prefix = off"}
    assert auto.notes["prefix_cache"] == {"mode": "memory", "first_layer": 1, "bytes_per_token": 256}
    assert disk.notes["prefix_cache"]["mode"] == "disk"
    assert train_flops(auto) == train_flops(disk)


def test_the_cache_leaves_no_file_behind(tiny_llama: Path, run_arm: Arm, runs_folder: Path) -> None:
    record = run_arm(tiny_llama, "last-layers", settings=DEEP, epochs=3, cache_prefix="disk")
    folder = runs_folder / record.run_id
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jsonl"}


def test_checkpointing_repeats_layers_and_is_billed(tiny_llama: Path, run_arm: Arm) -> None:
    plain, again = (run_arm(tiny_llama, "full", gradient_checkpointing=on) for on in (False, True))
    assert again.psi.final == pytest.approx(plain.psi.final, abs=1e-5)
    # One more forward pass through the layers, without what each ends with: less than a third of a step.
    assert 1.05 * train_flops(plain) < train_flops(again) < 4 / 3 * train_flops(plain)
    assert again.spec.training is not None and again.spec.training.gradient_checkpointing


def test_the_optimizer_holds_two_float32_moments_per_trained_parameter_and_nothing_else(
    minilm2: Path, tiny_llama: Path, run_arm: Arm
) -> None:
    for model, method in ((minilm2, "lora"), (tiny_llama, "full")):
        record = run_arm(model, method)
        assert record.trained_parameters is not None and record.new_head_parameters is not None
        assert record.optimizer_state_bytes == 2 * 4 * (record.trained_parameters + record.new_head_parameters)


def test_a_record_says_what_multiplied_and_a_run_takes_the_faster_one(tiny_llama: Path, run_arm: Arm) -> None:
    record = run_arm(tiny_llama, "full")
    assert (record.notes["float32_products"] == "oneDNN") == mkl_holds_back()


def test_what_a_launcher_says_of_its_own_processes_is_not_said_to_ours(
    tiny_llama: Path, run_arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    assert run_arm(tiny_llama, "full", weight_decay=0.02).status == "ok"


def test_without_a_compiler_compilation_is_refused_before_anything_runs(
    tiny_llama: Path, run_arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(TrainingError, match=r"there is no C\+\+ compiler here\. Install g\+\+, or leave it out\."):
        run_arm(tiny_llama, "full", compile=True)


def test_a_bill_in_flops_is_refused_where_the_run_finds_that_there_is_no_count(minilm2: Path, tmp_path: Path) -> None:
    """all-linear takes the pooler too, which no count knows; that shows only once the adapters are in."""
    config = tmp_path / "adapter_config.json"
    config.write_text('{"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}')
    arm = ArmSpec(method=f"peft:{config}", selection="random", selection_settings={"flops": 1e11})
    suite = SuiteSpec(tasks=["movie-snippets"], models=[str(minilm2)], blocks=1, arm=[arm])
    (record,) = run(suite, options=Options(out=tmp_path / "runs"), settings=SMALL).records
    assert record.status == "failed" and record.error is not None
    assert record.error.startswith("there are no FLOPs to compare by: an adapter on ")
    assert record.error.endswith("has no FLOP count. Leave out the budget, or selection.flops.")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"optimizer": "adamw8bit"},
            "training.optimizer = adamw8bit: no CUDA device here. Its 8-bit moments live on a CUDA GPU: use adamw, or "
            "pip install 'cprbench[qlora]' on a machine that has one.",
        ),
        (
            {"compile": True, "cache_prefix": "disk"},
            "training.compile = true, training.cache_prefix = disk: a compiled model begins at its input. Choose one "
            "of them.",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_before_anything_runs(
    tiny_llama: Path, run_arm: Arm, training: dict[str, Any], message: str
) -> None:
    import torch

    if torch.cuda.is_available() and "optimizer" in training:
        pytest.skip("this machine has a GPU, where 8-bit moments work")
    with pytest.raises(TrainingError) as caught:
        run_arm(tiny_llama, "full", **training)
    assert str(caught.value) == message


def test_a_record_from_before_these_settings_is_read_as_what_it_did_and_keeps_its_id(
    tiny_llama: Path, run_arm: Arm
) -> None:
    record = run_arm(tiny_llama, "full", cache_prefix="off")
    data: Any = record.spec.model_dump(mode="json")
    for name in RECIPE_BEFORE:
        del data["training"][name]
    before = RunSpec.model_validate(data)
    assert before == record.spec
    assert run_id(before, record.block, record.role) == record.run_id
    data["training"]["gradient_checkpointing"] = True
    assert run_id(RunSpec.model_validate(data), record.block, record.role) != record.run_id
