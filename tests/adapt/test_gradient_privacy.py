"""What may be said of sensitive gradients, and what a training step costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import privacy, steps
from cprbench.adapt.models import LoadedModel, partition
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.blueprint.picking import layers_reached
from cprbench.errors import MethodError
from cprbench.spec import TrainingSpec
from tests.adapt.test_engine import items, looped, tiny
from tests.adapt.test_gradient_statistics import gradients, loaded_of


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.start("fp32", bf16_is_fast=False)


def private(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    *,
    noise_multiplier: float = 1e-12,
    clip_norm: float = 1.0,
    seed: int = 0,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    size = sum(len(batch) for batch in batches) / len(batches)
    options = {"noise_multiplier": noise_multiplier, "clip_norm": clip_norm, "batch_size": size, "seed": seed}
    return privacy.private_norms(loaded, objective, engine, batches, lambda *_: None, **options)


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
def test_epsilon_is_what_dp_accounting_says_and_what_the_formula_of_one_gaussian_says(noise: float) -> None:
    delta = 1e-5

    def lost(epsilon: float) -> float:  # Balle and Wang 2018, theorem 8
        half, shift = 1 / (2 * noise), epsilon * noise
        return float(norm.cdf(half - shift) - math.exp(epsilon) * norm.cdf(-half - shift)) - delta

    assert privacy.epsilon(noise, delta, 1) == pytest.approx(brentq(lost, 0, 60), rel=0.01)
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(noise), 2)
    assert privacy.epsilon(noise, delta, privacy.MECHANISMS) == accountant.get_epsilon(delta)
    # Two mechanisms of one noise are one of noise / sqrt(2).
    assert privacy.epsilon(noise, delta, 2) == pytest.approx(privacy.epsilon(noise / math.sqrt(2), delta, 1), rel=0.01)


@pytest.mark.parametrize(("noise", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (1.0, -1e-5)])
def test_settings_without_a_guarantee_have_no_epsilon(noise: float, delta: float) -> None:
    with pytest.raises(MethodError, match="both above 0"):
        privacy.epsilon(noise, delta, 1)


def clipped_loop(
    objective: Objective, batch: Sequence[Item], cells: dict[str, tuple[str, ...]], clip: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (norms of the sum, sum of norms) of clipped gradients by submodule."""
    total: dict[str, Tensor] = {}
    sums = dict.fromkeys(cells, 0.0)
    for item in batch:
        rows = gradients(objective, item)
        mine = {cell: torch.cat([rows[name].flatten() for name in names]) for cell, names in cells.items()}
        factor = min(1.0, clip / float(torch.cat(list(mine.values())).norm()))
        for cell, value in mine.items():
            total[cell] = total.get(cell, torch.zeros(())) + factor * value
            sums[cell] += factor * float(value.norm())
    return {cell: float(value.norm()) for cell, value in total.items()}, sums


@pytest.mark.parametrize("family", ["Bert", "Llama tied"])
def test_almost_without_noise_private_norms_are_those_of_clipped_gradients(family: str, engine: Engine) -> None:
    objective = tiny(family)
    new_head = ("classifier.weight", "classifier.bias") if family == "Bert" else ()
    loaded = loaded_of(objective, new_head)
    cells = dict(loaded.partition.parameters)
    batches = [items(objective, (5, 9, 30), 1, (1, 3)), items(objective, (4, 8), 2)]
    size = looped(objective, batches[0], cells).square().sum(1).sqrt().sort().values
    clip = float(size[:2].mean())  # some are clipped and some are not
    rows, means = private(loaded, objective, engine, batches, clip_norm=clip)
    sums = dict.fromkeys(cells, 0.0)
    for row, batch in zip(rows, batches, strict=True):
        total, own = clipped_loop(objective, batch, cells, clip)
        assert row == pytest.approx({cell: value / 2.5 for cell, value in total.items()}, rel=1e-5)
        sums = {cell: sums[cell] + own[cell] for cell in cells}
    assert means == pytest.approx({cell: value / 5 for cell, value in sums.items()}, rel=1e-5)
    assert all(p.grad is None for p in objective.model.parameters())


def test_an_example_moves_what_is_released_by_no_more_than_the_clip_norm(engine: Engine) -> None:
    objective = tiny("Llama")
    loaded = loaded_of(objective)
    rest, huge = items(objective, (5, 9), 1), items(objective, (40,), 5, (3,))[0]
    assert float(looped(objective, [huge], loaded.partition.parameters).norm()) > 50 * 0.1
    moved = []
    for at in (0, 1):
        results = [private(loaded, objective, engine, [batch], clip_norm=0.1)[at] for batch in (rest, [*rest, huge])]
        released = [(result[0] if at == 0 else result) for result in results]
        sums = [np.array(list(r.values())) * n for r, n in zip(released, (2, 3), strict=True)]
        moved.append(float(np.linalg.norm(sums[1] - sums[0])))
    assert max(moved) <= 0.1 * (1 + 1e-5)
    assert moved[1] > 0.09  # the sum of norms moves by all that it may


