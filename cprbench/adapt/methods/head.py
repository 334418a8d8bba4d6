"""head: only the new task head trains. Gains of models with a new head are measured against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target, refuse_without_new_head

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Head:
    """Training of the new head alone; it has no settings."""

    name: ClassVar[str] = "head"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-1}
    label_settings: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False

    def check(self, target: Target) -> None:
        """Refuse causal models."""
        refuse_without_new_head(self.name, target.kind)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with nothing but the new head training."""
        refuse_without_new_head(self.name, loaded.kind)
        loaded.train_only(())
        return Prepared(loaded.model, ())
