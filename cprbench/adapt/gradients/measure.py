"""Gradient norms per submodule, on batches of real examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch

from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.adapt.training import Engine
from cprbench.errors import TrainingError


def submodule_norms(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    observe: Callable[[Shape], None],
) -> dict[str, float]:
    """Return submodule -> median over `batches` of the norm of the batch-mean gradient (paper, A.1).

    Without dropout. `observe` is told the shape of every pass. Raises TrainingError for a norm that is not finite.
    """
    model = loaded.model
    model.requires_grad_(True)
    model.eval()
    parameters = dict(model.named_parameters())
    found: dict[str, list[float]] = {cell: [] for cell in loaded.partition.sizes}
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with engine.autocast():
            loss, shape = objective.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        observe(shape)
        for cell, names in loaded.partition.parameters.items():
            gradients = [g for name in names if (g := parameters[name].grad) is not None]
            norms = torch._foreach_norm(gradients) if gradients else []
            found[cell].append(math.sqrt(sum(float(norm) ** 2 for norm in norms)))
    model.zero_grad(set_to_none=True)
    medians = {cell: median(values) for cell, values in found.items()}
    if not all(math.isfinite(value) for value in medians.values()):
        raise TrainingError(f"gradient norms are not finite: {medians}. Lower the learning rate or use fp32.")
    return medians
