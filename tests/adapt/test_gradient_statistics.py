"""What is made of gradients: norms of batches, histograms and Fisher information."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cprbench.adapt import models, objectives
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import load_dataset
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients.audit import FisherDiagonal, audit
from cprbench.adapt.gradients.measure import measure, submodule_norms
from cprbench.adapt.gradients.stream import Magnitudes, SquaredNorms, Stream
from cprbench.adapt.models import LoadedModel, partition
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.errors import TrainingError
from cprbench.tasks import load_task
from tests.adapt.test_engine import ENCODERS, cells_of, items, looped, tiny


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.start("fp32", bf16_is_fast=False)


def loaded_of(objective: Objective, new_head: Sequence[str] = ()) -> LoadedModel:
    kind = "encoder" if isinstance(objective, objectives.Classification) else "causal"
    return LoadedModel(objective.model, None, kind, partition(objective.model, new_head), 2)


def gradients(objective: Objective, item: Item) -> dict[str, Tensor]:
    """Return one example's own gradient by parameter name."""
    objective.model.zero_grad(set_to_none=True)
    objective.losses([item])[0].sum().backward()
    found = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in objective.model.named_parameters()
    }
    objective.model.zero_grad(set_to_none=True)
    return found


# Streams


@pytest.mark.parametrize("family", ["Bert", "Llama tied", "GPT2"])
def test_a_stream_hands_over_every_gradient_once_and_keeps_none_alive(family: str) -> None:
    objective = tiny(family)
    cells = cells_of(objective)
    names = {id(p): n for n, p in objective.model.named_parameters()}
    batch = items(objective, (5, 9))
    objective.loss(batch)[0].backward()
    expected = {n: p.grad.clone() for n, p in objective.model.named_parameters() if p.grad is not None}
    seen: list[tuple[str, Tensor]] = []
    alive: list[int] = []

    def look(cell: str, gradient: Tensor) -> None:
        seen.append((cell, gradient.clone()))
        alive.append(sum(p.grad is not None for p in objective.model.parameters()))

    with Stream(objective.model, cells, look):  # drops the gradients that were there
        assert all(p.grad is None for p in objective.model.parameters())
        objective.loss(batch)[0].backward()
    assert max(alive) == 0
    assert all(p.grad is None for p in objective.model.parameters())
    assert len(seen) == len(expected) == len(names)
    for cell, parts in cells.items():
        mine = sorted(float(g.norm()) for c, g in seen if c == cell)
        assert mine == pytest.approx(sorted(float(expected[name].norm()) for name in parts))
    objective.loss(batch)[0].backward()  # outside, gradients stay
    assert len(seen) == len(expected)
    assert all(p.grad is not None for p in objective.model.parameters())


def test_what_a_stream_is_not_asked_for_keeps_its_gradient() -> None:
    objective = tiny("Bert")
    cells = {"ffn.1": cells_of(objective)["ffn.1"]}
    seen: list[str] = []
    with Stream(objective.model, cells, lambda cell, _: seen.append(cell)):
        objective.loss(items(objective, (5,)))[0].backward()
    assert seen == ["ffn.1"] * len(cells["ffn.1"])
    held = {n for n, p in objective.model.named_parameters() if p.grad is None}
    assert held == set(cells["ffn.1"])


def test_squared_norms_add_up_by_submodule_and_start_again_when_taken() -> None:
    norms = SquaredNorms(("a", "b"))
    norms.look("a", torch.full((3,), 2.0, dtype=torch.bfloat16))
    norms.look("a", torch.full((2, 2), 2.0))
    assert norms.take() == {"a": pytest.approx(math.sqrt(28)), "b": 0.0}
    assert norms.take() == {"a": 0.0, "b": 0.0}


# Magnitudes


