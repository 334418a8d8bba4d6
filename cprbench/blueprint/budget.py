"""Picking within a budget of memory and time, where what is wanted is not a share k but what a machine allows."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from cprbench.blueprint.picking import EMBED, Picked, check_norms, influences, layers_reached, step_seconds
from cprbench.blueprint.schema import StepCost
from cprbench.errors import MethodError, SpecError, did_you_mean

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?|\.\d{1,9})"
_UNDERSTOOD = (
    f'A budget is "memory=8GiB,time=0.5" or one of the two; units {", ".join(_UNITS)}; time is a share of the '
    "seconds of a full-tuning step, above 0 and at most 1."
)
#: A time limit is met to within this share: asking for the share that an error names must work.
_TIME_SLACK = 1e-9
#: Sets still in question up to which the knapsack is exact: always for 12 submodules. Beyond, it gives up `_COARSE` of
#: the influence, growing with the square of their number. Only sizes that all differ, with influence almost in
#: proportion to them, lead there; models have a handful of sizes.
_MANY, _COARSE = 2_048, 1e-6


@dataclass(frozen=True)
class Budget:
    """Limits of a step: bytes of training memory, and time as a share of a step of full tuning. None: no limit."""

    memory_bytes: int | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        """Refuse a budget without limits, or with one that nothing can meet."""
        if self.memory_bytes is None and self.time is None:
            raise SpecError(f"this budget limits nothing. {_UNDERSTOOD}")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise SpecError(f"a memory budget of {self.memory_bytes} bytes holds nothing. {_UNDERSTOOD}")
        if self.time is not None and not 0 < self.time <= 1:
            raise SpecError(f"a time budget of {self.time} is outside (0, 1]. {_UNDERSTOOD}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return a budget written as "memory=8GiB,time=0.5"; raises SpecError that says what is understood."""
        given: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (word.strip() for word in part.partition("="))
            if key not in ("memory", "time") or not equals:
                raise SpecError(f"budget: {part!r:.80}. {did_you_mean(key, ('memory', 'time'))} {_UNDERSTOOD}")
            if key in given:
                raise SpecError(f"budget: {key} is given twice. {_UNDERSTOOD}")
            given[key] = value
        memory = time = None
        if "memory" in given:
            memory = size_in_bytes(given["memory"])
            if memory is None:
                raise SpecError(f"budget: memory={given['memory']:.40} has no size and unit. {_UNDERSTOOD}")
        if "time" in given:
            if not re.fullmatch(_NUMBER, given["time"], re.ASCII):
                raise SpecError(f"budget: time={given['time']:.40} is not a share. {_UNDERSTOOD}")
            time = float(given["time"])
        return cls(memory, time)


def size_in_bytes(text: str) -> int | None:
    """Return a size written with its unit, such as 24GiB or 1.5 GB, in bytes; None for what is none."""
    found = re.fullmatch(_NUMBER + r"\s?([A-Za-z]+)", text, re.ASCII)
    if found is None or found[2] not in _UNITS:
        return None
    return int(Decimal(found[1]) * _UNITS[found[2]])


def pick_within(
    norms: Mapping[str, float],
    sizes: Mapping[str, int],
    budget: Budget,
    *,
    step_cost: StepCost | None = None,
    fixed_memory_bytes: int | None = None,
    bytes_per_parameter: float | None = None,
    embed: bool = False,
) -> Picked:
    """Return the submodules with the largest summed squared norm that a budget allows.

    Memory of a choice: `fixed_memory_bytes` (weights, activations: what the choice does not change) plus
    `bytes_per_parameter` (gradient and optimizer state) per trained parameter. Seconds of its step: `step_seconds`;
    a full step trains all of `sizes`. Once the lowest layer is fixed both limits are one cap on trained parameters,
    so every depth is one 0/1 knapsack, solved exactly. Submodules of norm 0 are never taken. Raises MethodError where
    a limit lacks the numbers it needs, and when nothing fits, naming the smallest budget that would do.
    """
    check_norms(norms, sizes)
    limits = _Limits(budget, sizes, step_cost, fixed_memory_bytes, bytes_per_parameter)
    influence, reached = influences(norms), layers_reached(sizes)
    allowed = [name for name in sizes if (name != EMBED or embed) and influence[name] > 0]
    if not allowed:
        raise MethodError("no submodule that may be taken has a norm above 0, so there is nothing to choose by.")
    depths = sorted({reached[name] for name in allowed})
    caps = {limits.cap(depth): depth for depth in depths}  # of equal caps the deepest allows all that others do
    cuts = []
    for cap, depth in caps.items():
        inside = [name for name in allowed if reached[name] <= depth and sizes[name] <= cap]
        if not inside:
            continue
        inside.sort(key=lambda name: -influence[name] / sizes[name])
        knapsack = _Knapsack([influence[n] for n in inside], [sizes[n] for n in inside], cap)
        cuts.append((knapsack, inside))
    best, taken = 0.0, set[str]()
    for knapsack, inside in sorted(cuts, key=lambda cut: -cut[0].bound):
        value, chosen = knapsack.solve(best)
        if value > best:
            best, taken = value, {inside[i] for i in chosen}
    if not taken:
        raise MethodError(f"nothing fits into the budget. The smallest that fits {limits.smallest(allowed)}")
    submodules = tuple(name for name in sizes if name in taken)
    return Picked(submodules, sum(sizes[name] for name in submodules) / sum(sizes.values()))


