"""Claims as statements that records answer: a statistic of some arms, and what it would have to be.

A claim is supported where its statistic is beyond threshold and margin and its interval beyond the threshold, refuted
where the whole interval fails to reach them, open else, and always open below six blocks (docs/claims.md).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cprbench.errors import SpecError, did_you_mean
from cprbench.judge import statistics
from cprbench.judge.claims import measures
from cprbench.judge.claims.asking import Ask, UnmeasuredError
from cprbench.judge.claims.measures import MEASURES, Measure
from cprbench.judge.cpr import Group, compare
from cprbench.judge.evidence import Evidence
from cprbench.judge.statistics import LEAST_FOR_VERDICT, Estimate
from cprbench.judge.verdicts import Verdict, unless_damaged
from cprbench.schema import Finite, Frozen, parse
from cprbench.spec import Name, Scalar
from cprbench.tasks import read_toml

ALPHA = 1 - statistics.LEVEL
#: A number as TOML writes it: true is not 1, and "0.9" is a word.
_Number = Annotated[Finite, Field(strict=True)]


class Claim(Frozen):
    """One statement: what is measured on which runs, and what it has to be."""

    id: Name
    text: str
    source: str = ""
    primary: bool = False  # in the Holm family of its check
    statistic: str
    suite: str | None = None  # whose runs answer; without one all do, smoke tests too
    task: str | None = None
    model: str | None = None  # label, as reports show it
    arm: str | None = None
    arms: list[str] = []  # of a fit over arms
    reference: str = "full"
    resource: str = "flops"
    settings: dict[str, Scalar] = {}  # of the statistic
    direction: Literal[">", ">=", "<", "<=", "inside"]
    threshold: _Number | tuple[_Number, _Number]
    margin: Annotated[_Number, Field(ge=0)] = 0.0
    command: str = ""  # that makes the evidence; by default the suite

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if self.statistic not in MEASURES:
            raise ValueError(f"unknown statistic {self.statistic!r}. {did_you_mean(self.statistic, MEASURES)}")
        measure = MEASURES[self.statistic]
        if isinstance(self.threshold, tuple) != (self.direction == "inside"):
            raise ValueError("a threshold is one number; direction inside takes two: [low, high]")
        if isinstance(self.threshold, tuple) and not self.threshold[0] < self.threshold[1]:
            raise ValueError(f"threshold {list(self.threshold)}: the first is the smaller one")
        if self.margin and self.direction == "inside":
            raise ValueError("direction inside has no margin: widen or narrow the threshold")
        for key in ("arm", "arms"):
            if key in measure.takes and not getattr(self, key):
                raise ValueError(f"statistic {self.statistic} needs {key}")
        for key in ("arm", "arms", "reference", "resource"):
            if key in self.model_fields_set and key not in measure.takes:
                raise ValueError(f"statistic {self.statistic} takes no {key}")
        measures.check(measure, self.resource, self.settings)
        return self

    @property
    def condition(self) -> str:
        """The threshold in words: "> 1 (margin 0.05)"."""
        if isinstance(self.threshold, tuple):
            return f"inside {self.threshold[0]:g} to {self.threshold[1]:g}"
        return f"{self.direction} {self.threshold:g}" + (f" (margin {self.margin:g})" if self.margin else "")

    @property
    def evidence_command(self) -> str:
        """The command that makes what this claim is judged by."""
        if self.command or not self.suite:
            return self.command
        return f"cprbench run {self.suite} --blocks {LEAST_FOR_VERDICT}"


class ClaimsFile(Frozen):
    """A file of claims."""

    claim: Annotated[list[Claim], Field(min_length=1)]


def claims_folder() -> Path:
    """Return where claim files live: CPRBENCH_CLAIMS, ./claims, or claims/ of the checkout."""
    here = Path(__file__).resolve().parents[3]
    for folder in (os.environ.get("CPRBENCH_CLAIMS"), "claims", here / "claims"):
        if folder and any(Path(folder).glob("*.toml")):
            return Path(folder)
    raise SpecError("no claim files found. Run from a checkout of cprbench, or set CPRBENCH_CLAIMS to its claims/.")


def load_claims(name_or_path: str) -> list[Claim]:
    """Return the claims of a file, given by path or by its name in claims/.

    Raises SpecError that names the key that is wrong, and for two claims of one id.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = claims_folder() / f"{name_or_path}.toml"
        if not path.exists():
            known = [file.stem for file in claims_folder().glob("*.toml")]
            raise SpecError(f"unknown claims {name_or_path!r}. {did_you_mean(name_or_path, known)}")
    claims = parse(ClaimsFile, read_toml(path), str(path)).claim
    twice = {claim.id for claim in claims if [c.id for c in claims].count(claim.id) > 1}
    if twice:
        raise SpecError(f"{path}: two claims are called {sorted(twice)[0]!r}. Give each an id of its own.")
    return claims


