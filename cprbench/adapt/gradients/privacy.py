"""What a blueprint of sensitive data may say: norms of clipped gradients, with Gaussian noise and its guarantee.

Every example's gradient is clipped to `clip_norm`. Adding or removing one example then moves the vector of
submodule norms of its batch's summed gradient, and the vector of summed example norms, by at most `clip_norm` each in
L2. Both get noise of standard deviation noise_multiplier * clip_norm per submodule; an example is in one batch, so
that is two Gaussian mechanisms per domain that holds it. Medians and intervals are post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.gradients.measure import Observer, ready
from cprbench.adapt.gradients.stream import SquaredNorms, Stream
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.errors import MethodError

#: Mechanisms per domain: the norms of batches, and the sum of example norms.
MECHANISMS = 2


def epsilon(noise_multiplier: float, delta: float, mechanisms: int) -> float:
    """Return the epsilon of `mechanisms` Gaussian mechanisms at `delta`, by Google's dp-accounting (PLD accountant).

    Raises MethodError for settings that give no guarantee and where dp-accounting is not installed.
    """
    if noise_multiplier <= 0 or not 0 < delta < 1:
        raise MethodError(f"noise multiplier {noise_multiplier}, delta {delta}: both above 0, delta below 1.")
    try:
        from dp_accounting import GaussianDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise MethodError("noise needs an accountant: pip install 'cprbench[privacy]'.") from None
    accountant = PLDAccountant()
    accountant.compose(GaussianDpEvent(noise_multiplier), mechanisms)
    return float(accountant.get_epsilon(delta))


def private_norms(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    observe: Observer,
    *,
    noise_multiplier: float,
    clip_norm: float,
    batch_size: float,
    seed: int,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return (per batch: submodule -> noisy norm of the clipped mean gradient, submodule -> noisy mean example norm).

    `batch_size`: what means are taken over, expected and not counted: batches that examples join by their own hash have
    sizes that only the data know. Negative values are cut to 0 (post-processing). Two passes a batch: norms, then
    gradients of reweighted losses.
    """
    cells = tuple(loaded.partition.parameters)
    norms = SquaredNorms(cells)
    spread = noise_multiplier * clip_norm
    generator = torch.Generator().manual_seed(seed)

    def noise() -> dict[str, float]:
        drawn = torch.randn(len(cells), generator=generator, dtype=torch.float64) * spread
        return dict(zip(cells, drawn.tolist(), strict=True))

    rows: list[dict[str, float]] = []
    sums = torch.zeros(len(cells), dtype=torch.float64)
    shapes: list[Shape] = []
    for batch in batches:
        if not batch:  # releases as much as any other
            rows.append({cell: max(0.0, value) / batch_size for cell, value in noise().items()})
            continue
        losses = _losses(objective, engine, batch, shapes)
        ready(loaded)
        with ExampleNorms(loaded.model, loaded.partition.parameters) as probe:
            _, squared = probe.of(losses, objective.owners(batch))
        weights = (clip_norm / squared.sum(1).sqrt().clamp_min(1e-30)).clamp_max(1.0)
        sums += (squared.sqrt() * weights.unsqueeze(1)).sum(0).cpu()
        observe(shapes.pop(), probe.extra_flops)
        with Stream(loaded.model, loaded.partition.parameters, norms.look):
            (losses() * weights.to(torch.float32)).sum().backward()  # type: ignore[no-untyped-call]
        observe(shapes.pop(), 0)
        clipped, drawn = _finite(norms.take()), noise()
        rows.append({cell: max(0.0, clipped[cell] + drawn[cell]) / batch_size for cell in cells})
    loaded.model.zero_grad(set_to_none=True)
    examples, drawn = batch_size * len(batches), noise()
    summed = _finite(dict(zip(cells, sums.tolist(), strict=True)))
    return rows, {cell: max(0.0, summed[cell] + drawn[cell]) / examples for cell in cells}


def _finite(norms: dict[str, float]) -> dict[str, float]:
    """Return norms; asked before negative values are cut to 0, because max(0, NaN) is 0."""
    if not all(math.isfinite(value) for value in norms.values()):
        raise MethodError("norms are not finite, so nothing can be released. Use fp32.")
    return norms


def _losses(objective: Objective, engine: Engine, batch: Sequence[Item], shapes: list[Shape]) -> Callable[[], Tensor]:
    def losses() -> Tensor:
        with engine.autocast():
            found, shape = objective.losses(batch)
        shapes.append(shape)
        return found

    return losses
