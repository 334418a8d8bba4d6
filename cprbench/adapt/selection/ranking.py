"""Which examples to keep, given a score for each: the top q, or a band of ranks. No torch and no numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context

from cprbench.errors import SpecError
from cprbench.schema import sha256_of

_BAND = re.compile(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)")


def how_many(q: float, examples: int) -> int:
    """Return the whole examples in q * examples. Raises SpecError for q outside (0, 1] and for a q that keeps none."""
    if not 0 < q <= 1:
        raise SpecError(f"q = {q} is outside (0, 1]. q is the share of the training examples to keep.")
    count = math.floor(q * examples * (1 + 1e-12))  # 0.29 of 100 is 29, whatever binary fractions say
    if count == 0:
        least = float(Context(prec=4, rounding=ROUND_CEILING).divide(1, max(1, examples)))  # 0.3333 of 3 would be none
        raise SpecError(f"q = {q} of {examples} examples keeps none. The smallest q here is {least:.4g}.")
    return count


def parse_band(text: str) -> tuple[float, float]:
    """Return "20..80" as (0.2, 0.8): percentiles of the score, from the least to the largest.

    Raises SpecError for anything else.
    """
    match = _BAND.fullmatch(text)
    low, high = (float(match[1]) / 100, float(match[2]) / 100) if match else (1.0, 0.0)
    if not low < high <= 1:
        raise SpecError(f"band = {text!r}: write LOW..HIGH in percentiles of the score, for example 20..80.")
    return low, high


def how_many_in(band: str, examples: int) -> int:
    """Return how many of `examples` lie in `band`. Raises SpecError where none does, and for what is no band."""
    low, high = parse_band(band)
    count = round(high * examples) - round(low * examples)
    if count == 0:
        raise SpecError(f"band = {band!r} of {examples} examples keeps none. Widen it.")
    return count


def best_first(scores: Sequence[float], ids: Sequence[str]) -> list[int]:
    """Return the places of `scores`, the largest first; equal scores in an order of the ids' own hash.

    Neither the order of the file nor the names of ids decide a tie. Raises SpecError for a score that is not finite.
    """
    if odd := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
        raise SpecError(f"the score of example {ids[odd[0]]!r} is {scores[odd[0]]}: scores are finite.")
    return sorted(range(len(scores)), key=lambda i: (-scores[i], sha256_of(["tie", ids[i]])))


def keep(
    scores: Sequence[float],
    ids: Sequence[str],
    labels: Sequence[str],
    *,
    q: float,
    band: str = "",
    class_guard: bool = False,
) -> list[int]:
    """Return the places that are kept, in order: the q best, or those whose rank lies in `band` (q is then unused).

    `class_guard`: every class keeps its own share by its own ranks, and at least one example where as many are kept
    as there are classes. Raises SpecError where nothing would be kept.
    """
    wanted = how_many_in(band, len(ids)) if band else how_many(q, len(ids))
    low, high = parse_band(band) if band else (1 - q, 1.0)
    groups: dict[str, list[int]] = {}
    for place in best_first(scores, ids):
        groups.setdefault(labels[place] if class_guard else "", []).append(place)
    found: list[int] = []
    for group, quota in zip(groups.values(), shares([len(group) for group in groups.values()], wanted), strict=True):
        upper = round(high * len(group)) if low > 0 else quota  # a band from 0 holds the least, whatever the quota
        above = len(group) - max(upper, quota)
        found += group[above : above + quota]
    return sorted(found)


def shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """Return `wanted` places over groups of these sizes by largest remainder, at least one each where that fits."""
    total = sum(sizes)
    least = 1 if wanted >= len(sizes) else 0
    exact = [wanted * size / total for size in sizes]
    found = [min(size, max(least, math.floor(share))) for size, share in zip(sizes, exact, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (found[i] - exact[i], i))
    step, left = (1 if sum(found) < wanted else -1), abs(sum(found) - wanted)
    while left:
        for i in order if step > 0 else reversed(order):
            if left and found[i] + step in range(least, sizes[i] + 1):
                found[i] += step
                left -= 1
    return found
