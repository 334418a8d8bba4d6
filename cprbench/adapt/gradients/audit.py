"""Do gradient norms rank like Fisher-preconditioned influence (paper, 4.2 and B.3)? Measured, with the cost of both.

The efficient influence function projected onto block i is D_i(z) = grad_i' F_i^-1 s_i(z), with the score s_i = the
gradient of one example's log-likelihood (eq. 23). Its L2 norm over examples is sqrt(grad_i' F_i^-1 grad_i), which is
what stands here against ||grad_i||, with F_i the diagonal of the empirical Fisher information, damped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import forms
from cprbench.adapt.gradients.engine import Kind, Taps, scaled
from cprbench.adapt.gradients.measure import submodule_norms
from cprbench.adapt.gradients.steps import wait
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective

#: Added to every diagonal, as a share of its submodule's mean: unseen embedding rows have no information at all.
DAMPING = 0.01


class FisherDiagonal(Taps):
    """Mean gradient and mean squared gradient over examples, per scalar of `cells`: the empirical Fisher diagonal.

    Holds two tensors of the model's size, and one example's gradient of one layer at a time.
    """

    def __init__(self, model: nn.Module, cells: Mapping[str, Sequence[str]]) -> None:
        super().__init__(model, cells)
        named = dict(model.named_parameters())
        self.cells = {cell: [named[name] for name in names] for cell, names in cells.items()}
        every = [p for parameters in self.cells.values() for p in parameters]
        self.sums = {id(p): torch.zeros_like(p, dtype=forms.wide(p).dtype) for p in every}
        self.squares = {id(p): torch.zeros_like(p, dtype=forms.wide(p).dtype) for p in every}
        self.examples = 0
        self._output: tuple[Tensor, Tensor] | None = None

    def add(self, losses: Callable[[], Tensor], owners: Sequence[int]) -> None:
        """Add the examples of one batch; `losses` and `owners` as in Taps.run."""
        self.run(losses, owners)
        self.examples += max(owners) + 1

    def arrived(self, module: nn.Module, kind: Kind, read: Tensor, gradient: Tensor) -> None:
        """Add one module's gradients, example by example."""
        module_: Any = module
        gradient = forms.wide(gradient)
        tied = kind == "linear" and self.is_tied(module)
        if tied:
            self._output = forms.wide(read), gradient  # waits for what the same tensor gets as an input table
        for row, g in enumerate(gradient):
            if kind == "linear" and not tied:
                own = g.T @ forms.wide(read[row])
                self._add(module_.weight, own.T if isinstance(module, Conv1D) else own)
            elif kind == "embedding":
                self._add(module_.weight, self._table(module_, row, read[row], g))
            elif not tied:
                self._add(module_.weight, (scaled(module, kind, read[row]) * g).sum(0))
            if getattr(module, "bias", None) is not None:
                self._add(module_.bias, g.sum(0))

    def _table(self, module: Any, row: int, ids: Tensor, g: Tensor) -> Tensor:
        if module.padding_idx is not None:
            g = g * (ids != module.padding_idx).unsqueeze(-1)
        if self._output is not None and self.is_tied(module):
            found = self._output[1][row].T @ self._output[0][row]
        else:
            found = torch.zeros_like(module.weight, dtype=g.dtype)
        return found.index_add_(0, ids, g)

    def _add(self, parameter: Tensor, gradient: Tensor) -> None:
        if id(parameter) in self.sums:
            self.sums[id(parameter)] += gradient
            self.squares[id(parameter)].addcmul_(gradient, gradient)

    def diagonal(self, cell: str) -> Tensor:
        """Return the mean squared gradient of every scalar of a submodule, flat."""
        return torch.cat([self.squares[id(p)].flatten() for p in self.cells[cell]]) / self.examples

    def mean(self, cell: str) -> Tensor:
        """Return the mean gradient of every scalar of a submodule, flat."""
        return torch.cat([self.sums[id(p)].flatten() for p in self.cells[cell]]) / self.examples

    def influence(self, cell: str, damping: float = DAMPING) -> float:
        """Return sqrt(g' F^-1 g) of a submodule, 0 where no gradient can be told from none.

        The square of a mean over n examples is too large by its variance, (F - g^2)/n for every scalar: over many of
        them that alone would give sqrt(scalars/n), their number and not their influence. It is taken off.
        """
        information, mean, n = self.diagonal(cell).double(), self.mean(cell).double(), self.examples
        level = float(information.mean())
        if level == 0 or n < 2:
            return 0.0
        squared = (n * mean.square() - information) / (n - 1)
        return float((squared / (information + damping * level)).sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class Audit:
    """Both rankings on the same batches, and the seconds that each took."""

    gradient_norm: dict[str, float]
    influence: dict[str, float]
    gradient_seconds: float
    fisher_seconds: float
    examples: int
    damping: float


def audit(loaded: LoadedModel, objective: Objective, engine: Engine, batches: Sequence[Sequence[Item]]) -> Audit:
    """Return gradient norms (median over `batches`) and Fisher-preconditioned influence of every submodule.

    Batches alternate between the two, so that a machine that drifts slows both alike. Without dropout.
    """
    cells = loaded.partition.parameters
    rows: list[dict[str, float]] = []
    seconds = {"gradient": 0.0, "fisher": 0.0}
    fisher = FisherDiagonal(loaded.model, cells)
    for batch in batches:
        wait(engine)
        began = time.perf_counter()
        rows.append(submodule_norms(loaded, objective, engine, [batch], lambda shape, extra: None))
        middle = time.perf_counter()

        def losses(batch: Sequence[Item] = batch) -> Tensor:
            with engine.autocast():
                return objective.losses(batch)[0]

        with fisher:
            fisher.add(losses, objective.owners(batch))
        wait(engine)
        seconds["gradient"] += middle - began
        seconds["fisher"] += time.perf_counter() - middle
    began = time.perf_counter()
    influence = {cell: fisher.influence(cell) for cell in cells}
    seconds["fisher"] += time.perf_counter() - began
    norms = {cell: median(row[cell] for row in rows) for cell in cells}
    return Audit(norms, influence, seconds["gradient"], seconds["fisher"], fisher.examples, DAMPING)
