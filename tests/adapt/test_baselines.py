"""The baselines: last-layers, random-submodules and bitfit. What they train, refuse and cost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.methods import Context, Target, build_method, method_class
from cprbench.errors import MethodError
from cprbench.meters.flops import Pass, Trained, count
from cprbench.runs.arms import arms_of
from cprbench.runs.planner import Inspected, plan
from cprbench.runs.runner import _flops
from cprbench.runs.store import load_run
from cprbench.sessions import inspection
from cprbench.sessions.channel import Channel
from cprbench.spec import BILLED_PHASES, ArmSpec, SuiteSpec
from cprbench.tasks import load_task
from tests.conftest import Arm

K_SETS = ["last-layers", "partial", "random-submodules"]


def no_norms() -> dict[str, float]:
    raise AssertionError("gradient norms were measured by a method that does not choose by them")


def context(seed: int = 3) -> Context:
    return Context(seed, measure_norms=no_norms)


@pytest.fixture
def encoder(minilm2: Path) -> models.LoadedModel:
    return models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa")


def causal(config: Any) -> models.LoadedModel:
    """Return a random causal model of a config, with no tokenizer."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    return models.LoadedModel(model, None, "causal", models.partition(model), None)


_TINY = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}


# --- last-layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "embed", "expected"),
    [
        (0.05, False, ("attn.1", "head")),  # ffn.1 alone is 0.076
        (0.09, False, ("ffn.1", "head")),
        (0.15, False, ("attn.1", "ffn.1", "head")),
        (0.17, False, ("attn.0", "attn.1", "ffn.1", "head")),  # ffn.0 would exceed, attn.0 below it fits
        (1.0, False, ("attn.0", "ffn.0", "attn.1", "ffn.1", "head")),
        (1.0, True, ("embed", "attn.0", "ffn.0", "attn.1", "ffn.1", "head")),
    ],
)
def test_last_layers_fills_its_set_from_the_top_of_the_model_downwards(
    k: float, embed: bool, expected: tuple[str, ...], encoder: models.LoadedModel
) -> None:
    prepared = build_method("last-layers", {"k": k, "embed": embed}).prepare(encoder, context())
    sizes, total = encoder.partition.sizes, encoder.partition.total
    assert prepared.trained_submodules == expected == models.trained_cells(encoder)
    assert (prepared.k_asked, prepared.k_reached) == (k, sum(sizes[cell] for cell in expected) / total)


# --- random-submodules ------------------------------------------------------------------------------


def drawn(loaded: models.LoadedModel, seed: int, **settings: Any) -> tuple[str, ...]:
    prepared = build_method("random-submodules", settings).prepare(loaded, context(seed))
    assert prepared.trained_submodules == models.trained_cells(loaded)
    assert prepared.k_asked == settings["k"] >= (prepared.k_reached or 2)
    return prepared.trained_submodules


def test_random_submodules_draws_anew_in_every_block_and_the_same_again_in_the_same(
    encoder: models.LoadedModel,
) -> None:
    sets = [drawn(encoder, seed, k=0.15) for seed in range(24)]
    assert sets == [drawn(encoder, seed, k=0.15) for seed in range(24)]
    assert len(set(sets)) == 5  # both attn, or one attn and one ffn; the head beside: all sets that fill 0.15
    assert {cell for cells in sets for cell in cells} == {"attn.0", "ffn.0", "attn.1", "ffn.1", "head"}


def test_random_submodules_takes_input_tables_on_request_only_and_draws_the_rest_alike(
    encoder: models.LoadedModel,
) -> None:
    assert "embed" not in drawn(encoder, 1, k=1.0)
    assert "embed" in drawn(encoder, 1, k=1.0, embed=True)
    small = {seed: drawn(encoder, seed, k=0.15) for seed in range(8)}  # too small for the tables
    assert small == {seed: drawn(encoder, seed, k=0.15, embed=True) for seed in range(8)}


