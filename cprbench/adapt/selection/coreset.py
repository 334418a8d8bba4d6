"""coreset: examples that cover the rest in embedding space, whatever their gradients (paper, B.4).

k-center is farthest-first traversal (Gonzalez 1985): q n^2 distances, seconds at thousands of examples, an hour at
10^5. facility-location is stochastic greedy (Mirzasoleiman and others 2015) on at most 2,000 of the points that are to
be covered, which stays linear in the examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cprbench.adapt.selection import Pool, Selected
from cprbench.adapt.selection.ranking import how_many, shares
from cprbench.adapt.selection.top import Top, told
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COVERED = 2000
#: A step of stochastic greedy looks at n/m ln(1/_MISS) candidates: 1 - 1/e - _MISS of the best cover, on average.
_MISS = 0.1


@dataclass(frozen=True)
class Coreset(Top):
    """A cover of the pool. `embedding`: pooled last hidden states (a forward pass each), or mean input embeddings."""

    objective: Literal["k-center", "facility-location"] = "k-center"
    embedding: Literal["forward", "input"] = "forward"

    name: ClassVar[str] = "coreset"
    warms_head: ClassVar[bool] = False  # what the backbone gives does not depend on the head

    def select(self, pool: Pool) -> Selected:
        """Return a cover; with the class guard, one of every class."""
        import numpy as np

        everything = range(len(pool))
        if self.embedding == "forward":
            points = pool.measure(everything, gradients=False, states=True).states
        else:
            points = pool.input_means(everything)
        assert points is not None
        points = points.astype(np.float64)
        groups: dict[str, list[int]] = {}
        for place in everything:
            groups.setdefault(pool.labels[place] if self.class_guard else "", []).append(place)
        quotas = shares([len(group) for group in groups.values()], how_many(self.q, len(pool)))
        cover = k_center if self.objective == "k-center" else facility_location
        seed = stream_seed(pool.seed, "coreset")
        kept = [
            group[i]
            for group, quota in zip(groups.values(), quotas, strict=True)
            for i in cover(points[group], quota, seed)
        ]
        return Selected(tuple(sorted(kept)), told(pool, kept, self.q))


def k_center(points: NDArray[Any], count: int, seed: int) -> list[int]:
    """Return `count` of (n, width) points: the one nearest to the mean, then always the one farthest from all taken.

    `seed` is not used: equal distances go to the first. Equal points are taken once, until nothing else is left.
    """
    import numpy as np

    if count == 0:
        return []
    taken = [int(((points - points.mean(0)) ** 2).sum(1).argmin())]
    nearest = np.full(len(points), np.inf)
    while len(taken) < count:
        nearest = np.minimum(nearest, ((points - points[taken[-1]]) ** 2).sum(1))
        nearest[taken[-1]] = -1.0  # below every distance, so never again
        taken.append(int(nearest.argmax()))
    return taken


def facility_location(points: NDArray[Any], count: int, seed: int) -> list[int]:
    """Return `count` of (n, width) points that make sum over points of the nearest one's cosine similarity large."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(seed))
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    covered = unit if len(unit) <= _COVERED else unit[generator.choice(len(unit), _COVERED, replace=False)]
    best = np.full(len(covered), -1.0)
    left = np.ones(len(unit), dtype=bool)
    taken: list[int] = []
    looked_at = math.ceil(len(unit) / max(1, count) * math.log(1 / _MISS))
    while len(taken) < count:
        free = np.flatnonzero(left)
        some = generator.choice(free, min(looked_at, len(free)), replace=False)
        similar = covered @ unit[some].T
        winner = int(np.maximum(similar - best[:, None], 0).sum(0).argmax())
        best = np.maximum(best, similar[:, winner])
        left[some[winner]] = False
        taken.append(int(some[winner]))
    return taken
