"""random: examples drawn by lot. The control of every selection that claims to know better.

Its permutation is the block's own, and a smaller q is a part of a larger one, so that blocks show the spread of luck.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.selection import Pool, Selected
from cprbench.adapt.selection.top import Top, told
from cprbench.errors import SpecError
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target


@dataclass(frozen=True)
class Random(Top):
    """A share q, or with `flops` as much data as makes the whole run bill that many FLOPs, whatever q says.

    `flops_of`: the arm whose bill that is. Beyond all data at the recipe's epochs, epochs go on until it is spent.
    `warm`: warm a new head first, as selections do that measure gradients, so that only the choice differs.
    """

    flops: float = 0.0
    flops_of: str = ""
    warm: bool = False

    name: ClassVar[str] = "random"

    @property
    def chooses(self) -> bool:
        """Nothing is measured; a warm-up is billed like that of others."""
        return self.warm

    @property
    def warms_head(self) -> bool:
        """As asked."""
        return self.warm

    @property
    def unused(self) -> tuple[str, ...]:
        """A bill says how much; then q says nothing. The arm that it is of stands for its number."""
        return ("q", "flops") if self.flops_of else ("q",) if self.flops else ()

    def kept(self, examples: int) -> int | None:
        """Return the whole examples in q of them; None where a number of FLOPs decides."""
        return None if self.flops or self.flops_of else super().kept(examples)

    def check(self, method: Method, target: Target) -> None:
        """Refuse a bill that cannot be, and one to be met class by class."""
        if self.flops < 0:
            raise SpecError(f"selection.flops = {self.flops}: it is above 0, or 0 for a share q.")
        if self.class_guard and (self.flops or self.flops_of):
            raise SpecError("selection.class_guard goes with a share q, not with selection.flops.")

    def select(self, pool: Pool) -> Selected:
        """Return the first places of the block's own permutation."""
        if self.flops_of and not self.flops:
            raise SpecError(f"selection.flops_of = {self.flops_of!r}: that arm's bill is not known here.")
        if self.warm:
            pool.warm()
        order = list(range(len(pool)))
        random.Random(stream_seed(pool.seed, "random data")).shuffle(order)
        if not self.flops:
            rank = {place: len(order) - i for i, place in enumerate(order)}
            return self.best(pool, [rank[place] for place in range(len(pool))])
        places = tuple(sorted(order[: pool.afford(order, self.flops)]))
        return Selected(places, told(pool, places, None) | {"flops_asked": self.flops}, self.flops)
