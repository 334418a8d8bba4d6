"""Sets that no norm picked, counts that no set has, passes that no recipe takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cprbench.adapt.data import Dataset
from tests.submissions.rules.dossiers import found_by, run_of, with_lines, with_record

WORK = "work.jsonl"


def of(rows: list[Any], **wanted: Any) -> list[Any]:
    """Return the passes with these fields."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        ("full", lambda r: r.update(trained_parameters=1000), "trained_parameters is 1000"),
        ("full", lambda r: r["trained_submodules"].pop(), "trained_submodules is"),
        ("full", lambda r: r.update(total_parameters=1), "total_parameters is 1"),
        ("full", lambda r: r.update(new_head_parameters=0), "new_head_parameters is 0"),
        ("full", lambda r: r["notes"].update(labels=3), "a head of 3 has 1155"),
        ("full", lambda r: r["spec"]["model"].update(parameters=22713217), "does not fit its config"),
        ("full", lambda r: r["spec"]["model"]["config"].update(num_hidden_layers=500), "more than 400 layers"),
        ("full", lambda r: r["spec"]["model"]["config"].update(model_type="odd"), "'odd' has no FLOP count"),
        ("full", lambda r: r["spec"]["method"].update(name="mine"), "not part of a record"),
        ("lora", lambda r: r["spec"]["method"]["settings"].update(r=4), "notes.adapters"),
        ("partial k=0.15", lambda r: r["notes"]["gradient_norm"].update({"attn.0": 9.0}), "trained_submodules"),
        ("partial k=0.15", lambda r: r["notes"]["gradient_norm"].pop("attn.0"), "have no submodule attn.0"),
        ("partial k=0.15", lambda r: r["notes"].pop("gradient_norm"), "does not follow from what it kept"),
        ("partial k=0.15", lambda r: r.update(k_reached=0.1), "k_reached is 0.1"),
        ("partial k=0.15", lambda r: r["spec"]["method"]["settings"].update(k=0.3), "k_asked is 0.15"),
        ("random-submodules k=0.15", lambda r: r["spec"].update(seed=r["spec"]["seed"] + 1), "trained_submodules"),
        ("last-layers k=0.15", lambda r: r["trained_submodules"].pop(), "trained_submodules"),
        ("bitfit", lambda r: r["notes"]["tensors"]["attn.0"].pop(), "notes.tensors.attn.0"),
        ("partial+lora k=0.15", lambda r: r["notes"]["adapter_config"].update(lora_dropout=0.5), "lora_dropout"),
        ("partial+lora k=0.15", lambda r: r["notes"]["adapters"].popitem(), "notes.adapters"),
        ("peft config=lora-qv", lambda r: r["notes"]["adapters"].popitem(), "are not those of notes.adapter_config"),
        ("peft config=lora-qv", lambda r: r["notes"]["adapter_config"].update(r=3), "are not those"),
        ("peft config=lora-qv", lambda r: r["notes"]["adapter_config"].update(use_dora=True), "use_dora has no FLOP"),
        ("peft config=lora-qv", lambda r: r["notes"]["adapter_config"].update(target_modules=".*query"), "unverified"),
        ("peft config=lora-qv", lambda r: r["notes"].pop("adapters"), "adapters on what is no linear of a layer"),
        ("peft config=lora-qv", lambda r: r["notes"].update(adapters={"attn.0/x": 0}), "the rank of every adapter"),
        ("full", lambda r: r.update(status="failed", error="no"), "tells nothing of what trained"),
    ],
)
def test_what_trained_follows_from_the_method(arm: str, change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_record(run_of("methods", arm), change), "F1")["F1"]


def test_counts_are_those_of_the_tasks_own_data() -> None:
    run = run_of("methods", "full")
    here = Dataset(train=(), validation=(), test=(), choices=("a", "b", "c"), sha256="", source="")
    found = found_by(replace(run, dataset=here))
    assert "notes.labels is 2, this task has 3 choices" in found["F1"]
    assert "all keeps 0 of 0" in found["F6"] and "no validation split" in found["H3"]


