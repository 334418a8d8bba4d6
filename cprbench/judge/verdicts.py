"""What a check says of a claim or of an axis of a regression, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Word = Literal["supported", "refuted", "open"]


@dataclass(frozen=True)
class Verdict:
    """One answer. `low` and `high` are the 95 % interval, None where there is none; `reason` is never empty."""

    id: str
    verdict: Word
    value: float | None
    low: float | None
    high: float | None
    reason: str
    text: str = ""
    source: str = ""  # where the statement stands: a section of a paper, a file
    statistic: str = ""
    threshold: str = ""  # "> 1 (margin 0.05)"
    command: str = ""  # that makes the evidence
    primary: bool = False  # in the Holm family of its check
    p: float | None = None  # two-sided, of the threshold; after Holm for primary claims and for axes of a regression
    sign_flip_p: float | None = None  # beside, never deciding
    blocks: int = 0


def unless_damaged(verdicts: Sequence[Verdict], damaged: Mapping[str, str]) -> list[Verdict]:
    """Return verdicts of which none says supported while something could not be read: nobody knows what it says."""
    if not damaged:
        return list(verdicts)
    why = f"could not be measured: {len(damaged)} damaged, left out, {sorted(damaged)[0]} among them"
    return [
        replace(v, verdict="open", reason=f"{why}; else {v.reason}") if v.verdict == "supported" else v
        for v in verdicts
    ]


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return 1 where something is refuted, else 2 where something could not be measured (or nothing was asked), else 0.

    The order matters: a refuted claim is an answer, and an open one beside it must not hide it.
    """
    words = {verdict.verdict for verdict in verdicts}
    return 1 if "refuted" in words else 2 if "open" in words or not words else 0
