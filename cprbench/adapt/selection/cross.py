"""cross: examples with most influence on the submodules that the method trains (paper, 4.4 and B.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.selection import Measured, Pool, Selected
from cprbench.adapt.selection.top import Banded, with_cross_influence
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target


@dataclass(frozen=True)
class Cross(Banded):
    """The largest norm of T over the rows that train: what an example moves of what may move."""

    name: ClassVar[str] = "cross"
    warms_head: ClassVar[bool] = True

    def check(self, method: Method, target: Target) -> None:
        """Refuse a method that trains no submodule of the model."""
        if method.name == "head":
            raise MethodError("selection 'cross' ranks examples by the submodules that train, and 'head' trains none.")

    def select(self, pool: Pool) -> Selected:
        """Return the places of largest influence on what trains."""
        measured = pool.measure(range(len(pool)))
        assert measured.norms is not None
        rows = [i for i, cell in enumerate(pool.sizes) if cell in set(pool.trained)]
        if not rows:
            raise MethodError("selection 'cross' ranks examples by the submodules that train, and none does.")
        scores = Measured(measured.losses, measured.norms[:, rows]).influence
        return with_cross_influence(pool, measured, self.best(pool, scores.tolist()))