def test_a_blueprint_is_blended_with_what_was_measured_here() -> None:
    run = run_of("methods", "partial k=0.15")
    local = dict(run.record.notes["gradient_norm"])

    def blended(record: Any) -> None:
        from dataclasses import asdict

        from cprbench.blueprint import drift, signals

        record["spec"]["method"]["settings"] |= {"blueprint": "b.json", "blend_weight": 0.25}
        found = asdict(drift.check(local, local, fallback=0.5, local_only=0.2))
        said = {"gradient_norm": local, "drift": found, "blend_weight": 0.25, "blend_weight_used": 0.25}
        record["notes"] |= {"blueprint": said, "blended_norm": signals.blend(local, local, 0.25)}

    assert found_by(with_record(run, blended), "F1") == {}
    for other in ("blend_weight_used", "drift"):
        forged = with_record(with_record(run, blended), lambda r, o=other: r["notes"]["blueprint"].pop(o))
        assert f"notes.blueprint.{other} is missing" in found_by(forged, "F1")["F1"]


def test_the_optimizer_holds_two_moments_of_what_trained() -> None:
    run = run_of("methods", "lora")
    assert "two moments" in found_by(with_record(run, lambda r: r.update(optimizer_state_bytes=8)), "F2")["F2"]
    untold = with_record(run, lambda r: r.update(trained_parameters=None))
    assert "tells trained_parameters" in found_by(untold, "F2")["F2"]
    eight_bit = with_record(run, lambda r: r["spec"]["training"].update(optimizer="adamw8bit"))
    assert found_by(eight_bit, "F2")["F2"].startswith("unverified")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[9].update(tokens="many"), "is not a pass"),
        (lambda rows: rows[9].update(phase="rest"), "of no pass here"),
        (lambda rows: rows[9].update(attempt=2), "of no pass here"),
        (lambda rows: rows[9].update(times=2), "of no pass here"),
        (lambda rows: rows[9].update(squared=rows[9]["squared"] + 1), "not of one parity"),
        (lambda rows: rows[9].update(length=47), "of no 16 sequences"),
        (lambda rows: rows[9].update(scored=17), "17 rows scored of 16 sequences"),
        (lambda rows: rows[9].update(length=49), "the recipe cuts at 48"),
        (lambda rows: rows[9].update(first_layer=7), "cannot have run"),
        (
            lambda rows: rows.extend({**rows[9], "first_layer": i} for i in range(60)),
            "kinds, through other layers each",
        ),
    ],
)
def test_a_pass_is_of_sequences_that_there_can_be(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", "full"), WORK, change), "F3")["F3"]


def test_flops_beside_the_models_own_are_those_of_norms_and_adapters() -> None:
    run = run_of("suites", "full selection=influence q=0.3 budget=0.25x full")
    free = with_lines(run, WORK, lambda rows: [row.pop("extra_flops") for row in rows if "extra_flops" in row])
    assert "extra_flops is 0" in found_by(free, "F4")["F4"]
    more = with_lines(run_of("methods", "full"), WORK, lambda rows: rows[9].update(extra_flops=10**9))
    assert "extra_flops is 1000000000" in found_by(more, "F4")["F4"]


def cut_final(rows: list[Any]) -> None:
    final = of(rows, phase="score", trains="method")
    final[0].update(length=final[0]["length"] + 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows.remove(of(rows, phase="score", trains="method")[0]), "psi.final: 32 sequences are scored"),
        (lambda rows: rows.remove(of(rows, phase="score", trains="nothing")[0]), "psi.base: 32 sequences are scored"),
        (cut_final, "other shapes than those after it"),
        (lambda rows: of(rows, phase="score")[0].update(first_layer=1), "goes forward through all layers"),
        (lambda rows: of(rows, phase="validate")[0].update(length=30), "validations have different shapes"),
        (lambda rows: [rows.remove(row) for row in of(rows, phase="validate")[::7]], "168 sequences are scored"),
        (
            lambda rows: (rows[0].update(batch=31), rows[1].update(batch=33)),
            "a batch of 31 items, and not the last one",
        ),
        (lambda rows: rows[0].update(length=48), "items after one of length 48"),
        (lambda rows: rows.insert(1, rows[1]), "3 passes of up to 32 items, and 64 items take 2"),
    ],
)
def test_every_item_is_scored(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", "full"), WORK, change), "F5")["F5"]


def test_a_trial_scores_no_test_items() -> None:
    trial = with_record(run_of("methods", "full"), lambda r: r.update(role="search"))
    assert "a trial scores no test items" in found_by(trial, "F5")["F5"]


def without_last_step(rows: list[Any]) -> None:
    rows.remove(of(rows, phase="train", backward=True)[-1])


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        ("full", without_last_step, "it took 39 steps, 2 epochs of 320 examples are 40"),
        ("full", lambda rows: of(rows, phase="train")[3].update(batch=17), "batches of [17] examples"),
        ("full", lambda rows: of(rows, phase="train")[3].update(tokens=of(rows, phase="train")[3]["tokens"] - 2),
         "tokens, an epoch before had"),
        ("full", lambda rows: of(rows, phase="train")[3].update(trains="head"), "is of what the method trains"),
        ("full", lambda rows: of(rows, phase="train")[3].update(first_layer=2), "step 4 does not begin at layer 0"),
        ("partial k=0.15", lambda rows: rows.remove(of(rows, trains="head")[0]), "choosing takes 4 steps of the head"),
        ("full", lambda rows: of(rows, phase="train")[-1].update(backward=False), "a step has no backward pass"),
        ("partial k=0.15", lambda rows: of(rows, trains="all")[0].update(backward=False), "one pass, backward: False"),
        ("partial k=0.15", lambda rows: rows.remove(of(rows, trains="all")[0]), "measures norms of 320 examples"),
        ("partial k=0.15", lambda rows: rows.remove(of(rows, last_layer=4)[0]), "frozen layers ran on 304 examples"),
        ("partial k=0.15", lambda rows: of(rows, last_layer=4)[0].update(batch=20), "frozen layers ran on (20,"),
        ("partial k=0.15", lambda rows: rows.append({**of(rows, trains="all")[0], "trains": "activations"}),
         "measures gradients of 0 examples"),
        ("partial k=0.15", lambda rows: rows.append(of(rows, trains="nothing")[0] | {"phase": "select"}),
         "1 steps were timed"),
    ],
)  # fmt: skip
def test_steps_are_those_of_the_recipe(arm: str, change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", arm), WORK, change), "F6")["F6"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["notes"].update(steps=39), "notes: steps is 39"),
        (lambda r: r["notes"].update(warmup_steps_of_head=0), "warmup_steps_of_head is 0"),
        (lambda r: r["notes"].update(examples_trained_on=319), "examples_trained_on is 319"),
        (lambda r: r["notes"]["prefix_cache"].update(first_layer=3), "notes.prefix_cache: first_layer is 3"),
        (lambda r: r["notes"].update(prefix_cache={"mode": "off", "why": "the backward pass reaches the first layer"}),
         "recomputed 'another reason'"),
        (lambda r: r["spec"]["training"].update(gradient_checkpointing=True), "checkpointing repeats its batch"),
        (lambda r: r["spec"]["training"].update(epochs=1), "1 epochs of 320 examples are 20"),
        (lambda r: r["spec"]["method"]["settings"].update(k=1, embed=True), "phase select took place: True"),
        (lambda r: r.update(selected_examples=300), "epochs of 300 examples"),
    ],
)  # fmt: skip
def test_notes_and_recipe_are_those_of_the_steps(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_record(run_of("methods", "partial k=0.15"), change), "F6")["F6"]


