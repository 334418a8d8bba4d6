"""predicted: J(z) is measured on a few examples and predicted for the rest (paper, 4.3 and Algorithm 2).

How good the prediction is stands in the record, from examples that the predictor did not see: overall, within
classes, and beside the trivial predictor, the loss alone. Below a floor it is refused, and the run fails.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cprbench.adapt.selection import Pool, Selected
from cprbench.adapt.selection.top import Banded
from cprbench.errors import SpecError, TrainingError
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target

#: Fewer measured examples teach a predictor nothing that could be checked on held-out ones.
LEAST_MEASURED = 64


@dataclass(frozen=True)
class Predicted(Banded):
    """The largest predicted J(z), those of measured examples predicted too (Algorithm 2, line 4).

    `measured`: share of the examples whose J is measured, at least 64. `features`: "cheap" asks no pass of the
    model, "forward" one forward pass. `floor`: the least held-out Spearman that is accepted.
    """

    features: Literal["cheap", "forward"] = "forward"
    measured: float = 0.05
    floor: float = 0.3

    name: ClassVar[str] = "predicted"
    label_settings: ClassVar[tuple[str, ...]] = ("q", "features")
    warms_head: ClassVar[bool] = True

    def check(self, method: Method, target: Target) -> None:
        """Refuse shares and floors that cannot be."""
        if not 0 < self.measured <= 1 or not -1 <= self.floor <= 1:
            raise SpecError(
                f"selection.measured = {self.measured}, selection.floor = {self.floor}: measured is a share in "
                "(0, 1], floor a rank correlation in [-1, 1]."
            )

    def few(self, pool: Pool) -> list[int]:
        """Return the places whose J is measured: drawn by lot, from a stream of their own."""
        count = min(len(pool), max(LEAST_MEASURED, round(self.measured * len(pool))))
        return sorted(random.Random(stream_seed(pool.seed, "measured examples")).sample(range(len(pool)), count))

    def select(self, pool: Pool) -> Selected:
        """Return the places of largest predicted influence. Raises TrainingError below the floor."""
        scores, notes = self.scores(pool)
        found = notes["spearman"]
        if found is None or found < self.floor:
            raise TrainingError(
                f"the predictor's held-out Spearman correlation with J is "
                f"{'not defined: all values are equal' if found is None else f'{found:.3f}'}, the floor is "
                f"{self.floor:g} ({notes['measured']} measured examples, features={self.features}). Raise "
                "selection.measured, take features=forward or selection influence, or lower selection.floor."
            )
        return self.best(pool, scores, {"predictor": notes})

    def scores(self, pool: Pool) -> tuple[list[float], dict[str, Any]]:
        """Return every example's predicted log J, and how good the prediction is on held-out examples."""
        from cprbench.adapt.selection import predictor

        few = self.few(pool)
        forward = self.features == "forward"
        exact = pool.measure(few, states=forward)
        features = predictor.forward_features if forward else predictor.cheap_features
        blocks = features(pool, few, exact)
        fitted = predictor.fit(blocks, exact.influence, pool, few, exact.losses)
        rest = sorted(set(range(len(pool))) - set(few))
        if not rest:  # all of them are known: nothing is left to predict
            return exact.influence.tolist(), fitted.notes | {"features": self.features}
        scores = dict(zip(few, fitted.model.predict(blocks), strict=True))
        for start in range(0, len(rest), predictor.PART):
            part = rest[start : start + predictor.PART]
            seen = pool.measure(part, gradients=False, states=True) if forward else None
            scores |= zip(part, fitted.model.predict(features(pool, part, seen)), strict=True)
        return [float(scores[place]) for place in range(len(pool))], fitted.notes | {"features": self.features}
