"""What selections share that keep a share q of the examples: counting, ranks, and what the record says of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.selection import Measured, Pool, Selected
from cprbench.adapt.selection.ranking import how_many, how_many_in, keep
from cprbench.blueprint.cross_influence import exponents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cprbench.adapt.methods import Method, Target


#: Lost labels that a record names: free answers are as many as examples.
_NAMED = 20


@dataclass(frozen=True)
class Top:
    """A share q of the examples by some rank. `class_guard`: every class keeps its own share (ranking.py)."""

    q: float = 0.3
    class_guard: bool = False

    name: ClassVar[str]
    label_settings: ClassVar[tuple[str, ...]] = ("q",)

    @property
    def chooses(self) -> bool:
        """What is measured costs."""
        return True

    def kept(self, examples: int) -> int | None:
        """Return the whole examples in q of them."""
        return how_many(self.q, examples)

    def check(self, method: Method, target: Target) -> None:
        """Goes with every method."""

    def best(self, pool: Pool, scores: Sequence[float]) -> Selected:
        """Return the q places of the largest scores."""
        places = tuple(keep(scores, pool.ids, pool.labels, q=self.q, class_guard=self.class_guard))
        return Selected(places, told(pool, places, self.q))


@dataclass(frozen=True)
class Banded(Top):
    """A share q of the largest scores, or with `band` ("20..80", percentiles of the score) what lies in that band."""

    band: str = ""

    @property
    def unused(self) -> tuple[str, ...]:
        """A band says how much; then q says nothing."""
        return ("q",) if self.band else ()

    def kept(self, examples: int) -> int | None:
        """Return the whole examples in q of them, or how many the band holds."""
        return how_many_in(self.band, examples) if self.band else super().kept(examples)

    def best(self, pool: Pool, scores: Sequence[float], notes: Mapping[str, Any] | None = None) -> Selected:
        """Return the places of the largest scores, or of those in the band."""
        guard = self.class_guard
        places = tuple(keep(scores, pool.ids, pool.labels, q=self.q, band=self.band, class_guard=guard))
        return Selected(places, told(pool, places, None if self.band else self.q) | dict(notes or {}))


def told(pool: Pool, places: Sequence[int], q: float | None) -> dict[str, Any]:
    """Return what a record says of the kept places: shares, classes without any, equal texts among them."""
    dropped = sorted(set(pool.labels) - {pool.labels[place] for place in places})
    texts = Counter(pool.texts[place] for place in places)
    return {
        "q_asked": q,
        "q_reached": len(places) / len(pool),
        "pool": len(pool),
        "classes_dropped": dropped[:_NAMED],
        "classes_dropped_count": len(dropped),
        "duplicate_texts": sum(count - 1 for count in texts.values()),
    }


def cross_influence(pool: Pool, norms: NDArray[Any], places: Sequence[int]) -> dict[str, Any]:
    """Return T (examples x submodules) summed over all and over the kept examples, and eq. 35's exponents."""
    import numpy as np

    picked = norms[list(places)]
    columns = {
        "sums": norms.sum(0),
        "squares": (norms**2).sum(0),
        "selected_sums": picked.sum(0),
        "selected_squares": (picked**2).sum(0),
    }
    by_cell = {name: dict(zip(pool.sizes, values.tolist(), strict=True)) for name, values in columns.items()}
    singular = np.linalg.svd(norms, compute_uv=False).tolist()  # of all examples: whether T is of low rank (eq. 33)
    fits = asdict(exponents(norms.T, pool.sizes))
    return {"examples": len(norms), "singular_values": singular, **by_cell, **fits}


def with_cross_influence(pool: Pool, measured: Measured, selected: Selected) -> Selected:
    """Return the choice with T beside it, as far as a record keeps it (eq. 34 and 35 are computed from that)."""
    assert measured.norms is not None
    found = cross_influence(pool, measured.norms, selected.places)
    return Selected(selected.places, selected.notes | {"cross_influence": found}, selected.flops)
