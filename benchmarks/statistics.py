"""What the intervals of judge/statistics.py hold: coverage, false alarms and power on runs whose truth is known.

    python -m benchmarks.statistics [--repetitions 4000]      prints as its last line JSON, the same every time

A run answers item i of a test rightly with probability level + item + taste + luck. Items (difficulty, +-15 points) are
drawn anew for every repetition and shared by all runs; taste (+-10 points) is what a method finds easier or harder, the
same in all blocks; luck is a run's own, of 1.5 or 5 points, normal or lognormal (few runs that end far below the rest).
The untouched base (45 %) is one set of answers for all blocks; full tuning reaches 65 %, the arm 63 %, at a cost of
about half of full's with 5 % noise.

Columns, in per cent: 95 % intervals that hold the truth, of the arm's gain, its difference to full, retained gain and
multiple of full; of gain and difference by blocks alone, without the item error; of the difference by a percentile
bootstrap over blocks. `none`: multiples without an interval. A/A: full tuning twice, intervals that leave out 0, and
sign-flip p below 0.05. Power: how often a method 1, 2 or 4 points above full is shown to be better; of 2 points by
blocks alone. Then gain and retained gain on a test without end, where luck of 5 points is all that varies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cprbench.judge.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Covariance,
    Estimate,
    gain_covariance,
    item_weights,
    mean_difference,
    ratio_of_means,
)

_BASE, _FULL, _ARM = 0.45, 0.65, 0.63
_COST, _COST_NOISE = 0.5, 0.05
_POINTS = (1, 2, 4)
_CHUNK = 200  # repetitions at a time
#: Points of luck and items of the test.
_SIZES = ((1.5, 200), (1.5, 800), (5.0, 800))

Answers = np.ndarray[Any, Any]  # [repetitions, blocks, items], right or not


def drawn(generator: np.random.Generator, shape: tuple[int, ...], skewed: bool) -> Answers:
    """Return luck of mean 0 and deviation 1; the logarithm of the skewed kind has a deviation of 1."""
    luck = generator.standard_normal(shape)
    return (math.exp(0.5) - np.exp(luck)) / math.sqrt(math.e * (math.e - 1)) if skewed else luck


class World:
    """Runs of one size: every call of `run` is one method on the same items, bases and repetitions."""

    def __init__(self, generator: np.random.Generator, blocks: int, items: int, luck: float, skewed: bool) -> None:
        self.generator, self.luck, self.skewed = generator, luck / 100, skewed
        self.shape = (_CHUNK, blocks, items)
        self.difficulty = generator.uniform(-0.15, 0.15, (_CHUNK, 1, items))
        self.base = np.broadcast_to(generator.random((_CHUNK, 1, items)) < _BASE + self.difficulty, self.shape)
        self.scales = _COST * np.exp(_COST_NOISE * generator.standard_normal((_CHUNK, blocks)))

    def taste(self) -> Answers:
        """Return what a method finds easier or harder than others do."""
        return self.generator.uniform(-0.1, 0.1, (_CHUNK, 1, self.shape[2]))

    def run(self, level: float, taste: Answers) -> Answers:
        """Return the answers of a method with this accuracy."""
        luck = self.luck * drawn(self.generator, (*self.shape[:2], 1), self.skewed)
        chance = level + self.difficulty + taste + luck
        return self.generator.random(self.shape, dtype=np.float32) < chance


def item_parts(ours: Answers, theirs: Answers, scales: Answers) -> Sequence[Covariance]:
    """Return gain_covariance of every repetition at once: accuracy is linear in items, so its blocks add up first."""
    weights, items = item_weights(ours.shape[2]), ours.shape[2]
    a, b = (weights @ part.mean(axis=1).T / items for part in (ours, theirs * scales[:, :, None]))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    aa, ab, bb = ((x * y).sum(axis=0) / (len(a) - 1) for x, y in ((a, a), (a, b), (b, b)))
    return [((float(x), float(y)), (float(y), float(z))) for x, y, z in zip(aa, ab, bb, strict=True)]


def checked(parts: Sequence[Covariance], runs: Sequence[Answers], scales: Answers) -> None:
    """Stop where the first of `parts` is not what gain_covariance makes of rows: (arm, base, full, base)."""
    rows = [
        [[{"id": str(i), "prediction": bool(x), "reference": True} for i, x in enumerate(block)] for block in run[0]]
        for run in runs
    ]
    arm, full = (list(zip(*rows[i : i + 2], strict=True)) for i in (0, 2))
    found = gain_covariance("accuracy", arm, full, scales[0].tolist()).covariance
    # Items stand in the order of their ids there, so they are drawn differently: two bootstraps of one variance.
    assert found is not None
    assert np.allclose(found, parts[0], rtol=0.2, atol=0.1 * found[0][0]), (found, parts[0])


def simulate(blocks: int, items: int, luck: float, skewed: bool, repetitions: int) -> dict[str, float]:
    """Return the rates of one setting."""
    generator = np.random.Generator(np.random.PCG64([SEED, blocks, items, int(10 * luck), skewed]))
    counts: Counter[str] = Counter()

    def hold(name: str, estimates: Sequence[Estimate], truth: float) -> None:
        held = covered(estimates, truth)
        counts[f"{name} intervals"] += len(held)
        counts[name] += sum(held)

    bootstrap = item_weights(blocks)
    for chunk in range(repetitions // _CHUNK):
        world = World(generator, blocks, items, luck, skewed)
        tastes = world.taste(), world.taste()
        full, arm, twin = world.run(_FULL, tastes[0]), world.run(_ARM, tastes[1]), world.run(_FULL, tastes[0])
        psi: Callable[[Answers], Answers] = lambda run: run.mean(axis=2)  # noqa: E731
        less: Callable[[Answers, Answers], Answers] = lambda a, b: a.astype(np.float32) - b  # noqa: E731
        ones = np.ones((_CHUNK, blocks))

        gain, of_full = less(arm, world.base), less(full, world.base)
        plain, scaled = item_parts(gain, of_full, ones), item_parts(gain, of_full, world.scales)
        if chunk == 0:
            checked(scaled, (arm, world.base, full, world.base), world.scales)
        g, f = psi(gain), psi(of_full)
        hold("gain", [mean_difference(x, v[0][0]) for x, v in zip(g.tolist(), plain, strict=True)], _ARM - _BASE)
        hold("gain, blocks alone", [mean_difference(x) for x in g.tolist()], _ARM - _BASE)
        kept = [ratio_of_means(x, y, v) for x, y, v in zip(g.tolist(), f.tolist(), plain, strict=True)]
        hold("retained", kept, (_ARM - _BASE) / (_FULL - _BASE))
        priced = zip(g.tolist(), (f * world.scales).tolist(), scaled, strict=True)
        scale = _COST * math.exp(_COST_NOISE**2 / 2)
        truth = (_ARM - _BASE) / ((_FULL - _BASE) * scale)
        hold("multiple", [ratio_of_means(x, y, v) for x, y, v in priced], truth)

        difference = less(arm, full)
        parts = item_parts(difference, difference, ones)
        d = psi(difference)
        truth = _ARM - _FULL
        hold("difference", [mean_difference(x, v[0][0]) for x, v in zip(d.tolist(), parts, strict=True)], truth)
        hold("difference, blocks alone", [mean_difference(x) for x in d.tolist()], truth)
        low, high = np.percentile(bootstrap @ d.T / blocks, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
        counts["bootstrap"] += int(((low <= truth) & (high >= truth)).sum())

        same = less(twin, full)
        parts = item_parts(same, same, ones)
        tests = [mean_difference(x, v[0][0]) for x, v in zip(psi(same).tolist(), parts, strict=True)]
        counts["A/A"] += covered(tests, 0.0).count(False)
        counts["A/A sign flip"] += sum(e.sign_flip_p is not None and e.sign_flip_p < 1 - LEVEL for e in tests)
        for points in _POINTS:
            above = less(world.run(_FULL + points / 100, tastes[1]), full)
            parts = item_parts(above, above, ones)
            found = [mean_difference(x, v[0][0]) for x, v in zip(psi(above).tolist(), parts, strict=True)]
            counts[f"power {points}"] += sum(e.low is not None and e.low > 0 for e in found)
            if points == 2:
                alone = [mean_difference(x) for x in psi(above).tolist()]
                counts["power 2, blocks alone"] += sum(e.low is not None and e.low > 0 for e in alone)

    rates = {}
    for name in ("gain", "difference", "retained", "multiple", "gain, blocks alone", "difference, blocks alone"):
        rates[name] = counts[name] / counts[f"{name} intervals"]
    rates["none"] = 1 - counts["multiple intervals"] / repetitions
    for name in (
        "bootstrap",
        "A/A",
        "A/A sign flip",
        *(f"power {points}" for points in _POINTS),
        "power 2, blocks alone",
    ):
        rates[name] = counts[name] / repetitions
    return {name: round(rate, 4) for name, rate in rates.items()}


def covered(estimates: Sequence[Estimate], truth: float) -> list[bool]:
    """Return of each interval that there is whether it holds the truth."""
    return [e.low <= truth <= e.high for e in estimates if e.low is not None and e.high is not None]


def without_items(blocks: int, skewed: bool, repetitions: int) -> tuple[float, float]:
    """Return the coverage of gain and of retained gain where blocks are all that varies, by 5 points."""
    generator = np.random.Generator(np.random.PCG64([SEED, blocks, skewed]))
    levels = _ARM - _BASE, _FULL - _BASE
    runs = [level + 0.05 * drawn(generator, (repetitions, blocks), skewed) for level in levels]
    arms, fulls = (run.tolist() for run in runs)
    held = covered([mean_difference(arm) for arm in arms], levels[0])
    kept = covered([ratio_of_means(arm, full) for arm, full in zip(arms, fulls, strict=True)], levels[0] / levels[1])
    return sum(held) / len(held), sum(kept) / len(kept)


def main() -> None:
    """Print a table of all settings, and the worst of each kind as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000, help=f"rounded down to a multiple of {_CHUNK}")
    repetitions = max(1, parser.parse_args().repetitions // _CHUNK) * _CHUNK
    table: dict[tuple[bool, float, int, int], dict[str, float]] = {}
    for skewed, (luck, items), blocks in itertools.product((False, True), _SIZES, (3, 6, 10)):
        rates = table[skewed, luck, items, blocks] = simulate(blocks, items, luck, skewed, repetitions)
        if len(table) == 1:
            print("| luck | items | n |", " | ".join(rates), "|")
            print("|---|" + "---|" * (len(rates) + 2))
        cells = " | ".join(f"{100 * rate:.1f}" for rate in rates.values())
        print(f"| {'lognormal' if skewed else 'normal'} {luck:g} | {items} | {blocks} | {cells} |", flush=True)
    print("\n| luck, no items | n | gain | retained |\n|---|---|---|---|")
    bare: dict[str, float] = {}
    for skewed, blocks in itertools.product((False, True), (3, 6, 10)):
        gain, kept = without_items(blocks, skewed, repetitions)
        kind = "lognormal" if skewed else "normal"
        print(f"| {kind} | {blocks} | {100 * gain:.1f} | {100 * kept:.1f} |")
        bare[f"gain_coverage_{kind}_no_items"] = min(gain, bare.get(f"gain_coverage_{kind}_no_items", 1.0))
    worst = {
        f"{name}_coverage_{'lognormal' if skewed else 'normal'}": min(
            rates[name] for key, rates in table.items() if key[0] == skewed
        )
        for name in ("gain", "difference", "retained", "multiple")
        for skewed in (False, True)
    }
    alarms = max(rates["A/A"] for rates in table.values())
    shared = {"repetitions": repetitions, "resamples": RESAMPLES, "seed": SEED, "level": LEVEL}
    power = {f"power_2_points_n{n}_items_800": table[False, 1.5, 800, n]["power 2"] for n in (6, 10)}
    print(json.dumps(worst | bare | {"false_alarms": alarms} | power | shared))


if __name__ == "__main__":
    main()
