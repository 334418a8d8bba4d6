"""Which examples drive which submodules: the formulas of section 4.4 and appendix B.5, on L2 norms by submodule.

T (submodules, examples): T[i, z] is the L2 norm of the gradient of submodule i at example z. The paper's T (eq. 32)
is of single scalars and sums absolute values; a sum of L2 norms is not that sum (NOTES), so eq. 34 is given on T and
on its square, whose entries do add up over submodules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cprbench.blueprint import concentration, picking
from cprbench.blueprint.cross_influence import Exponents, exponents, submodule_norms
from cprbench.errors import MethodError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZERO = "every gradient norm is 0"


@dataclass(frozen=True)
class Spectrum:
    """The singular values of T, descending (eq. 33). `effective_rank`: exp of the entropy of their shares (Roy and
    Vetterli 2007). `rank_90`, `rank_99`: the least R whose squares hold that share. None, with `why`, where T is 0."""

    singular_values: tuple[float, ...]
    effective_rank: float | None
    rank_90: int | None
    rank_99: int | None
    why: str | None = None


@dataclass(frozen=True)
class Pair:
    """One large entry of T: how much of one submodule's gradient one example makes."""

    submodule: str
    id: str
    value: float
    share: float  # of the sum of T


@dataclass(frozen=True)
class Retention:
    """The share of the full gain that a k-set and the top q predict to keep; None, with `why`, where there is none."""

    k: float
    q: float
    k_reached: float | None
    q_reached: float
    submodules: tuple[str, ...]
    eq34: float | None
    eq34_squared: float | None
    eq35: float | None
    why: str | None


@dataclass(frozen=True, eq=False)
class CrossInfluence:
    """All of it. `block_of` (examples,), `block_means` (submodules, blocks); `shares`: of the sum of T, likewise."""

    cells: tuple[str, ...]
    block_of: NDArray[Any]
    block_means: NDArray[Any]
    shares: NDArray[Any] | None  # None where T is 0
    spectrum: Spectrum
    exponents: Exponents
    pairs: tuple[Pair, ...]
    grid: tuple[Retention, ...]


def analyse(
    table: NDArray[Any],
    ids: Sequence[str],
    sizes: Mapping[str, int],
    order: Sequence[int],
    *,
    block_count: int,
    ks: Sequence[float],
    kept: Mapping[float, Sequence[int]],
    pairs: int = 10,
) -> CrossInfluence:
    """Return what this page knows of `table` (T), with `sizes`: submodule -> parameters, in the order of its rows.

    `order`: the places of the examples, largest J first; `kept`: q -> places of the top q. Raises as `blocks` and
    `grid` do.
    """
    block_of, means = blocks(table, order, block_count)
    total = _sum(table)
    shares = _by_block(table, block_of, block_count) / total if total else None
    found = top_pairs(table, list(sizes), ids, pairs)
    return CrossInfluence(
        tuple(sizes),
        block_of,
        means,
        shares,
        spectrum(table),
        exponents(table, sizes),
        tuple(found),
        tuple(grid(table, sizes, ks, kept)),
    )