def test_a_selection_keeps_what_it_was_asked_to_keep() -> None:
    run = run_of("suites", "full selection=influence q=0.3", suite="q-sweep")
    for name, value in (("pool", 100), ("q_asked", 0.5), ("q_reached", 0.5)):
        forged = with_record(run, lambda r, n=name, v=value: r["notes"]["selection"].update({n: v}))
        assert "notes.selection" in found_by(forged, "F6")["F6"] or "keeps" in found_by(forged, "F6")["F6"]
    fewer = with_record(run, lambda r: r.update(selected_examples=60))
    assert "selected_examples is 60, influence keeps 72 of 240" in found_by(fewer, "F6")["F6"]


def test_runs_of_one_block_compute_on_the_same_shapes() -> None:
    run = run_of("methods", "lora")
    first = min(run.mates, key=lambda mate: mate.run_id)
    last = max((mate for mate in run.mates if mate.record.arm == "full"), key=lambda mate: mate.run_id)

    def swapped(rows: list[Any]) -> None:
        steps = of(rows, phase="train", backward=True)
        steps[0]["tokens"], steps[0]["squared"] = steps[0]["tokens"] - 2, steps[0]["squared"] - 2

    assert found_by(last, "F7") == {}
    assert f"training: other shapes than those of run {first.run_id}" in found_by(with_lines(last, WORK, swapped))["F7"]
    assert found_by(replace(with_lines(last, WORK, swapped), mates=()), "F7") == {}
