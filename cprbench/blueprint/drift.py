"""Whether two patterns of gradient norms agree: two files with one another, a file with local norms (section 5)."""

from __future__ import annotations

import math
import re
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cprbench.blueprint.picking import fill
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import MethodError, SpecError

#: Rank correlations from which two files show the same pattern, and below which one has drifted.
SAME, DRIFTED = 0.8, 0.5
_NUMBERED = re.compile(r"^(?:attn|ffn)\.(\d+)$")


@dataclass(frozen=True)
class Comparison:
    """Two blueprints of one partition. A correlation is None where norms have no ranks (`why`)."""

    correlation: float | None  # Spearman, over all submodules
    kendall: float | None
    domains: dict[str, float | None]  # Spearman per domain that both files measured
    k: float
    overlap: float | None  # see top_overlap
    verdict: Literal["same pattern", "partly drifted", "drifted", "not comparable"]
    why: str


@dataclass(frozen=True)
class Drift:
    """Whether local norms bear a blueprint out: `use` it, use its `layers` only, or `local` norms alone."""

    correlation: float | None
    verdict: Literal["use", "layers", "local"]
    why: str


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the rank correlation in [-1, 1], ties at their mean rank; None where either has no ranks.

    Raises ValueError for unequal lengths and numbers that are not finite.
    """
    _check_pairs(a, b)
    x, y = _ranks(a), _ranks(b)
    middle = (len(x) + 1) / 2
    spread = math.sqrt(sum((r - middle) ** 2 for r in x) * sum((r - middle) ** 2 for r in y))
    if spread == 0:
        return None
    together = sum((r - middle) * (s - middle) for r, s in zip(x, y, strict=True))
    return max(-1.0, min(1.0, together / spread))


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Kendall's tau-b in [-1, 1]; None where either has no ranks. Raises ValueError as `spearman` does."""
    _check_pairs(a, b)
    pairs = sorted(zip(a, b, strict=True))
    seen: list[float] = []
    discordant = 0
    for _, value in pairs:  # of equal a the smaller b come first, so those before with a larger b have a smaller a
        discordant += len(seen) - bisect_right(seen, value)
        insort(seen, value)
    total = math.comb(len(pairs), 2)
    tied_a, tied_b, tied = (sum(math.comb(n, 2) for n in Counter(v).values()) for v in (a, b, pairs))
    spread = math.sqrt((total - tied_a) * (total - tied_b))
    return None if spread == 0 else (total - tied_a - tied_b + tied - 2 * discordant) / spread


def top_overlap(a: Mapping[str, float], b: Mapping[str, float], sizes: Mapping[str, int], k: float) -> float:
    """Return how much of what either pattern picks both pick, in parameters: 1 the same k-set, 0 none in common.

    Both fill k by the one rule (picking.fill) in the order of their norms, input tables left out; `sizes`: submodule
    -> parameters, in partition order. Raises MethodError for a k that fits nothing.
    """
    left, right = (
        set(fill(sorted(sizes, key=lambda name: -norms[name]), sizes, sum(sizes.values()), k, embed=False).submodules)
        for norms in (a, b)
    )
    return sum(sizes[name] for name in left & right) / sum(sizes[name] for name in left | right)


