"""What selections share that keep a share q of the examples: counting, ranks, and what the record says of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.selection import Measured, Pool, Selected
from cprbench.adapt.selection.ranking import how_many, how_many_in, keep
from cprbench.blueprint.concentration import fit_exponent, mass_curve, pick_curve
from cprbench.blueprint.picking import rank

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
    """Return T (examples x submodules) summed over all and over the kept examples, and eq. 35's exponents.

    gamma: of the share of sum T that whole submodules hold, in order of their norm per parameter;
    delta: of the share that the examples of largest sum hold. Each with R^2.
    """
    cells, picked = list(pool.sizes), norms[list(places)]
    sums, squares = norms.sum(0), (norms**2).sum(0)
    by_cell = dict(zip(cells, sums.tolist(), strict=True))
    norms_of = {c: float(s) ** 0.5 for c, s in zip(cells, squares, strict=True)}
    order = rank(norms_of, pool.sizes, "density")  # as in blueprints: what holds most per parameter first
    curve = pick_curve(order, {cell: value**0.5 for cell, value in by_cell.items()}, pool.sizes)
    gamma, delta = fit_exponent(curve), fit_exponent(mass_curve(norms.sum(1)))
    return {
        "examples": len(norms),
        "sums": by_cell,
        "squares": dict(zip(cells, squares.tolist(), strict=True)),
        "selected_sums": dict(zip(cells, picked.sum(0).tolist(), strict=True)),
        "selected_squares": dict(zip(cells, (picked**2).sum(0).tolist(), strict=True)),
        "gamma": gamma[0],
        "gamma_r_squared": gamma[1],
        "delta": delta[0],
        "delta_r_squared": delta[1],
    }


def with_cross_influence(pool: Pool, measured: Measured, selected: Selected) -> Selected:
    """Return the choice with T beside it, as far as a record keeps it (eq. 34 and 35 are computed from that)."""
    assert measured.norms is not None
    found = cross_influence(pool, measured.norms, selected.places)
    return Selected(selected.places, selected.notes | {"cross_influence": found}, selected.flops)