@dataclass(frozen=True)
class _Answer:
    estimate: Estimate
    smoke: bool = False
    exact: bool = False
    external: bool = False  # of loops that are not ours, which keep no predictions


def check(claims: Sequence[Claim], evidence: Evidence, groups: Sequence[Group] | None = None) -> list[Verdict]:
    """Return a verdict per claim, in their order; Holm adjusts over those with primary = true (measurement C3.8).

    `groups`: what compare() said of the same evidence, where a caller has asked it already.
    """
    groups = compare(evidence.records, evidence.predictions) if groups is None else groups
    answers: dict[str, _Answer | str] = {}
    for claim in claims:
        try:
            answers[claim.id] = _answer(claim, groups, evidence)
        except UnmeasuredError as why:
            answers[claim.id] = str(why)
    # A claim that could not be tested stays in the family: runs left out never loosen the rest. What is counted has no
    # noise that could support it by chance, so it is in none.
    tested = [c for c in claims if c.primary and not measures.is_exact(c.statistic, c.resource)]
    family = {claim.id: _p_supported(claim, answers[claim.id]) for claim in tested}
    adjusted = statistics.holm({name: 1.0 if p is None else p for name, p in family.items()})
    return unless_damaged(
        [_verdict(claim, answers[claim.id], adjusted.get(claim.id)) for claim in claims], evidence.damaged
    )


def _answer(claim: Claim, groups: Sequence[Group], evidence: Evidence) -> _Answer:
    measure = MEASURES[claim.statistic]
    if measure.files:
        return _Answer(_agreed(measure.of(Ask(claim, None, evidence)), measure))
    group = _group(claim, groups)
    found = _agreed(measure.of(Ask(claim, group, evidence)), measure)
    exact, external = measures.is_exact(claim.statistic, claim.resource), group.key["loop"] != "cprbench"
    return _Answer(found, group.key["role"] == "smoke", exact, external)


def _agreed(found: Estimate, measure: Measure) -> Estimate:
    """Return an estimate of which all blocks or models say the same as a point, where few values are possible."""
    if measure.discrete and found.why == statistics.ZERO_VARIANCE:
        return replace(found, low=found.value, high=found.value, why=None)
    return found


def _group(claim: Claim, groups: Sequence[Group]) -> Group:
    """Return the one group that answers a claim. Raises UnmeasuredError for none, and for several: never mixed."""
    found = [
        group
        for group in groups
        if claim.task in (None, group.key["task"])
        and claim.model in (None, group.key["model"])
        and (claim.suite is None or any(suite.rpartition(" v")[0] == claim.suite for suite in group.key["suites"]))
    ]
    ranked = [group for group in found if group.key["role"] == "run"]
    found = ranked or found
    if not found:
        what = f"runs of suite {claim.suite}" if claim.suite else "runs"
        where = "".join(f" on {name}" for name in (claim.task, claim.model) if name)
        raise UnmeasuredError(f"there are no {what}{where} here")
    if len(found) > 1:
        keys = [group.key for group in found]
        differing = [name for name in keys[0] if name != "suites" and any(key[name] != keys[0][name] for key in keys)]
        values = "; ".join(f"{name}: {', '.join(sorted({str(key[name]) for key in keys}))}" for name in differing)
        raise UnmeasuredError(
            f"could not be measured: the runs are in {len(found)} groups that may not be mixed "
            f"({values or 'suite versions'}). Name task and model in the claim, or check each folder alone"
        )
    return found[0]


