"""What a statistic is asked with, and how it says that it has no answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cprbench.errors import did_you_mean
from cprbench.judge.cpr import Comparison, Group
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import recipe_of
from cprbench.judge.statistics import Estimate, mean_difference
from cprbench.spec import RunRecord

if TYPE_CHECKING:
    from cprbench.judge.claims import Claim


class UnmeasuredError(Exception):
    """A statistic has no value, and this is why."""


@dataclass(frozen=True)
class Ask:
    """What a statistic is asked: the claim, the group that answers it (None for files), all evidence."""

    claim: Claim
    group: Group | None
    evidence: Evidence

    def arm(self, name: str) -> dict[int, RunRecord]:
        """Return an arm's runs by block.

        Raises UnmeasuredError where it has none, has a block twice, failed in one, lacks one that another arm of the
        claim started, or where its blocks are of several recipes: means leave nothing out and mix nothing.
        """
        runs: dict[int, list[RunRecord]] = {}
        for record in self.of_group.records:
            if record.arm == name:
                runs.setdefault(record.block, []).append(record)
        if not runs:
            raise UnmeasuredError(f"arm {name!r} has no run here. {did_you_mean(name, self._started)}")
        for block, found in runs.items():
            if len(found) > 1:
                raise self._refused(f"arm {name!r} has block {block} twice, and nobody may choose between them")
            if found[0].status != "ok":
                raise self._refused(f"arm {name!r} failed in block {block}, and means leave nothing out")
        wanted = {"head", "full", name, str(self.claim.arm), self.claim.reference, *self.claim.arms}
        started = set().union(*(self._started.get(other, set()) for other in wanted))
        if missing := sorted((started | set(range(max(started)))) - set(runs)):
            raise self._refused(f"arm {name!r} lacks block {missing[0]}, which another arm of the claim has or skips")
        recipes = [recipe_of(found[0]) for found in runs.values()]
        if any(recipe != recipes[0] for recipe in recipes):
            raise self._refused(f"arm {name!r} is of several recipes (settings or learning rate) in its blocks")
        return {block: runs[block][0] for block in sorted(runs)}

    @cached_property
    def _started(self) -> dict[str, set[int]]:
        """Every arm's blocks, failed ones too."""
        found: dict[str, set[int]] = {}
        for record in self.of_group.records:
            found.setdefault(record.arm, set()).add(record.block)
        return found

    def _refused(self, why: str) -> UnmeasuredError:
        return UnmeasuredError(f"could not be measured: {why}")

    def pair(self) -> tuple[dict[int, RunRecord], dict[int, RunRecord]]:
        """Return the runs of the claim's arm and of its reference, in the same blocks."""
        if self.claim.arm == self.claim.reference:
            raise UnmeasuredError(f"arm and reference are both {self.claim.arm!r}")
        return self.arm(str(self.claim.arm)), self.arm(self.claim.reference)

    def comparison(self, full: Mapping[int, RunRecord]) -> Comparison:
        """Return the group's formulas with `full` as what gains are shares of."""
        head = self.arm("head") if self.of_group.reference == "head" else None
        return Comparison(self.of_group.metric, head, full, self.evidence.predictions)

    def setting(self, name: str, default: float) -> float:
        """Return a numeric setting of the claim."""
        return float(self.claim.settings.get(name, default))  # type: ignore[arg-type]

    @property
    def of_group(self) -> Group:
        assert self.group is not None
        return self.group


def mean_over(values: Sequence[float | None], why: str) -> Estimate:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        raise UnmeasuredError(f"could not be measured: {why}")
    return mean_difference(known)
