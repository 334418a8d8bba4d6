"""What methods share that train own tensors of the model: k-sets in an order of their own, and sets by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Prepared, Target
from cprbench.blueprint.picking import check, fill

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class KSet:
    """Whole submodules train, walked in some order, up to a share k of N. `embed`: whether the input tables may."""

    k: float = 0.15
    embed: bool = False

    name: ClassVar[str]
    label_settings: ClassVar[tuple[str, ...]] = ("k",)

    def check(self, target: Target) -> None:
        """Refuse k outside (0, 1] and below the smallest submodule."""
        check(target.sizes, target.total, self.k, embed=self.embed)

    def train_first(self, loaded: LoadedModel, ranked: Sequence[str]) -> Prepared:
        """Return the model with the k-set training that `ranked` (best first) fills."""
        sizes, total = loaded.partition.sizes, loaded.partition.total
        picked = fill(ranked, sizes, total, self.k, embed=self.embed)
        loaded.train_only(picked.submodules)
        return Prepared(loaded.model, picked.submodules, k_asked=self.k, k_reached=picked.k_reached)


def train_tensors(loaded: LoadedModel, tensors: Mapping[str, Sequence[str]], notes: Mapping[str, Any]) -> Prepared:
    """Return the model with exactly these tensors (submodule -> parameter names) and its new head training."""
    tensors = {cell: list(names) for cell, names in tensors.items() if names}
    loaded.train_only(())
    chosen = [loaded.model.get_parameter(name) for names in tensors.values() for name in names]
    for parameter in chosen:
        parameter.requires_grad_(True)
    share = sum(parameter.numel() for parameter in chosen) / loaded.partition.total
    return Prepared(loaded.model, tuple(tensors), {**notes, "tensors": tensors}, k_reached=share, tensors=tensors)