def compare(left: Blueprint, right: Blueprint, k: float = 0.15) -> Comparison:
    """Return whether two blueprints, say of two checkpoints or labs, show the same pattern.

    Raises SpecError for files of different submodules or sizes.
    """
    ours, theirs = ({layer.id: layer for layer in blueprint.layers} for blueprint in (left, right))
    names = _same(ours, theirs, repr(left.model_id), repr(right.model_id))
    sizes = {}
    for name in names:
        a, b = ours[name].parameters, theirs[name].parameters
        if a is not None and b is not None and a != b:
            raise SpecError(f"{name} has {a} parameters in one file and {b} in the other. Compare files of one model.")
        sizes[name] = a if a is not None else b
    norms = tuple([layers[name].gradient_norm for name in names] for layers in (ours, theirs))
    domains = {}
    shared = [set.intersection(*(set(layer.domains) for layer in layers.values())) for layers in (ours, theirs)]
    for tag in sorted(shared[0] & shared[1]):
        a_norms, b_norms = ([layers[n].domains[tag].gradient_norm for n in names] for layers in (ours, theirs))
        domains[tag] = spearman(a_norms, b_norms)
    correlation = spearman(*norms)
    overlap, no_overlap = None, "the files do not state the parameters of every submodule"
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(known) == len(names):
        try:
            a_by, b_by = (dict(zip(names, values, strict=True)) for values in norms)
            overlap = top_overlap(a_by, b_by, known, k)
        except MethodError as error:
            no_overlap = str(error)
    verdict, why = _pattern(correlation)
    if overlap is None:
        why = f"{why}; no overlap of k-sets: {no_overlap}"
    return Comparison(correlation, kendall(*norms), domains, k, overlap, verdict, why)


def check(
    blueprint_norms: Mapping[str, float],
    local_norms: Mapping[str, float],
    *,
    fallback: float = 0.5,
    local_only: float = 0.2,
) -> Drift:
    """Return how far to trust a blueprint's norms beside those of a local batch, by their rank correlation.

    From `fallback` up the blueprint is used; below it whole layers are picked; below `local_only` local norms alone.
    Raises SpecError for norms of different submodules.
    """
    names = _same(blueprint_norms, local_norms, "the blueprint", "the local batch")
    correlation = spearman([blueprint_norms[name] for name in names], [local_norms[name] for name in names])
    if correlation is None:
        flat = "the blueprint" if len({blueprint_norms[name] for name in names}) == 1 else "the local batch"
        return Drift(None, "local", f"all norms of {flat} are equal: they have no ranks to compare")
    said = f"the ranks correlate at {correlation:.2f}"
    if correlation >= fallback:
        return Drift(correlation, "use", f"{said}, at least {fallback:g}")
    if correlation >= local_only:
        return Drift(
            correlation, "layers", f"{said}, below {fallback:g}: only whole layers are taken from the blueprint"
        )
    return Drift(correlation, "local", f"{said}, below {local_only:g}: the blueprint is stale for this data")


def _pattern(
    correlation: float | None,
) -> tuple[Literal["same pattern", "partly drifted", "drifted", "not comparable"], str]:
    if correlation is None:
        return "not comparable", "all norms of one file are equal: they have no ranks to compare"
    said = f"the ranks correlate at {correlation:.2f}"
    if correlation >= SAME:
        return "same pattern", f"{said}, at least {SAME:g}: one file serves for the other"
    if correlation < DRIFTED:
        return "drifted", f"{said}, below {DRIFTED:g}: measure anew"
    return "partly drifted", f"{said}, between {DRIFTED:g} and {SAME:g}: blend with local norms"


def _same(a: Mapping[str, object], b: Mapping[str, object], left: str, right: str) -> list[str]:
    """Return the names that both have, in the order of `a`; raises SpecError where either has one more."""
    for more, less, owner, other in ((a, b, left, right), (b, a, right, left)):
        only = [name for name in more if name not in less]
        if only:
            some = ", ".join(only[:5]) + (f" and {len(only) - 5} more" if len(only) > 5 else "")
            raise SpecError(f"{owner} has submodules that {other} has not: {some}. Compare norms of one model.")
    return list(a)


def _check_pairs(a: Sequence[float], b: Sequence[float]) -> None:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} numbers cannot be paired")
    if not all(map(math.isfinite, (*a, *b))):
        raise ValueError("a number that is not finite has no rank")


def _ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1, equal values at the mean of their places."""
    places: dict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(sorted(values), start=1):
        places[value].append(place)
    mean = {value: sum(found) / len(found) for value, found in places.items()}
    return [mean[value] for value in values]