def test_the_draw_is_from_a_stream_of_its_own(encoder: models.LoadedModel) -> None:
    random.seed(5)
    expected, before = drawn(encoder, 2, k=0.15), random.getstate()
    torch.manual_seed(17)
    torch_before = torch.get_rng_state()
    assert drawn(encoder, 2, k=0.15) == expected
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


# --- k-sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", K_SETS)
def test_methods_with_a_k_set_share_settings_rates_and_label(name: str) -> None:
    method, partial = build_method(name, {"k": 0.3}), build_method("partial", {})
    assert build_method(name, {}) == method_class(name)(k=0.15, embed=False)
    assert method.learning_rates == partial.learning_rates
    assert method.label_settings == ("k",)
    assert method.chooses == (name == "partial")  # nothing is paid for a choice that costs nothing


@pytest.mark.parametrize("name", K_SETS)
def test_a_k_that_cannot_be_is_refused_in_the_words_of_the_method(name: str) -> None:
    sizes = {"embed": 40, "attn.0": 10, "ffn.0": 50}
    with pytest.raises(MethodError, match=r"^k = 1\.5 is outside \(0, 1\]"):
        build_method(name, {"k": 1.5}).check(Target("encoder", sizes))
    with pytest.raises(MethodError, match=r"^k = 0\.05 is below .*'attn\.0' .* at least 0\.1000"):
        build_method(name, {"k": 0.05}).check(Target("encoder", sizes))
    with pytest.raises(MethodError, match=r"Set embed=true"):
        build_method(name, {}).check(Target("encoder", {"embed": 40}))


def test_a_k_below_the_smallest_submodule_is_refused_where_the_set_is_filled_too(encoder: models.LoadedModel) -> None:
    for name in ("last-layers", "random-submodules"):
        with pytest.raises(MethodError, match=r"k = 0\.001 is below"):
            build_method(name, {"k": 0.001}).prepare(encoder, context())


# --- bitfit -----------------------------------------------------------------------------------------


def test_bitfit_trains_every_bias_and_the_new_head_and_nothing_else(encoder: models.LoadedModel) -> None:
    encoder.model.requires_grad_(True)
    prepared = build_method("bitfit", {}).prepare(encoder, context())
    parameters = dict(encoder.model.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    assert trained == {name for name in parameters if name.endswith(".bias")} | {"classifier.weight"}
    assert "bert.embeddings.LayerNorm.bias" in trained
    assert prepared.trained_submodules == ("embed", "attn.0", "ffn.0", "attn.1", "ffn.1", "head")
    own = sum(parameters[name].numel() for name in trained - set(encoder.partition.new_head))
    assert prepared.k_asked is None
    assert prepared.k_reached == own / encoder.partition.total
    assert prepared.notes == {"tensors": prepared.tensors}  # the record says what trained
    assert not build_method("bitfit", {}).chooses


def test_the_submodules_of_bitfit_are_those_that_hold_a_bias() -> None:
    gpt2 = causal(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99))
    prepared = build_method("bitfit", {}).prepare(gpt2, context())
    assert prepared.trained_submodules == ("attn.0", "ffn.0", "attn.1", "ffn.1", "head") == models.trained_cells(gpt2)
    qwen2 = causal(transformers.Qwen2Config(**_TINY, **_HEADS))
    prepared = build_method("bitfit", {}).prepare(qwen2, context())
    assert prepared.trained_submodules == ("attn.0", "attn.1") == models.trained_cells(qwen2)
    assert [name.split(".")[-2] for name in (prepared.tensors or {})["attn.1"]] == ["q_proj", "k_proj", "v_proj"]
    biased = causal(transformers.LlamaConfig(**_TINY, **_HEADS, attention_bias=True))
    prepared = build_method("bitfit", {}).prepare(biased, context())  # what counts is the model, not its family
    assert prepared.trained_submodules == ("attn.0", "attn.1")


