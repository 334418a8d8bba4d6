"""Claims made by hand and runs that answer them: head, full and an arm that keeps most of full's gain at half of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cprbench.judge.claims import Claim, check
from cprbench.judge.verdicts import Verdict
from cprbench.spec import RunRecord
from tests.records_factory import make_blocks, make_evidence

PARTIAL = "partial k=0.15"
HEAD = (0.60, 0.61, 0.59, 0.60, 0.62, 0.58)
FULL = (0.80, 0.83, 0.78, 0.81, 0.82, 0.76)
KEEPS_MOST = (0.79, 0.82, 0.78, 0.80, 0.80, 0.755)
HALF_THE_FLOPS = {"full": [1000] * 6, PARTIAL: [500, 480, 520, 500, 490, 500], "head": [100] * 6}


def claim(statistic: str = "retained_gain", direction: str = ">=", threshold: Any = 0.8, **more: Any) -> Claim:
    """Return a claim about the partial arm; `more` replaces keys, `arm=None` leaves the arm out."""
    given = {"id": "a-claim", "text": "…", "statistic": statistic, "direction": direction, "threshold": threshold}
    given |= ({} if "arms" in more else {"arm": PARTIAL}) | more
    return Claim.model_validate({key: value for key, value in given.items() if key != "arm" or value is not None})


def runs(
    partial: Sequence[float] = KEEPS_MOST, full: Sequence[float] = FULL, blocks: int = 6, **more: Any
) -> list[RunRecord]:
    """Return the runs of head, full and the partial arm, of these scores; their retained gain is 0.954."""
    finals = {"head": HEAD[:blocks], "full": full[:blocks], PARTIAL: partial[:blocks]}
    return make_blocks(finals, HALF_THE_FLOPS, **more)


def answer(asked: Claim, *records: RunRecord) -> Verdict:
    """Return the verdict of one claim, alone."""
    (verdict,) = check([asked], make_evidence(*records))
    assert verdict.reason
    return verdict


def reason_why_open(asked: Claim, *records: RunRecord) -> str:
    """Return why a claim is open; fails where it is not."""
    verdict = answer(asked, *records)
    assert verdict.verdict == "open", verdict
    return verdict.reason