def blocks(table: NDArray[Any], order: Sequence[int], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the block of each example, and the mean of T over every block (submodules, blocks).

    The paper speaks of example blocks and leaves open which (4.4). Ours are `count` groups in `order` (largest J
    first) whose sizes differ by one at most, the larger ones first. Raises SpecError for fewer examples than blocks.
    """
    import numpy as np

    examples = table.shape[1]
    if not 0 < count <= examples:
        raise SpecError(f"{count} blocks of {examples} examples: ask for 1 to {examples} blocks.")
    block_of = np.empty(examples, dtype=np.int64)
    for block, places in enumerate(np.array_split(np.asarray(order), count)):
        block_of[places] = block
    return block_of, _by_block(table, block_of, count) / np.bincount(block_of, minlength=count)


def spectrum(table: NDArray[Any]) -> Spectrum:
    """Return the singular values of T and how few of them hold it (B.5, eq. 33)."""
    import numpy as np

    largest = float(table.max(initial=0.0))
    if largest == 0:
        return Spectrum((0.0,) * min(table.shape), None, None, None, ZERO)
    values = np.linalg.svd(table / largest, compute_uv=False)
    values[values < values[0] * max(table.shape) * np.finfo(np.float64).eps] = 0.0  # rounding, as matrix_rank has it
    shares, held = values / values.sum(), np.cumsum(values**2) / np.sum(values**2)
    entropy = -math.fsum(float(p) * math.log(p) for p in shares if p > 0)
    ranks = [int(np.searchsorted(held, share - 1e-12)) + 1 for share in (0.9, 0.99)]
    return Spectrum(tuple(float(v) * largest for v in values), math.exp(entropy), ranks[0], ranks[1])


def retained(table: NDArray[Any], rows: Sequence[int], columns: Sequence[int], power: int) -> float | None:
    """Return the sum of T^power over the pair of sets / over all (eq. 34); None where T is 0."""
    import numpy as np

    largest = float(table.max(initial=0.0))
    if largest == 0:
        return None
    powers = np.ascontiguousarray(table / largest) ** power  # contiguous: all of it sums to exactly the whole
    return float(powers[np.ix_(sorted(rows), sorted(columns))].sum() / powers.sum())


def grid(
    table: NDArray[Any], sizes: Mapping[str, int], ks: Sequence[float], kept: Mapping[float, Sequence[int]]
) -> list[Retention]:
    """Return the predicted retention of every k and q: eq. 34 on T and on T^2, eq. 35 at the shares reached.

    S_k is what `--set partial.k` would take by norm (root of the mean T^2), without the input tables; k = 1 is
    everything. `kept`: q -> places of D_q. A k that nothing fits has a reason instead of numbers. Raises MethodError
    for a k outside (0, 1].
    """
    powers, place = exponents(table, sizes), {name: i for i, name in enumerate(sizes)}
    found = []
    for k in ks:
        picked, why = _picked(table, sizes, k)
        rows = [place[name] for name in picked.submodules] if picked else []
        for q, columns in kept.items():
            reached = len(columns) / table.shape[1]
            one, two = (retained(table, rows, columns, power) if picked else None for power in (1, 2))
            product = None
            if picked and powers.why is None:
                assert powers.gamma is not None and powers.delta is not None
                product = concentration.predicted_retention(picked.k_reached, reached, powers.gamma, powers.delta)
            missing = why or (ZERO if one is None else powers.why)
            share, cells = (picked.k_reached, picked.submodules) if picked else (None, ())
            found.append(Retention(k, q, share, reached, cells, one, two, product, missing))
    return found


def top_pairs(table: NDArray[Any], cells: Sequence[str], ids: Sequence[str], count: int) -> list[Pair]:
    """Return the `count` largest entries of T above 0; equal ones by id, then in partition order."""
    import numpy as np

    total, count = _sum(table), min(count, table.size)
    if total == 0 or count <= 0:
        return []
    least = max(float(np.partition(table, -count, axis=None)[-count]), float(np.nextafter(0, 1)))
    rows, columns = np.nonzero(table >= least)
    rank_of_id = np.empty(len(ids), dtype=np.int64)
    rank_of_id[sorted(range(len(ids)), key=lambda i: ids[i])] = np.arange(len(ids))
    best = np.lexsort((rows, rank_of_id[columns], -table[rows, columns]))[:count]
    found = [(int(rows[i]), int(columns[i])) for i in best]
    return [Pair(cells[r], ids[c], float(table[r, c]), float(table[r, c]) / total) for r, c in found]


def _sum(table: NDArray[Any]) -> float:
    return float(table.sum())


def _by_block(table: NDArray[Any], block_of: NDArray[Any], count: int) -> NDArray[Any]:
    import numpy as np

    return np.stack([table[:, block_of == block].sum(axis=1) for block in range(count)], axis=1)


def _picked(table: NDArray[Any], sizes: Mapping[str, int], k: float) -> tuple[picking.Picked | None, str | None]:
    if k == 1:
        return picking.Picked(tuple(sizes), 1.0), None
    if not 0 < k < 1:
        raise MethodError(f"k = {k} is outside (0, 1]. k is the share of all parameters to train.")
    try:
        return picking.pick(submodule_norms(table, sizes), sizes, sum(sizes.values()), k), None
    except MethodError as error:
        return None, str(error)