def test_histograms_count_and_weigh_what_numpy_counts_and_weighs() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.exp(4 * torch.randn(20_000, generator=generator)) * torch.randn(20_000, generator=generator).sign()
    drawn[:500] = 0.0
    other = torch.randn(30, 10, generator=generator, dtype=torch.float64)
    found = Magnitudes({"a": 20_000, "b": 300}, 100, 0)
    for part in drawn.split(7_000):
        found.look("a", part)
    found.look("b", other)
    # A bin is the exponent and three bits of the mantissa: its lower edge is (1 + j / 8) 2^e.
    edges = (np.arange(255 * 8, dtype=np.uint32) << 20).view(np.float32).astype(np.float64)
    for cell, values in (("a", drawn), ("b", other)):
        size = values.float().abs().double().numpy().ravel()
        counts, _ = np.histogram(size, edges)
        mass, _ = np.histogram(size, edges, weights=size)
        assert found.counts[cell][: len(counts)].tolist() == counts.tolist()
        np.testing.assert_allclose(found.mass[cell][: len(mass)].numpy(), mass, rtol=1e-9)
        assert int(found.counts[cell].sum()) == values.numel()
    assert found.counts["a"][0] == 500
    counts, mass = found.ordered(["a", "b"])
    assert sum(counts) == 20_300
    assert sum(mass) == pytest.approx(float(drawn.double().abs().sum() + other.abs().sum()), rel=1e-6)
    assert counts[-1] == 500 and mass[-1] == 0.0
    means = [m / c for c, m in zip(counts, mass, strict=True)]
    assert means == sorted(means, reverse=True)
    assert found.ordered(["b"])[0] != counts


def test_millions_of_equal_scalars_weigh_what_they_weigh() -> None:
    size = 5_000_001  # a float32 sum of so many is several percent off
    found = Magnitudes({"a": size}, 10, 0)
    found.look("a", torch.full((size,), 0.1))
    assert float(found.mass["a"].sum()) == pytest.approx(size * float(torch.tensor(0.1)), rel=1e-9)
    assert int(found.counts["a"].sum()) == size


def test_samples_have_their_size_repeat_by_seed_and_come_from_all_tensors() -> None:
    def run(seed: int) -> Magnitudes:
        made = Magnitudes({"a": 4000, "b": 10, "c": 5}, 200, seed)
        for batch in range(3):
            made.look("a", torch.arange(1000.0) + 1e4 * batch)
            made.look("a", -torch.arange(3000.0) - 1e6)
            made.look("b", torch.ones(10))
        return made

    found = run(0)
    sample = found.sample("a")
    assert sample.dtype == torch.float32
    assert len(sample) == 3 * 200 and len(found.sample("b")) == 3 * 200
    assert len(found.sample("c")) == 0
    assert int((sample >= 1e6).sum()) == 3 * 150  # three quarters of the scalars
    assert set(sample.tolist()) <= {1e4 * b + i for b in range(3) for i in range(1000)} | {1e6 + i for i in range(3000)}
    assert torch.equal(sample, run(0).sample("a"))
    assert not torch.equal(sample, run(1).sample("a"))


# Measures


@pytest.mark.parametrize("family", ["Bert", "Llama tied", "GPT2"])
def test_a_measure_holds_the_norms_of_batches_and_of_examples(family: str, engine: Engine) -> None:
    objective = tiny(family)
    loaded = loaded_of(objective, ("classifier.weight", "classifier.bias") if family == "Bert" else ())
    cells = loaded.partition.parameters
    batches = [items(objective, (5, 9, 3), 1, (1, 2)), items(objective, (7, 70), 2), items(objective, (2,), 3)]
    expected = torch.cat([looped(objective, batch, cells) for batch in batches])
    shapes: list[tuple[Shape, int]] = []
    objective.model.train()  # measures run without dropout
    found = measure(loaded, objective, engine, batches, lambda *seen: shapes.append(seen), seed=0, draws=90)
    assert all(p.grad is None for p in objective.model.parameters())
    torch.testing.assert_close(found.example_norms, expected, rtol=1e-6, atol=1e-12)
    assert [shape.batch for shape, _ in shapes] == [3, 2, 1]
    assert all(extra > 0 for _, extra in shapes)
    probe = submodule_norms(loaded, objective, engine, batches, lambda *_: None)
    assert {cell: found.gradient_norm(cell) for cell in cells} == pytest.approx(probe, rel=1e-6)
    for row, batch in zip(found.batch_norms, batches, strict=True):
        every = [gradients(objective, item) for item in batch]
        for cell, names in cells.items():
            mean = [sum(g[name] for g in every) / len(batch) for name in names]
            assert row[cell] == pytest.approx(math.sqrt(sum(float(m.square().sum()) for m in mean)), rel=1e-6)
    assert {c: int(found.magnitudes.counts[c].sum()) for c in cells} == {
        c: 3 * n for c, n in loaded.partition.sizes.items()
    }
    assert all(90 <= len(found.magnitudes.sample(c)) <= 90 + 3 * len(names) for c, names in cells.items())