def _p_supported(claim: Claim, answer: _Answer | str) -> float | None:
    """Return the two-sided p of the threshold, in the direction of the claim; None where there is no interval."""
    if isinstance(answer, str) or answer.estimate.value is None:
        return None
    found = answer.estimate
    if found.low is not None and found.low == found.high:
        return float(2 * 0.5**found.n)  # a sign test: all agree
    if isinstance(claim.threshold, tuple):
        sides = [found.p_above(claim.threshold[0]), found.p_below(claim.threshold[1])]
    else:
        sides = [found.p_above(claim.threshold) if claim.direction[0] == ">" else found.p_below(claim.threshold)]
    known = [p for p in sides if p is not None]
    return min(1.0, 2 * max(known)) if len(known) == len(sides) else None


def _verdict(claim: Claim, answer: _Answer | str, adjusted: float | None) -> Verdict:
    found = Estimate(None, why=answer) if isinstance(answer, str) else answer.estimate
    p = _p_supported(claim, answer)
    p = p if adjusted is None or p is None else adjusted
    word, reason = _word(claim, answer, p)
    return Verdict(
        id=claim.id,
        verdict=word,
        value=found.value,
        low=found.low,
        high=found.high,
        reason=reason,
        text=claim.text,
        source=claim.source,
        statistic=claim.statistic,
        threshold=claim.condition,
        command=claim.evidence_command,
        primary=claim.primary,
        p=p,
        sign_flip_p=found.sign_flip_p,
        blocks=found.n,
    )


def _word(claim: Claim, answer: _Answer | str, p: float | None) -> tuple[Literal["supported", "refuted", "open"], str]:
    """Return the verdict and why it is that."""
    if isinstance(answer, str):
        return "open", answer
    found = answer.estimate
    unit = MEASURES[claim.statistic].unit
    if found.value is None:
        return "open", f"could not be measured: {found.why}"
    if answer.smoke:
        return "open", "a smoke test: limits or a recipe were given on the command line, so it never decides"
    if found.n < LEAST_FOR_VERDICT:
        points = ", no interval" if found.low is None else ""
        return "open", f"{found.n} {unit[: -1 if found.n == 1 else None]}{points}: a verdict needs {LEAST_FOR_VERDICT}"
    if found.no_items is not None and not answer.external:
        return "open", f"could not be measured: the error of the test's items is not known ({found.no_items})"
    if answer.exact and found.low is not None and found.high is not None:
        return _counted(claim, found)
    if found.low is None or found.high is None:
        return "open", f"could not be measured: no interval ({found.why})"
    supported, refuted = _sides(claim, found.value, found.low, found.high)
    alone = "; of blocks alone, for these loops keep no predictions" if found.no_items else ""
    if refuted:
        return "refuted", refuted + alone
    if supported and p is not None and p < ALPHA:
        return "supported", f"{supported}, p {p:.2g}" + (" after Holm" if claim.primary else "") + alone
    if supported:
        return "open", f"{supported}, but p {1.0 if p is None else p:.2g} after Holm is not below {ALPHA:.2g}"
    return "open", f"the interval holds values that are {claim.condition} and others that are not"


def _counted(claim: Claim, found: Estimate) -> tuple[Literal["supported", "refuted"], str]:
    """Return the verdict of what is counted: it has no noise, so every block has to say the same."""
    assert found.low is not None and found.high is not None and found.value is not None
    supported, _ = _sides(claim, found.value, found.low, found.high)
    if supported:
        return "supported", "counted, in every block"
    return "refuted", f"counted: {found.value:.4g} is not {claim.condition} in every block"


def _sides(claim: Claim, value: float, low: float, high: float) -> tuple[str, str]:
    """Return (why it would be supported, why it is refuted), each "" where it is not so."""
    if isinstance(claim.threshold, tuple):
        least, most = claim.threshold
        return (
            "the whole interval is inside" if least < low and high < most else "",
            "the whole interval is outside" if high <= least or low >= most else "",
        )
    sign = 1 if claim.direction[0] == ">" else -1
    bar = sign * claim.threshold
    value, low, high = sign * value, *sorted((sign * low, sign * high))
    edge, closed = bar + claim.margin, "=" in claim.direction
    beyond = low >= bar if closed else low > bar
    word = "above" if sign > 0 else "below"
    return (
        f"the interval is {word} {claim.threshold:g}" if beyond and value >= edge else "",
        f"the whole interval is not {word} {claim.threshold:g}" + (" by the margin" if claim.margin else "")
        if (high < edge if closed else high <= edge)
        else "",
    )
