"""The one rule by which every picker fills a k-set (DESIGN section 1, N and k)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cprbench.errors import MethodError

#: The submodule of input tables, taken only on request: it is half of a small encoder.
EMBED = "embed"


@dataclass(frozen=True)
class Picked:
    """A k-set: its submodules in partition order, and the share of N that they really hold."""

    submodules: tuple[str, ...]
    k_reached: float


def fill(ranked: Sequence[str], sizes: Mapping[str, int], total: int, k: float, *, embed: bool) -> Picked:
    """Return the k-set: walk `ranked` (best first), skip what would exceed k * total parameters.

    `sizes`: submodule -> parameters, in partition order; `total`: N. Raises MethodError for k outside (0, 1]
    and for a k below the smallest submodule.
    """
    check(sizes, total, k, embed=embed)
    budget, taken = _budget(k, total), set()
    for name in ranked:
        if (name != EMBED or embed) and sizes[name] <= budget:
            taken.add(name)
            budget -= sizes[name]
    submodules = tuple(name for name in sizes if name in taken)
    return Picked(submodules, sum(sizes[name] for name in submodules) / total)


def check(sizes: Mapping[str, int], total: int, k: float, *, embed: bool) -> None:
    """Raise MethodError when no k-set exists: k outside (0, 1], or too small for any submodule."""
    if not 0 < k <= 1:
        raise MethodError(f"partial.k = {k} is outside (0, 1]. k is the share of all parameters to train.")
    allowed = [name for name in sizes if name != EMBED or embed]
    if not allowed:
        raise MethodError("this model has no submodule besides its input tables. Pass partial.embed=true to take them.")
    smallest = min(allowed, key=lambda name: sizes[name])
    if sizes[smallest] > _budget(k, total):
        share = math.ceil(1e4 * sizes[smallest] / total) / 1e4  # rounded up, so that asking for it works
        raise MethodError(
            f"partial.k = {k} is below the smallest submodule: {smallest!r} holds {share:.4f} of the "
            f"parameters. Ask for k of at least {share:.4f}."
        )


def _budget(k: float, total: int) -> int:
    """Return the whole parameters in k * total; 0.29 * 100 is 29, whatever binary fractions say."""
    return math.floor(k * total * (1 + 1e-12))