def test_a_measure_that_is_not_finite_is_an_error(engine: Engine) -> None:
    objective = tiny("Bert")
    with torch.no_grad():
        objective.model.get_parameter("classifier.weight").fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        measure(loaded_of(objective), objective, engine, [items(objective, (5,))], lambda *_: None, seed=0)


# Fisher information


@pytest.mark.parametrize("family", [*ENCODERS, "Llama tied", "GPT2", "Qwen2", "Qwen3 tied"])
def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_of_examples(family: str) -> None:
    objective = tiny(family)
    cells = cells_of(objective)
    batches = [items(objective, (5, 9, 70), 1, (1, 3)), items(objective, (1, 4), 2, (2,))]
    fisher = FisherDiagonal(objective.model, cells)
    for batch in batches:
        with fisher:
            fisher.add(lambda batch=batch: objective.losses(batch)[0], objective.owners(batch))
    every = [gradients(objective, item) for batch in batches for item in batch]
    assert fisher.examples == 5
    for cell, names in cells.items():
        rows = torch.stack([torch.cat([g[name].flatten() for name in names]) for g in every])
        largest = float(rows.square().max())
        torch.testing.assert_close(fisher.diagonal(cell), rows.square().mean(0), rtol=1e-6, atol=1e-7 * largest)
        torch.testing.assert_close(fisher.mean(cell), rows.mean(0), rtol=1e-6, atol=1e-7 * largest**0.5)
        information, mean = rows.square().mean(0).numpy(), rows.mean(0).numpy()
        for damping in (0.01, 0.5):
            # The mean over pairs of unlike examples: what a single example contributes to a square is not influence.
            squared = (5 * mean**2 - information) / 4
            wanted = (squared / (information + damping * information.mean())).sum()
            assert fisher.influence(cell, damping) == pytest.approx(math.sqrt(max(0.0, wanted)), rel=1e-5, abs=1e-6)
        assert fisher.influence(cell) == fisher.influence(cell, 0.01)


def test_a_tied_output_layer_with_a_bias_has_that_bias_in_the_fisher_diagonal_and_in_the_norms() -> None:
    objective = tiny("Llama tied")
    objective.model.lm_head.bias = nn.Parameter(torch.zeros(objective.model.lm_head.out_features).double())
    cells = {"bias": ("lm_head.bias",), "embed": ("model.embed_tokens.weight",)}
    batch = items(objective, (5, 9), 1, (1, 3))
    with FisherDiagonal(objective.model, cells) as fisher:
        fisher.add(lambda: objective.losses(batch)[0], objective.owners(batch))
    every = [gradients(objective, item) for item in batch]
    for cell, (name,) in cells.items():
        expected = torch.stack([g[name].flatten().square() for g in every]).mean(0)
        torch.testing.assert_close(fisher.diagonal(cell), expected, rtol=1e-6, atol=1e-9)
    assert float(fisher.diagonal("bias").sum()) > 0


def test_no_gradient_has_no_influence() -> None:
    objective = tiny("Bert")
    batch = items(objective, (5,))
    with FisherDiagonal(objective.model, {"ffn.0": cells_of(objective)["ffn.0"]}) as fisher:
        fisher.add(lambda: objective.losses(batch)[0] * 0.0, objective.owners(batch))
    assert fisher.influence("ffn.0") == 0.0


def test_an_audit_ranks_all_submodules_both_ways_and_times_both(
    minilm2: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=3, attention="sdpa")
    objective = objectives.objective_for(loaded)
    chosen = objectives.tokenize(loaded, load_dataset(load_task("movie-snippets")).train[:8], 24)
    batches = [chosen[:4], chosen[4:]]
    add = FisherDiagonal.add
    monkeypatch.setattr(FisherDiagonal, "add", lambda *args: (time.sleep(1.0), add(*args)))
    began = time.perf_counter()
    found = audit(loaded, objective, engine, batches)
    assert found.fisher_seconds > 2.0
    assert 0 < found.gradient_seconds < time.perf_counter() - began - found.fisher_seconds
    cells = set(loaded.partition.sizes)
    assert set(found.gradient_norm) == set(found.influence) == cells
    assert found.gradient_norm == pytest.approx(
        submodule_norms(loaded, objective, engine, batches, lambda *_: None), rel=1e-5
    )
    assert all(math.isfinite(v) and v > 0 for v in found.influence.values())
    assert found.examples == 8 and found.damping == 0.01
