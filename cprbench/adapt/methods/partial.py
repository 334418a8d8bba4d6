"""partial: the submodules of largest gradient norm train, up to a share k of all parameters (paper, Algorithm 1).

Norms are measured on training batches, at the warmed head where the head is new; all of that is billed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared
from cprbench.blueprint.picking import Picked, check, fill

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Partial:
    """A k-set by rank of gradient norm. `embed`: whether the input tables may be taken."""

    k: float = 0.15
    embed: bool = False

    name: ClassVar[str] = "partial"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 2e-4, "causal": 5e-5}
    label_settings: ClassVar[tuple[str, ...]] = ("k",)

    @property
    def chooses(self) -> bool:
        """Everything at once (k = 1 with embed) needs no choice, so none is paid for."""
        return not (self.k == 1 and self.embed)

    def check(self, kind: str, sizes: Mapping[str, int], total: int) -> None:
        """Refuse k outside (0, 1] and below the smallest submodule."""
        check(sizes, total, self.k, embed=self.embed)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the k-set training; nothing below its lowest submodule gets a backward pass."""
        sizes, notes = loaded.partition.sizes, {}
        if self.chooses:
            norms = context.measure_norms()
            ranked = sorted(norms, key=lambda name: (-norms[name], name))
            picked = fill(ranked, sizes, loaded.partition.total, self.k, embed=self.embed)
            notes = {"gradient_norm": {name: norms[name] for name in sizes}}
        else:
            picked = Picked(tuple(sizes), 1.0)
        loaded.train_only(picked.submodules)
        return Prepared(loaded.model, picked.submodules, notes, self.k, picked.k_reached)
