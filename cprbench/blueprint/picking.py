"""The one rule by which every picker fills a k-set (DESIGN section 1, N and k), and the orders that it walks.

An order is a score per submodule, or `per-cost`, which asks what a training step costs. The backward pass of a step
runs from the loss down to the lowest submodule that trains and no further, so a deep pick pays for every layer above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cprbench.blueprint.schema import StepCost
from cprbench.errors import MethodError, did_you_mean

#: The submodule of input tables, taken only on request: it is half of a small encoder.
EMBED = "embed"
#: Ways to order submodules, best first.
PICKERS = ("norm", "density", "per-parameter", "per-cost")
#: What is taken as a whole: a submodule, or attn.i and ffn.i together.
GRANULARITIES = ("submodule", "layer")


@dataclass(frozen=True)
class Picked:
    """A k-set: its submodules in partition order, and the share of N that they really hold."""

    submodules: tuple[str, ...]
    k_reached: float


def pick(
    norms: Mapping[str, float],
    sizes: Mapping[str, int],
    total: int,
    k: float,
    *,
    by: str = "norm",
    embed: bool = False,
    cost: StepCost | None = None,
    granularity: str = "submodule",
) -> Picked:
    """Return the k-set of a picker: submodules of largest signal, at most k * total parameters (paper, Algorithm 1).

    `norms`: submodule -> gradient norm; `sizes`: submodule -> parameters, in partition order; `total`: N;
    `cost`: measured step cost, asked for by per-cost alone. Granularity "layer" takes attn.i and ffn.i together (norm:
    root of the summed squares); embed and head stay alone. Raises MethodError for an unknown picker or granularity,
    norms of other submodules than `sizes`, and what `check` refuses.
    """
    if granularity not in GRANULARITIES:
        raise MethodError(f"unknown granularity {granularity!r}. {did_you_mean(granularity, GRANULARITIES)}")
    check_norms(norms, sizes)
    groups, group_norms, group_sizes = grouped(norms, sizes, granularity)
    if not any(norm > 0 for name, norm in group_norms.items() if name != EMBED or embed):
        raise MethodError("every norm is 0 among the submodules that may be taken: there is nothing to choose by.")
    if by == "per-cost":
        ranked = rank_per_cost(group_norms, group_sizes, total, k, cost, embed=embed)
    else:
        ranked = rank(group_norms, group_sizes, by)
    filled = fill(ranked, group_sizes, total, k, embed=embed)
    taken = {name for group in filled.submodules for name in groups[group]}
    return Picked(tuple(name for name in sizes if name in taken), filled.k_reached)


def grouped(
    norms: Mapping[str, float], sizes: Mapping[str, int], granularity: str
) -> tuple[dict[str, list[str]], dict[str, float], dict[str, int]]:
    """Return what is taken as a whole: group -> its submodules, its norm (root of the summed squares), its size."""
    groups: dict[str, list[str]] = {}
    for name in sizes:
        layer = _layer(name) if granularity == "layer" else None
        groups.setdefault(name if layer is None else f"layer.{layer}", []).append(name)
    group_norms = {group: math.hypot(*(norms[name] for name in inside)) for group, inside in groups.items()}
    return groups, group_norms, {group: sum(sizes[name] for name in inside) for group, inside in groups.items()}


def rank(norms: Mapping[str, float], sizes: Mapping[str, int], by: str = "norm") -> list[str]:
    """Return the submodules, best first; equal scores stay in partition order.

    norm: the gradient norm. density: norm / sqrt(parameters), which orders like squared norm per parameter.
    per-parameter: norm / parameters. Raises MethodError for any other `by`; `per-cost` has no score of one submodule.
    """
    check_norms(norms, sizes)
    match by:
        case "norm":
            score = dict(norms)
        case "density":
            score = {name: norms[name] / math.sqrt(size) for name, size in sizes.items()}
        case "per-parameter":
            score = {name: norms[name] / size for name, size in sizes.items()}
        case "per-cost":
            raise MethodError("per-cost ranks whole sets, so it needs k and step_cost: rank_per_cost() or pick().")
        case _:
            raise MethodError(f"unknown picker {by!r}. {did_you_mean(by, PICKERS)}")
    return sorted(sizes, key=lambda name: -score[name])


def rank_per_cost(
    norms: Mapping[str, float],
    sizes: Mapping[str, int],
    total: int,
    k: float,
    cost: StepCost | None,
    *,
    embed: bool,
) -> list[str]:
    """Return the submodules in the order whose k-set has the most influence (squared norm) per second of a step.

    Walking by influence per second of each submodule alone is wrong: the backward pass down to the lowest one is
    paid once for all of them, so a dense submodule at the bottom makes every layer above it cost and seems cheap.
    So every depth is tried as a cut: submodules at or above it come first, by influence per parameter, since among
    those only updates differ in cost; those below follow, nearest first, for what room is left. Each order is
    judged by the set that `fill` makes of it, leftovers included: pickers are compared at equal k. The order by
    density is the lowest cut, so per-cost never does worse than density. A tie goes to the shallower cut. Raises
    MethodError without a measured step cost.
    """
    check_norms(norms, sizes)
    check(sizes, total, k, embed=embed)
    if cost is None or cost.forward_seconds <= 0:
        raise MethodError("per-cost asks for step_cost with forward_seconds above 0; this blueprint has none.")
    influence, reached = influences(norms), layers_reached(sizes)
    dense = sorted(sizes, key=lambda name: -influence[name] / sizes[name])
    best, best_rate = dense, -1.0
    for cut in sorted({reached[name] for name in sizes if name != EMBED or embed}):
        ranked = sorted(dense, key=lambda name: max(reached[name], cut))  # stable: by density down to the cut
        taken = fill(ranked, sizes, total, k, embed=embed).submodules
        rate = math.fsum(influence[name] for name in taken) / step_seconds(taken, sizes, cost)
        if rate > best_rate:
            best, best_rate = ranked, rate
    return best


def step_seconds(submodules: Iterable[str], sizes: Mapping[str, int], cost: StepCost) -> float:
    """Return the modelled seconds of one step that trains `submodules`: forward, backward to the lowest, updates."""
    taken, reached = list(submodules), layers_reached(sizes)
    depth = max((reached[name] for name in taken), default=0)
    parameters = sum(sizes[name] for name in taken)
    return cost.forward_seconds + cost.backward_seconds_per_layer * depth + cost.seconds_per_parameter * parameters


def layers_reached(submodules: Iterable[str]) -> dict[str, int]:
    """Return through how many layers the backward pass goes to train each of all submodules of a model.

    0 for what lies above the layers (head), 1 for the last layer, all of them for the first one and for embed.
    """
    index = {name: _layer(name) for name in submodules}
    layers = 1 + max((i for i in index.values() if i is not None), default=-1)
    return {name: (layers if name == EMBED else 0) if i is None else layers - i for name, i in index.items()}


def influences(norms: Mapping[str, float]) -> dict[str, float]:
    """Return squared norms relative to the largest, so that no square leaves the range of a float."""
    largest = max(norms.values(), default=0.0) or 1.0
    return {name: (norm / largest) ** 2 for name, norm in norms.items()}


def check_norms(norms: Mapping[str, float], sizes: Mapping[str, int]) -> None:
    """Raise MethodError unless `norms` has a finite, not negative number for every submodule of `sizes` and no more."""
    for found, other, words in ((sizes, norms, "have no"), (norms, sizes, "have an unknown")):
        if odd := [name for name in found if name not in other]:
            raise MethodError(f"the norms {words} submodule {', '.join(odd[:5])}: they are of another model.")
    if bad := [name for name, norm in norms.items() if not (math.isfinite(norm) and norm >= 0)]:
        raise MethodError(f"the norm of {bad[0]!r} is {norms[bad[0]]}; norms are finite and at least 0.")


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
    if not taken:
        raise MethodError(f"k = {k} has no room for any of {', '.join(list(ranked)[:5])}. Ask for a larger k.")
    submodules = tuple(name for name in sizes if name in taken)
    return Picked(submodules, sum(sizes[name] for name in submodules) / total)


def check(sizes: Mapping[str, int], total: int, k: float, *, embed: bool) -> None:
    """Raise MethodError when no k-set exists: k outside (0, 1], or too small for any submodule."""
    if not 0 < k <= 1:
        raise MethodError(f"k = {k} is outside (0, 1]. k is the share of all parameters to train.")
    allowed = [name for name in sizes if name != EMBED or embed]
    if not allowed:
        raise MethodError("this model has no submodule besides its input tables. Set embed=true to take them.")
    smallest = min(allowed, key=lambda name: sizes[name])
    if sizes[smallest] > _budget(k, total):
        share = math.ceil(1e4 * sizes[smallest] / total) / 1e4  # rounded up, so that asking for it works
        raise MethodError(
            f"k = {k} is below the smallest submodule: {smallest!r} holds {share:.4f} of the "
            f"parameters. Ask for k of at least {share:.4f}."
        )


def _budget(k: float, total: int) -> int:
    """Return the whole parameters in k * total; 0.29 * 100 is 29, whatever binary fractions say."""
    return math.floor(k * total * (1 + 1e-12))


def _layer(name: str) -> int | None:
    """Return i of attn.i, ffn.i and layer.i; None for what is in no layer."""
    kind, _, index = name.rpartition(".")
    return int(index) if kind and index.isdecimal() else None
