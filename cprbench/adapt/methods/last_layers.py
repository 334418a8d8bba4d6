"""last-layers: submodules train from the top of the model downwards, up to a share k of all parameters.

The control of `partial` that reads no gradients: what a choice by depth alone gives at the same k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared
from cprbench.adapt.methods.k_set import KSet
from cprbench.adapt.methods.partial import Partial

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class LastLayers(KSet):
    """A k-set by depth: head, ffn and attn of the last layer, of the one before it, and so on."""

    name: ClassVar[str] = "last-layers"
    learning_rates: ClassVar[Mapping[str, float]] = Partial.learning_rates
    chooses: ClassVar[bool] = False

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the k-set nearest to its output training."""
        return self.train_first(loaded, list(loaded.partition.sizes)[::-1])
