"""What is measured of examples, against a backward pass for each of them and the model's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cprbench.adapt import models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import Example, load_dataset
from cprbench.adapt.gradients import influence
from cprbench.adapt.methods import Context, build_method
from cprbench.tasks import load_task


@pytest.fixture(scope="module")
def examples() -> tuple[Example, ...]:
    return load_dataset(load_task("movie-snippets")).train[:13]


def setting(folder: Path, labels: int | None) -> Any:
    loaded = models.load(resolve(str(folder), offline=True), labels, seed=3, attention="sdpa")
    return loaded, objectives.objective_for(loaded), training.Engine.start("fp32", bf16_is_fast=False)


def looped(loaded: Any, objective: Any, items: list[Any]) -> np.ndarray:
    """Return (examples, submodules) norms from one backward pass over all weights per example."""
    flags = {name: p.requires_grad for name, p in loaded.model.named_parameters()}
    loaded.model.requires_grad_(True)
    loaded.model.eval()
    rows = []
    for item in items:
        loaded.model.zero_grad(set_to_none=True)
        objective.loss([item])[0].backward()
        named = dict(loaded.model.named_parameters())
        rows.append(
            [
                sum(float(g.double().square().sum()) for n in names if (g := named[n].grad) is not None) ** 0.5
                for names in loaded.partition.parameters.values()
            ]
        )
    loaded.model.zero_grad(set_to_none=True)
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(flags[name])
    return np.array(rows)


def watch(seen: list[Any]) -> Any:
    return lambda shape, extra, done: seen.append((shape, extra, done))


@pytest.mark.parametrize(("kind", "batch"), [("encoder", 4), ("encoder", 100), ("causal", 4), ("causal", 1)])
def test_norms_are_those_of_an_example_alone_whatever_the_batch(
    kind: str, batch: int, request: pytest.FixtureRequest, examples: tuple[Example, ...]
) -> None:
    folder = request.getfixturevalue("minilm2" if kind == "encoder" else "tiny_llama")
    loaded, objective, engine = setting(folder, 2 if kind == "encoder" else None)
    loaded.train_only(("ffn.0",))
    items = objectives.tokenize(loaded, examples, 48)
    seen: list[Any] = []
    found = influence.measure(loaded, objective, engine, items, batch, watch(seen))
    expected = looped(loaded, objective, items)
    np.testing.assert_allclose(found.norms, expected, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(found.influence, (expected**2).sum(1) ** 0.5, rtol=2e-4)
    with torch.no_grad():
        own = [float(objective.loss([item])[0]) for item in items]
    np.testing.assert_allclose(found.losses, own, rtol=1e-4)
    assert [done for _, _, done in seen][-1] == len(items) == sum(shape.batch for shape, _, _ in seen)
    assert all(extra > 0 for _, extra, _ in seen)
    # What trains is as it was: the method's choice stands.
    trains = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trains == {*loaded.partition.parameters["ffn.0"], *loaded.partition.new_head}


def test_a_forward_pass_tells_losses_and_states_and_no_gradients(minilm2: Path, examples: tuple[Example, ...]) -> None:
    loaded, objective, engine = setting(minilm2, 2)
    items = objectives.tokenize(loaded, examples, 48)
    seen: list[Any] = []
    found = influence.measure(loaded, objective, engine, items, 4, watch(seen), gradients=False, states=True)
    both = influence.measure(loaded, objective, engine, items, 4, watch([]), states=True)
    assert found.norms is None and {extra for _, extra, _ in seen} == {None}
    with pytest.raises(ValueError, match="no gradients"):
        _ = found.influence
    np.testing.assert_allclose(found.losses, both.losses, rtol=1e-5)
    np.testing.assert_allclose(found.states, both.states, rtol=1e-4, atol=1e-6)
    loaded.model.eval()
    for item, state in zip(items[:3], found.states[:3], strict=True):
        with torch.no_grad():
            hidden = loaded.model.base_model(input_ids=torch.tensor([item.ids])).last_hidden_state[0]
        np.testing.assert_allclose(state, hidden.mean(0).numpy(), rtol=1e-3, atol=1e-5)  # padding is no position


def test_states_of_causal_models_are_means_over_what_they_read(tiny_llama: Path, examples: tuple[Example, ...]) -> None:
    loaded, objective, engine = setting(tiny_llama, None)
    items = objectives.tokenize(loaded, examples, 48)
    found = influence.measure(loaded, objective, engine, items, 5, watch([]), gradients=False, states=True)
    item = items[0]
    read = [*item.ids, *item.choices[item.answer]][:-1]
    with torch.no_grad():
        hidden = loaded.model.base_model(input_ids=torch.tensor([read])).last_hidden_state[0]
    np.testing.assert_allclose(found.states[0], hidden.mean(0).numpy(), rtol=1e-3, atol=1e-5)


def test_input_means_are_looked_up_without_a_pass(minilm2: Path, examples: tuple[Example, ...]) -> None:
    loaded, _, _ = setting(minilm2, 2)
    items = objectives.tokenize(loaded, examples, 48)
    found = influence.input_means(loaded, items)
    table = loaded.model.get_input_embeddings().weight.detach()
    for item, row in zip(items, found, strict=True):
        np.testing.assert_allclose(row, table[list(item.ids)].mean(0).numpy(), rtol=1e-5, atol=1e-7)


def test_norms_are_measured_through_adapters_under_their_new_names(
    minilm2: Path, examples: tuple[Example, ...]
) -> None:
    loaded, objective, engine = setting(minilm2, 2)
    items = objectives.tokenize(loaded, examples, 48)
    plain = influence.measure(loaded, objective, engine, items, 4, watch([]))
    cell_of = {
        id(p): cell
        for cell, names in loaded.partition.parameters.items()
        for name, p in loaded.model.named_parameters()
        if name in names
    }
    build_method("lora", {}).prepare(loaded, Context(3))
    cells: dict[str, tuple[str, ...]] = dict.fromkeys(loaded.partition.sizes, ())
    for name, parameter in loaded.model.named_parameters():
        if id(parameter) in cell_of:
            cells[cell_of[id(parameter)]] += (name,)
    adapted = influence.measure(loaded, objective, engine, items, 4, watch([]), cells=cells)
    np.testing.assert_allclose(adapted.norms, plain.norms, rtol=1e-3)  # adapters start at zero


def test_no_examples_and_a_loss_that_is_not_finite(minilm2: Path, examples: tuple[Example, ...]) -> None:
    from cprbench.errors import TrainingError

    loaded, objective, engine = setting(minilm2, 2)
    assert influence.measure(loaded, objective, engine, [], 4, watch([])).influence.shape == (0,)
    items = objectives.tokenize(loaded, examples, 48)
    with torch.no_grad():
        next(p for n, p in loaded.model.named_parameters() if n in loaded.partition.new_head).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        influence.measure(loaded, objective, engine, items, 4, watch([]))