@dataclass(frozen=True)
class _Limits:
    """A budget with the numbers that turn it into a cap on trained parameters."""

    budget: Budget
    sizes: Mapping[str, int]
    step_cost: StepCost | None
    fixed_memory_bytes: int | None
    bytes_per_parameter: float | None

    def __post_init__(self) -> None:
        if self.budget.memory_bytes is not None and (
            self.fixed_memory_bytes is None or self.bytes_per_parameter is None or self.bytes_per_parameter < 0
        ):
            raise MethodError("a memory budget asks for fixed_memory_bytes and bytes_per_parameter of this machine.")
        if self.budget.time is not None and not self._full_seconds > 0:
            raise MethodError("a time budget asks for a measured step_cost above 0; this blueprint has none.")

    @property
    def _full_seconds(self) -> float:
        return 0.0 if self.step_cost is None else step_seconds(self.sizes, self.sizes, self.step_cost)

    def cap(self, depth: int) -> int:
        """Return how many parameters may train with a backward pass through `depth` layers; negative: none at all."""
        caps = [sum(self.sizes.values())]
        if self.budget.memory_bytes is not None:
            room = self.budget.memory_bytes - Fraction(self.fixed_memory_bytes or 0)
            caps.append(_most(room, Fraction(self.bytes_per_parameter or 0)))
        if self.budget.time is not None and self.step_cost is not None:
            spent = self.step_cost.forward_seconds + self.step_cost.backward_seconds_per_layer * depth
            seconds = self.budget.time * self._full_seconds * (1 + _TIME_SLACK)
            caps.append(_most(Fraction(seconds) - Fraction(spent), Fraction(self.step_cost.seconds_per_parameter)))
        return min(caps)

    def smallest(self, allowed: Sequence[str]) -> str:
        """Return the words for the single submodule for which the limits must be raised by the smallest factor."""

        def factor(name: str) -> Fraction:
            memory, time = self._needs(name)
            asked = (self.budget.memory_bytes or 1, Fraction(self.budget.time or 1))
            return max(Fraction(memory or 0) / asked[0], Fraction(time or 0) / asked[1])

        name = min(allowed, key=factor)
        memory, time = self._needs(name)
        parts = [] if memory is None else [f"memory={_written(memory)}"]
        parts += [] if time is None else [f"time={math.ceil(time * 10**4 * (1 - _TIME_SLACK)) / 10**4:.4f}"]
        return f"trains {name!r} alone: {','.join(parts)}"

    def _needs(self, name: str) -> tuple[int | None, float | None]:
        """Return bytes, and seconds as a share of a full step, of training one submodule; None where not limited."""
        memory = time = None
        if self.budget.memory_bytes is not None:
            each = Fraction(self.bytes_per_parameter or 0)
            memory = max(1, math.ceil((self.fixed_memory_bytes or 0) + each * self.sizes[name]))
        if self.budget.time is not None and self.step_cost is not None:
            time = step_seconds([name], self.sizes, self.step_cost) / self._full_seconds
        return memory, time


def _most(room: Fraction, each: Fraction) -> int:
    """Return how many of `each` fit into `room`; negative when the room is gone before the first."""
    if room < 0:
        return -1
    return math.floor(room / each) if each else 1 << 62


def _written(size: int) -> str:
    """Return bytes as a budget is written, rounded up, so that asking for it works."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if size >= _UNITS[unit]), None)
    if unit is None:
        return f"{size}B"
    whole, hundredths = divmod(-(-100 * size // _UNITS[unit]), 100)
    return f"{whole}.{hundredths:02d}{unit}"


class _Knapsack:
    """0/1 knapsack over items in order of falling value per weight; `bound` is what fractions of items would reach.

    Sets are built item by item; a set that is heavier and not more valuable than another is dropped, and so is one
    whose fractional bound does not beat the best whole set seen (Nemhauser and Ullmann 1969 with Dantzig's bound).
    """

    def __init__(self, values: Sequence[float], weights: Sequence[int], cap: int) -> None:
        self._values, self._weights, self._cap = values, weights, cap
        self._sums_v, self._sums_w = [0.0], [0]
        for value, weight in zip(values, weights, strict=True):
            self._sums_v.append(self._sums_v[-1] + value)
            self._sums_w.append(self._sums_w[-1] + weight)
        self.bound = self._reach(0, 0.0, 0)[1]

    def solve(self, beat: float) -> tuple[float, list[int]]:
        """Return the best value above `beat` with its items; (`beat`, []) where there is none."""
        best, chosen, upto, start = beat, 0, 0, 0
        alive = [(0, 0.0, 0)]  # weight, value, items as bits
        for item in range(len(self._values) + 1):
            kept, top, coarse = [], -1.0, 1.0 if len(alive) <= _MANY else 1 + _COARSE * (len(alive) / _MANY) ** 2
            for weight, value, bits in alive:
                if value <= top:
                    continue
                top = value
                whole, fractional, end = self._reach(weight, value, item)
                if whole > best:  # every set comes with a whole one: itself and the next items that fit
                    best, chosen, start, upto = whole, bits, item, end
                if fractional > best * coarse:
                    kept.append((weight, value, bits))
            if item == len(self._values) or not kept:
                break
            weight, value, bit = self._weights[item], self._values[item], 1 << item
            room = self._cap - weight
            alive = kept + [(w + weight, v + value, bits | bit) for w, v, bits in kept if w <= room]
            alive.sort(key=lambda state: (state[0], -state[1]))
        return best, [i for i in range(upto) if i >= start or chosen >> i & 1]

    def _reach(self, weight: int, value: float, item: int) -> tuple[float, float, int]:
        """Return what a set reaches with the items from `item` on: whole, with a fraction of one, and up to which."""
        room = self._cap - weight + self._sums_w[item]
        end = bisect_right(self._sums_w, room) - 1
        whole = value + (self._sums_v[end] - self._sums_v[item])
        if end == len(self._values):
            return whole, whole, end
        return whole, whole + (room - self._sums_w[end]) / self._weights[end] * self._values[end], end
