"""full: every parameter trains. The reference that retained gain and multiples are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Full:
    """Full tuning; it has no settings."""

    name: ClassVar[str] = "full"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-4, "causal": 2e-5}
    label_settings: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False

    def check(self, target: Target) -> None:
        """Accept every model."""

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with every tensor training."""
        cells = tuple(loaded.partition.sizes)
        loaded.train_only(cells)
        return Prepared(loaded.model, cells)
