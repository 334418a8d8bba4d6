"""partial+lora: the set of `partial`, adapters on the linears of its layers, ranks that follow the norms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.methods import Context, Target, build_method
from cprbench.adapt.methods.partial import Partial
from cprbench.adapt.methods.partial_lora import PartialLora
from cprbench.adapt.settings import label, settings_of
from cprbench.errors import MethodError
from cprbench.meters.flops import Pass, Trained, count
from cprbench.runs.arms import arms_of
from cprbench.runs.set_words import read_settings
from cprbench.spec import ArmSpec
from tests.conftest import Arm

NORMS = {"embed": 9.0, "attn.0": 1.0, "ffn.0": 2.0, "attn.1": 5.0, "ffn.1": 4.0, "head": 3.0}


@pytest.fixture
def encoder(minilm2: Path) -> models.LoadedModel:
    return models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa")


def measured(loaded: models.LoadedModel) -> Context:
    """Return a context whose measurement leaves everything trainable, as the real one does."""

    def norms() -> dict[str, float]:
        loaded.model.requires_grad_(True)
        return NORMS

    return Context(3, measure_norms=norms)


def prepared(loaded: models.LoadedModel, **settings: Any) -> Any:
    return build_method("partial+lora", settings).prepare(loaded, measured(loaded))


def ranks(loaded: models.LoadedModel) -> dict[str, int]:
    """Return module -> rank of the adapters that are in a model, read off their tensors."""
    suffix = ".lora_A.default.weight"
    tensors = dict(loaded.model.named_parameters())
    return {name.removesuffix(suffix): len(p) for name, p in tensors.items() if name.endswith(suffix)}


def test_the_set_is_that_of_partial_and_only_linears_of_its_layers_get_adapters(
    encoder: models.LoadedModel, minilm2: Path
) -> None:
    settings = {"k": 0.09}
    same = models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa")
    partial = build_method("partial", settings).prepare(same, measured(same))
    found = prepared(encoder, **settings)
    assert partial.trained_submodules == ("attn.0", "attn.1", "head")
    assert found.notes["picked"] == list(partial.trained_submodules)
    assert (found.k_asked, found.k_reached) == (partial.k_asked, partial.k_reached)
    assert found.notes["gradient_norm"] == NORMS
    assert found.trained_submodules == ("attn.0", "attn.1")  # the pooler of head lies in no layer
    layers = "bert.encoder.layer"
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    assert set(ranks(encoder)) == {f"{layers}.{i}.{name}" for i in (0, 1) for name in names}
    trained = {n for n, p in encoder.model.named_parameters() if p.requires_grad}
    adapters = {f"{path}.lora_{side}.default.weight" for path in ranks(encoder) for side in "AB"}
    assert trained == adapters | set(encoder.partition.new_head)


def test_ranks_follow_the_norms_with_the_mean_kept_and_the_scale_alike(encoder: models.LoadedModel) -> None:
    found = prepared(encoder, k=0.4, r=8, alpha=24)
    by_cell = {key.partition("/")[0]: rank for key, rank in found.adapters.items()}
    assert by_cell == {"attn.0": 3, "ffn.0": 6, "attn.1": 13, "ffn.1": 10}  # 1 + 28 * norm / 12, mean 8
    assert sum(by_cell.values()) == 4 * 8
    model = encoder.model.get_submodule("bert.encoder.layer")
    for i, cell, path in ((0, "attn.0", "attention.self.key"), (1, "ffn.1", "intermediate.dense")):
        layer: Any = model.get_submodule(f"{i}.{path}")
        assert len(layer.lora_A["default"].weight) == by_cell[cell]
        assert layer.scaling["default"] == pytest.approx(3)
    config = found.notes["adapter_config"]
    assert len(config["rank_pattern"]) == len(found.adapters) == 12


def test_equal_ranks_are_the_control_and_need_no_norms_where_everything_is_taken(encoder: models.LoadedModel) -> None:
    method = build_method("partial+lora", {"k": 1, "embed": True, "ranks": "equal", "r": 4})
    assert not method.chooses
    assert dataclasses.replace(method, ranks="norms").chooses  # type: ignore[type-var]

    def refuse() -> dict[str, float]:
        raise AssertionError("measured although nothing depends on it")

    found = method.prepare(encoder, Context(3, measure_norms=refuse))
    assert set(found.adapters.values()) == {4}  # type: ignore[union-attr]
    assert set(ranks(encoder).values()) == {4}
    assert found.k_reached == 1.0


def test_a_set_in_which_no_layer_has_a_linear_is_refused(encoder: models.LoadedModel) -> None:
    with pytest.raises(MethodError, match=r"head holds no linear module that could be adapted"):
        build_method("partial+lora", {"k": 0.01}).prepare(encoder, measured(encoder))


def test_what_partial_and_lora_refuse_is_refused_in_its_own_name() -> None:
    target = Target("encoder", {"embed": 40, "attn.0": 10, "ffn.0": 50})

    def refusal(**settings: Any) -> str:
        with pytest.raises(MethodError) as error:
            build_method("partial+lora", settings).check(target)
        return str(error.value)

    assert "k = 0.05 is below" in refusal(k=0.05)
    assert refusal(r=0).startswith("partial+lora.r = 0")
    assert "set partial+lora.blueprint" in refusal(domain="law")
    assert "priced for submodules that train themselves" in refusal(budget="memory=8GiB")


def test_it_has_all_settings_of_partial_and_those_of_lora_and_parses_on_the_command_line() -> None:
    own = settings_of(PartialLora())
    assert settings_of(Partial()).items() <= own.items()
    assert {key: own[key] for key in ("r", "alpha", "dropout")} == settings_of(build_method("lora", {}))
    read = read_settings(["partial+lora.k=0.1,0.2", "partial+lora.r=4"])
    arms = arms_of([ArmSpec(method="partial+lora", settings=dict(read["partial+lora"]))])
    assert [arm.label for arm in arms] == ["partial+lora k=0.1 r=4", "partial+lora k=0.2 r=4"]
    assert label(PartialLora()) == "partial+lora k=0.15"


def test_flops_are_those_that_torch_counts_for_its_own_ranks(minilm2: Path) -> None:
    encoder = models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="eager")
    found = prepared(encoder, k=0.15)
    assert found.trained_submodules == ("attn.1", "ffn.1")
    ids = torch.randint(1000, 2000, (4, 12))
    with FlopCounterMode(display=False) as counter:
        encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).mean().backward()
    trained = Trained(frozenset(found.trained_submodules), True, found.adapters)
    done = Pass("train", 1, True, "method", 4, 12, 48, 4)
    counted = count(encoder.model.config.to_dict(), "encoder", 2, trained, [done])["train", 1]
    assert counted.total == counter.get_total_flops()


def test_a_run_is_billed_for_its_choice_and_trains_adapters_alone(minilm2: Path, run_arm: Arm) -> None:
    record = run_arm(minilm2, "partial+lora", settings={"k": 0.15})
    assert (record.status, record.error) == ("ok", None)
    assert record.arm == "partial+lora k=0.15"
    assert record.seconds["select"] > 0  # type: ignore[operator]
    assert record.trained_parameters == sum(
        rank * {"attn": 2 * 384, "ffn": 384 + 1536}[key[:4].rstrip(".")]
        for key, rank in record.notes["adapters"].items()
    )
    assert record.gamma.flops is not None and record.k_asked == 0.15
    assert (record.k_reached or 0) * record.total_parameters > record.trained_parameters  # type: ignore[operator]
    assert record.new_head_parameters == 2 * 384 + 2
