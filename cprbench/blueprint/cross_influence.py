"""The exponents of eq. 35, from T: what a run keeps of its own choice and what a file of scores tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cprbench.blueprint import concentration, picking

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Exponents:
    """gamma and delta of eq. 35, each with the R^2 of its fit; None where nothing can be fitted."""

    gamma: float | None
    gamma_r_squared: float | None
    delta: float | None
    delta_r_squared: float | None

    @property
    def why(self) -> str | None:
        """Why eq. 35 predicts nothing; None where both fits describe their curves."""
        for name, value, fit in (
            ("gamma", self.gamma, self.gamma_r_squared),
            ("delta", self.delta, self.delta_r_squared),
        ):
            if value is None or fit is None:
                return f"{name} cannot be fitted"
            if fit < concentration.POOR_FIT:
                return f"{name} fits poorly (R^2 {fit:.2f})"
        return None


def exponents(table: NDArray[Any], sizes: Mapping[str, int]) -> Exponents:
    """Return gamma and delta of eq. 35, both fitted to shares of the sum of T.

    gamma: to the share that whole submodules hold against their share of parameters, densest first, as a blueprint's
    gamma_fit is; a submodule's norm is the root of its mean T^2. delta: to the share that examples hold, by the sum
    of their column.
    """
    import numpy as np

    mass = dict(zip(sizes, np.sqrt(table.sum(axis=1)).tolist(), strict=True))  # pick_curve squares it
    ranked = picking.rank(submodule_norms(table, sizes), sizes, "density")
    gamma = concentration.fit_exponent(concentration.pick_curve(ranked, mass, sizes))
    delta = concentration.fit_exponent(concentration.mass_curve(table.sum(axis=0)))
    return Exponents(*gamma, *delta)


def submodule_norms(table: NDArray[Any], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return submodule -> root of its mean T^2 over examples; `table`: (submodules, examples)."""
    import numpy as np

    largest = float(table.max(initial=0.0)) or 1.0  # the squares of 1e-200 would all be 0
    return dict(zip(sizes, (largest * np.sqrt(np.square(table / largest).mean(axis=1))).tolist(), strict=True))
