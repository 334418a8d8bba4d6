"""random-submodules: submodules drawn by lot train, up to a share k of all parameters.

The control of `partial` that knows nothing: every block draws its own set, so that blocks show the spread of luck.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared
from cprbench.adapt.methods.k_set import KSet
from cprbench.adapt.methods.partial import Partial
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class RandomSubmodules(KSet):
    """A k-set in an order drawn from the block's stream of random picks."""

    name: ClassVar[str] = "random-submodules"
    learning_rates: ClassVar[Mapping[str, float]] = Partial.learning_rates
    chooses: ClassVar[bool] = False

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the drawn k-set training."""
        order = list(loaded.partition.sizes)
        random.Random(stream_seed(context.seed, "random picks")).shuffle(order)
        return self.train_first(loaded, order)
