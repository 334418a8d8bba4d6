"""The numbers that pickers rank: norms of a file, for a domain, pulled together, or blended with local ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from cprbench.blueprint.picking import check_norms
from cprbench.blueprint.schema import Blueprint, Interval
from cprbench.errors import MethodError, did_you_mean

#: Half the width of a 95 % interval in standard deviations of a normal.
_HALF_WIDTH = 1.96


def norms_of(
    blueprint: Blueprint, *, domain: str | None = None, uncertainty: Literal["ignore", "shrink"] = "ignore"
) -> dict[str, float]:
    """Return submodule -> gradient norm of a file, in its order.

    `domain`: the domain's own norms where the file has them; else gradient_norm * sqrt(domain_tags[domain]), because
    a tag is a ratio of shares of SQUARED norm (NOTES: choices settled); such norms are right up to one common factor.
    None: `gradient_norm`, which is of the file's reference domain. "shrink" pulls norms towards their mean by the
    width of their intervals, see `_shrunken`. Raises MethodError for an unknown domain, naming the nearest one of the
    file, for one that only some submodules have, and for "shrink" on a file without intervals.
    """
    norms, intervals = _of_domain(blueprint, domain)
    if uncertainty == "ignore":
        return norms
    if uncertainty != "shrink":
        raise MethodError(f"unknown uncertainty {uncertainty!r}. {did_you_mean(uncertainty, ('ignore', 'shrink'))}")
    if lacking := [name for name in norms if name not in intervals]:
        raise MethodError(
            f"shrinking asks for an interval of every gradient_norm, and this file has none for {lacking[0]!r} in "
            f"domain {domain or blueprint.reference!r}. Pass uncertainty=ignore."
        )
    return _shrunken(norms, intervals)


def _of_domain(blueprint: Blueprint, domain: str | None) -> tuple[dict[str, float], dict[str, Interval]]:
    """Return the norms of a domain (None: the reference), and the intervals that the file has of exactly these."""
    layers = blueprint.layers
    known = {tag for layer in layers for tag in (*layer.domains, *layer.domain_tags)} | {str(blueprint.reference)}
    if domain is not None and domain not in known:
        raise MethodError(f"this blueprint has no domain {domain!r}. {did_you_mean(domain, known)}")
    own = domain or str(blueprint.reference)
    measured = {layer.id: layer.domains[own] for layer in layers if own in layer.domains}
    intervals = {n: m.gradient_norm_ci for n, m in measured.items() if m.gradient_norm_ci is not None}
    if own == blueprint.reference:
        return {layer.id: layer.gradient_norm for layer in layers}, intervals
    if len(measured) == len(layers):
        return {name: norms.gradient_norm for name, norms in measured.items()}, intervals
    # One scale for all: own norms of some submodules and tagged ones of others would not be comparable.
    if untagged := [layer.id for layer in layers if own not in layer.domain_tags]:
        raise MethodError(f"this blueprint has domain {own!r} for some submodules only; {untagged[0]!r} lacks it.")
    return {layer.id: layer.gradient_norm * math.sqrt(layer.domain_tags[own]) for layer in layers}, {}


def _shrunken(norms: Mapping[str, float], intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Return norms pulled towards their mean: weight = between / (between + own), empirical Bayes.

    `own`: the variance that a norm's 95 % interval tells. `between`: how far the true norms lie apart, estimated as
    the variance of the norms less the mean of the own variances, at least 0. A norm known exactly stays.
    """
    own = {name: ((i.high - i.low) / (2 * _HALF_WIDTH)) ** 2 for name, i in intervals.items()}
    mean = math.fsum(norms.values()) / len(norms)
    spread = math.fsum((norm - mean) ** 2 for norm in norms.values()) / max(1, len(norms) - 1)
    between = max(0.0, spread - math.fsum(own.values()) / len(own))
    weight = {name: 1.0 if own[name] == 0 else between / (between + own[name]) for name in norms}
    return {name: weight[name] * norm + (1 - weight[name]) * mean for name, norm in norms.items()}


def blend(
    blueprint_norms: Mapping[str, float], local_norms: Mapping[str, float], blend_weight: float
) -> dict[str, float]:
    """Return G' = a * G_blueprint + (1 - a) * G_local for a = `blend_weight`, in the order of `local_norms`.

    Algorithm 1, step 2 of the paper. Both are first scaled to L2 norm 1 over all submodules: they come from other
    data, other heads and other losses, so their raw sizes say nothing about one another, and the larger would win at
    any weight. Raises MethodError for a weight outside [0, 1], for norms of other submodules, and for norms all 0.
    """
    if not 0 <= blend_weight <= 1:
        raise MethodError(f"blend weight {blend_weight} is outside [0, 1]: 1 is the blueprint alone, 0 local norms.")
    check_norms(blueprint_norms, dict.fromkeys(local_norms, 1))
    check_norms(local_norms, dict.fromkeys(blueprint_norms, 1))
    published, local = _unit(blueprint_norms, "the blueprint's"), _unit(local_norms, "the local")
    return {name: blend_weight * published[name] + (1 - blend_weight) * local[name] for name in local}


def _unit(norms: Mapping[str, float], whose: str) -> dict[str, float]:
    """Return norms scaled to L2 norm 1; the largest is divided out first, so that no square overflows."""
    largest = max(norms.values(), default=0.0)
    if largest == 0:
        raise MethodError(f"{whose} norms are all 0, so there is nothing to blend.")
    scaled = {name: norm / largest for name, norm in norms.items()}
    length = math.hypot(*scaled.values())
    return {name: norm / length for name, norm in scaled.items()}
