"""What a statistic is asked with, and how it says that it has no answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cprbench.errors import did_you_mean
from cprbench.judge import cpr
from cprbench.judge.cpr import Comparison, Group
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import ended_well, runs_by_arm
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
        """Return an arm's runs by block. Raises UnmeasuredError where it has none, has a block twice, or one failed."""
        arms = runs_by_arm(self.of_group.records)
        if name not in arms:
            raise UnmeasuredError(f"arm {name!r} has no run here. {did_you_mean(name, arms)}")
        if any(other.startswith(f"{name} (") for other in arms):
            raise UnmeasuredError(
                f"could not be measured: arm {name!r} has a block twice, and nobody may choose between them"
            )
        failed = sorted(set(arms[name]) - set(ended_well(arms[name])))
        if failed:
            raise UnmeasuredError(
                f"could not be measured: arm {name!r} failed in block {failed[0]}, and means leave nothing out"
            )
        return ended_well(arms[name])

    def pair(self) -> tuple[dict[int, RunRecord], dict[int, RunRecord]]:
        """Return the runs of the claim's arm and of its reference, in the same blocks."""
        arm, reference = self.arm(str(self.claim.arm)), self.arm(self.claim.reference)
        if missing := sorted(set(arm) ^ set(reference)):
            here = self.claim.arm if missing[0] in arm else self.claim.reference
            raise UnmeasuredError(f"could not be measured: block {missing[0]} has a run of {here!r} alone")
        if self.claim.arm == self.claim.reference:
            raise UnmeasuredError(f"arm and reference are both {self.claim.arm!r}")
        return arm, reference

    def comparison(self, full: Mapping[int, RunRecord]) -> Comparison:
        """Return the group's formulas with `full` as what gains are shares of."""
        head = self.arm("head") if self.of_group.reference == "head" else None
        return Comparison(self.of_group.metric, head, full, self.evidence.predictions)

    def over_blocks(self, value: Callable[[Group], float | None], why: str) -> Estimate:
        """Return the mean over blocks of what each block says by itself."""
        blocks = sorted({r.block for r in self.of_group.records})
        by_block = [cpr.compare(r for r in self.of_group.records if r.block == block)[0] for block in blocks]
        return mean_over([value(group) for group in by_block], why)

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