def test_bitfit_on_a_model_without_biases_is_refused_when_the_run_is_planned(minilm2: Path, tiny_llama: Path) -> None:
    task = load_task("movie-snippets")
    suite = SuiteSpec(tasks=["movie-snippets"], models=["any"], blocks=1, arm=[ArmSpec(method="bitfit")])

    def planned(model: Path) -> list[Any]:
        job = {"task": task.model_dump(mode="json"), "model": str(model), "data": None, "offline": True}
        found = Inspected.of(task, json.loads(json.dumps(inspection.work(job, Channel(None, None)))))
        return plan(suite, [found], arms_of(suite.arm), settings={})

    (run,) = planned(minilm2)
    assert (run.arm, run.spec.training.learning_rate) == ("bitfit", 1e-3)
    with pytest.raises(MethodError, match=r"'bitfit' trains biases, and this model has none.*Use lora, or last-layers"):
        planned(tiny_llama)


# --- whole runs -------------------------------------------------------------------------------------


def executed(loaded: models.LoadedModel, passes: list[Pass]) -> int:
    """Return what torch's operator-level counter sees in forward and backward passes of these shapes."""
    seen = 0
    for p in passes:
        ids = torch.randint(1000, 2000, (p.batch, p.length))
        with FlopCounterMode(display=False) as counter:
            loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).mean().backward()
        seen += p.times * counter.get_total_flops()
    return seen


@pytest.mark.parametrize(
    ("method", "settings"),
    [("bitfit", {}), ("last-layers", {"k": 0.15}), ("random-submodules", {"k": 0.15})],
    ids=["bitfit", "last-layers", "random-submodules"],
)
def test_a_run_of_a_baseline_costs_what_torch_counts_and_its_record_says_what_trained(
    method: str, settings: dict[str, Any], minilm2: Path, run_arm: Arm, runs_folder: Path
) -> None:
    record = run_arm(minilm2, method, settings=settings)
    assert (record.status, record.error) == ("ok", None)
    assert record.arm == (method if method == "bitfit" else f"{method} k=0.15")
    assert record.k_asked == settings.get("k")
    assert record.trained_parameters == round((record.k_reached or 0) * record.total_parameters)
    assert record.new_head_parameters == 2 * 384 + 2
    assert record.seconds["select"] == 0  # nothing was chosen at a cost
    assert record.seconds["train"] > 0  # type: ignore[operator]

    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="eager")
    loaded.train_only(record.trained_submodules)
    if method == "bitfit":
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    assert record.trained_parameters == sum(
        p.numel() for n, p in loaded.model.named_parameters() if p.requires_grad and not n.startswith("classifier")
    )
    found = load_run(runs_folder / record.run_id)
    passes = [Pass.parse(row) for row in found.lines("work.jsonl")]
    billed = [p for p in passes if p.phase in BILLED_PHASES]
    assert {(p.phase, p.trains, p.backward) for p in billed} == {("train", "method", True)}
    assert record.gamma.flops == executed(loaded, billed)
    assert found.lines("history.jsonl")[-1]["flops"] == record.gamma.flops

    # and once more from the record alone, by which anyone may check it
    trained = Trained(frozenset(record.trained_submodules), True, None, record.notes.get("tensors"))
    model = record.spec.model  # type: ignore[union-attr]
    again = count(model.config, model.kind, 2, trained, passes)
    assert record.gamma.flops == sum(f.total for (phase, _), f in again.items() if phase in BILLED_PHASES)


def test_what_a_child_of_an_earlier_version_told_about_its_training_is_still_counted(
    minilm2: Path, tmp_path: Path
) -> None:
    config = resolve(str(minilm2), offline=True).config
    p = Pass("train", 1, True, "method", 2, 8, 16, 2)
    (tmp_path / "work.jsonl").write_text(p.line() + "\n")
    told = {"trained_submodules": ["ffn.1"], "adapters": None, "new_head": True, "labels": 2}
    (tmp_path / "trains.json").write_text(json.dumps(told))
    planned: Any = SimpleNamespace(spec=SimpleNamespace(model=SimpleNamespace(config=config, kind="encoder")))
    trained = Trained(frozenset({"ffn.1"}), True)
    assert _flops(planned, tmp_path) == count(config, "encoder", 2, trained, [p])
