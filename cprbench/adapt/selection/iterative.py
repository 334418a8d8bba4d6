"""iterative: start with a random subset, train briefly, measure, refine (paper, B.4).

Every round trains what the method trains on the examples kept so far, then measures J(z) and narrows them down; the
first round measures all examples. Its steps are steps of the run: the model goes on from there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.selection import Pool, Selected
from cprbench.adapt.selection.ranking import how_many, keep
from cprbench.adapt.selection.top import Top, cross_influence, told
from cprbench.errors import SpecError
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target


@dataclass(frozen=True)
class Iterative(Top):
    """Shares fall from 1 to q by equal factors, one per round, each after `steps` steps of training."""

    rounds: int = 2
    steps: int = 10

    name: ClassVar[str] = "iterative"
    warms_head: ClassVar[bool] = True

    def check(self, method: Method, target: Target) -> None:
        """Refuse no rounds and no steps."""
        if self.rounds < 1 or self.steps < 1:
            raise SpecError(f"selection.rounds = {self.rounds}, selection.steps = {self.steps}: both are at least 1.")

    @property
    def trains(self) -> int:
        """Steps that are trained before the choice is made."""
        return self.rounds * self.steps

    def select(self, pool: Pool) -> Selected:
        """Return what is left after the last round."""
        order = list(range(len(pool)))
        random.Random(stream_seed(pool.seed, "random data")).shuffle(order)
        kept = sorted(order[: how_many(self.q, len(pool))])
        places, measured_counts, everything = list(range(len(pool))), [], None
        for number in range(1, self.rounds + 1):
            pool.train(kept, self.steps)
            measured = pool.measure(places)
            everything = measured.norms if everything is None else everything
            measured_counts.append(len(places))
            ids, labels = [pool.ids[i] for i in places], [pool.labels[i] for i in places]
            wanted = len(pool) * self.q ** (number / self.rounds) if number < self.rounds else None
            count = how_many(self.q, len(pool)) if wanted is None else max(1, round(wanted))
            found = keep(measured.influence.tolist(), ids, labels, q=count / len(places), class_guard=self.class_guard)
            kept = places = [places[i] for i in found]
        assert everything is not None
        notes = {"measured": measured_counts, "cross_influence": cross_influence(pool, everything, kept)}
        return Selected(tuple(kept), told(pool, kept, self.q) | notes)