def test_noise_has_the_spread_that_was_asked_for_and_repeats_by_seed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = tiny("Bert", layers=1)
    loaded = loaded_of(objective)
    batch = items(objective, (3, 4))
    exact_rows, exact_means = private(loaded, objective, engine, [batch, batch], clip_norm=1e4)
    kept: dict[str, list[float]] = {"rows": [], "means": []}
    for seed in range(150):  # noise 1e-3 on gradients of about 1: nothing is cut at 0
        rows, means = private(
            loaded, objective, engine, [batch, batch], noise_multiplier=1e-7, clip_norm=1e4, seed=seed
        )
        for row, exact in zip(rows, exact_rows, strict=True):
            kept["rows"] += [2 * (row[cell] - exact[cell]) for cell in row]
        kept["means"] += [4 * (means[cell] - exact_means[cell]) for cell in means]
    for found in kept.values():
        assert np.std(found) == pytest.approx(1e-3, rel=0.1)
        assert abs(np.mean(found)) < 3e-3 / math.sqrt(len(found)) * 1.5
    two = np.array(kept["rows"]).reshape(150, 2, -1)  # every batch has noise of its own
    assert abs(np.corrcoef(two[:, 0].ravel(), two[:, 1].ravel())[0, 1]) < 0.2
    again = private(loaded, objective, engine, [batch, batch], noise_multiplier=1e-7, clip_norm=1e4, seed=149)
    assert again == (rows, means)
    loud = private(loaded, objective, engine, [batch], noise_multiplier=50.0, seed=2)
    values = [*loud[0][0].values(), *loud[1].values()]
    assert min(values) == 0.0 and max(values) > 1.0


def test_nothing_is_released_where_a_norm_is_not_a_number(engine: Engine) -> None:
    objective = tiny("Bert")
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            objective.model.get_parameter("classifier.weight").fill_(value)
        with pytest.raises(MethodError, match="not finite"):
            private(loaded_of(objective), objective, engine, [items(objective, (5,))])


# Steps


def test_step_costs_come_back_from_seconds_made_of_them() -> None:
    sizes = {
        "embed": 900,
        **{f"{part}.{i}": 40 if part == "attn" else 80 for i in range(6) for part in ("attn", "ffn")},
    }
    sizes = {name: 10_000 * size for name, size in (sizes | {"head": 20}).items()}
    sets = steps.probe_sets(sizes)
    reached = layers_reached(sizes)
    shape = Shape(16, 48, 700, 16, 40_000)

    def seconds(forward: float, layer: float, parameter: float) -> list[float]:
        return [forward + layer * max(reached[n] for n in s) + parameter * sum(sizes[n] for n in s) for s in sets]

    found = steps.step_cost(sets, seconds(0.05, 0.01, 2e-9), sizes, shape)
    assert found.forward_seconds == pytest.approx(0.05)
    assert found.backward_seconds_per_layer == pytest.approx(0.01)
    assert found.seconds_per_parameter == pytest.approx(2e-9)
    assert (found.batch_size, found.tokens) == (16, 768)
    for parts in ((0.05, 0.01, -2e-9), (0.05, -0.01, 2e-9), (-0.05, 0.01, 2e-9), (-1.0, -1.0, -1e-9), (0.0, 0.0, 0.0)):
        odd = steps.step_cost(sets, seconds(*parts), sizes, shape)
        kept = (odd.forward_seconds, odd.backward_seconds_per_layer, odd.seconds_per_parameter)
        assert min(kept) >= 0.0
    noisy = np.random.default_rng(0)
    for _ in range(200):
        odd = steps.step_cost(sets, noisy.uniform(0, 1, len(sets)).tolist(), sizes, shape)
        assert min(odd.forward_seconds, odd.backward_seconds_per_layer, odd.seconds_per_parameter) >= 0.0


def test_probe_sets_are_the_top_the_last_layer_the_first_and_every_third() -> None:
    sizes = partition(tiny("Llama", layers=5).model).sizes
    top, last, first, third = steps.probe_sets(sizes)
    assert top == ("head",)
    assert last == ("attn.4", "ffn.4")
    assert first == ("attn.0", "ffn.0")
    assert third == ("attn.0", "ffn.0", "attn.3", "ffn.3")
    headless = tiny("DistilBert")
    new = [n for n, _ in headless.model.named_parameters() if "classifier" in n]
    sets = steps.probe_sets(partition(headless.model, new).sizes)
    assert sets == [("attn.1", "ffn.1"), ("attn.0", "ffn.0")]
    assert all("embed" not in chosen for chosen in sets)


def test_timed_steps_leave_every_weight_bit_for_bit_and_train_what_they_say(engine: Engine) -> None:
    objective = tiny("Bert")
    objective.model.float().train()
    loaded = loaded_of(objective, ("classifier.weight", "classifier.bias"))
    sets = steps.probe_sets(loaded.partition.sizes)
    before = {n: p.detach().clone() for n, p in objective.model.named_parameters()}
    observed: list[tuple[Sequence[str], Shape]] = []
    trained: list[int] = []

    def observe(cells: Sequence[str], shape: Shape) -> None:
        observed.append((cells, shape))
        trained.append(sum(p.numel() for p in objective.model.parameters() if p.requires_grad))

    batch = items(objective, (5, 9))
    recipe = TrainingSpec(weight_decay=0.5)
    seconds = steps.time_steps(loaded, objective, engine, batch, sets, recipe, observe)
    assert not objective.model.training  # without dropout, which would differ from set to set
    assert len(seconds) == len(sets)
    assert all(0 < value < 5 for value in seconds)
    for name, parameter in objective.model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.int32), before[name].view(torch.int32)), name
        assert parameter.grad is None
    assert [cells for cells, _ in observed] == [*sets] * 4  # taking turns, and one round that is not timed
    head = sum(objective.model.get_parameter(n).numel() for n in loaded.partition.new_head)
    sizes = loaded.partition.sizes
    assert trained[: len(sets)] == [head + sum(sizes[n] for n in cells) for cells in sets]
    assert {shape.batch for _, shape in observed} == {2}
