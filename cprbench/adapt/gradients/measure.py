"""Gradient norms per submodule, on batches of real examples: for a local probe, and for a blueprint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from cprbench.adapt.data import Example, sample_by_label
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.gradients.stream import Magnitudes, SquaredNorms, Stream
from cprbench.adapt.methods import method_class
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape, tokenize
from cprbench.adapt.training import AfterStep, plan_batches, train
from cprbench.errors import TrainingError
from cprbench.spec import TrainingSpec, stream_seed

#: observe(shape, extra FLOPs): what a pass computed on, and what norms cost beyond its products of weights.
Observer = Callable[[Shape, int], None]


@dataclass(frozen=True)
class Measured:
    """The gradients of a domain: one row per batch, or per example, and one entry per submodule."""

    batch_norms: list[dict[str, float]]  # norm of the batch-mean gradient
    example_norms: Tensor  # (examples, submodules) float64: norm of each example's own gradient
    magnitudes: Magnitudes

    def gradient_norm(self, cell: str) -> float:
        """Return the median over batches (paper, appendix A.1)."""
        return median(row[cell] for row in self.batch_norms)


def warm_head(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    recipe: TrainingSpec,
    after_step: AfterStep,
) -> None:
    """Train the new head alone on `batches` at method head's declared rate: at a random head gradients say little."""
    loaded.train_only(())
    rate = method_class("head").learning_rates["encoder"]
    train(loaded, objective, engine, batches, recipe, rate, after_step, scale=lambda step: 1.0)


def warm_head_on_sample(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    examples: Sequence[Example],
    steps: int,
    recipe: TrainingSpec,
    seed: int,
    after_step: AfterStep,
) -> None:
    """Warm the new head on as many examples as its steps take, by label: for data too large to plan as a whole."""
    chosen = sample_by_label(examples, min(len(examples), steps * recipe.batch_size), "warm-up")
    items = tokenize(loaded, chosen, recipe.max_tokens)
    epochs = math.ceil(steps * recipe.batch_size / len(items))
    plan = plan_batches([item.length for item in items], recipe.batch_size, epochs, seed)[:steps]
    torch.manual_seed(stream_seed(seed, "warm-up"))
    warm_head(loaded, objective, engine, [[items[i] for i in batch] for batch in plan], recipe, after_step)


def submodule_norms(
    loaded: LoadedModel, objective: Objective, engine: Engine, batches: Sequence[Sequence[Item]], observe: Observer
) -> dict[str, float]:
    """Return submodule -> median over `batches` of the norm of the batch-mean gradient (paper, A.1).

    Without dropout. Raises TrainingError for a norm that is not finite.
    """
    cells = loaded.partition.parameters
    norms = SquaredNorms(tuple(cells))
    rows = []
    ready(loaded)
    with Stream(loaded.model, cells, norms.look):
        for batch in batches:
            with engine.autocast():
                loss, shape = objective.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            observe(shape, 0)
            rows.append(_finite(norms.take()))
    loaded.model.zero_grad(set_to_none=True)
    return {cell: median(row[cell] for row in rows) for cell in cells}


def measure(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    observe: Observer,
    *,
    seed: int,
    draws: int = 100_000,
) -> Measured:
    """Return batch norms, example norms and magnitudes from one forward and one backward pass per batch.

    Without dropout. `draws`: |gradient| values kept per submodule. Raises what `submodule_norms` raises.
    """
    cells, sizes = loaded.partition.parameters, loaded.partition.sizes
    norms = SquaredNorms(tuple(cells))
    magnitudes = Magnitudes(sizes, math.ceil(draws / max(1, len(batches))), seed)

    def look(cell: str, gradient: Tensor) -> None:
        norms.look(cell, gradient)
        magnitudes.look(cell, gradient)

    rows, examples = [], []
    ready(loaded)
    with ExampleNorms(loaded.model, cells, freeze=False) as probe, Stream(loaded.model, cells, look):
        for batch in batches:
            shapes: list[Shape] = []

            def losses(batch: Sequence[Item] = batch, shapes: list[Shape] = shapes) -> Tensor:
                with engine.autocast():
                    found, shape = objective.losses(batch)
                shapes.append(shape)
                return found

            _, squared = probe.of(losses, objective.owners(batch), scale=1 / len(batch))
            observe(shapes[0], probe.extra_flops)
            rows.append(_finite(norms.take()))
            examples.append(squared.sqrt().cpu())
    loaded.model.zero_grad(set_to_none=True)
    return Measured(rows, torch.cat(examples), magnitudes)


def ready(loaded: LoadedModel) -> None:
    """Let every parameter take a gradient, and switch dropout off."""
    loaded.model.requires_grad_(True)
    loaded.model.eval()
    loaded.model.zero_grad(set_to_none=True)


def _finite(norms: dict[str, float]) -> dict[str, float]:
    if not all(math.isfinite(value) for value in norms.values()):
        raise TrainingError(f"gradient norms are not finite: {norms}. Lower the learning rate or use fp32.")
    return norms
