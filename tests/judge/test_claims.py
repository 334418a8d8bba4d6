"""Claims as verdicts: the three words, what is counted, what all blocks say alike, and Holm."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.judge.claims import Claim, check
from cprbench.judge.statistics import holm
from cprbench.judge.verdicts import Verdict
from tests.judge.claims_factory import FULL, PARTIAL, answer, claim, runs
from tests.records_factory import make_blocks, make_evidence, make_record

pytestmark = pytest.mark.usefixtures("items_without_error")


# --- the three words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "threshold", "margin", "word"),
    [
        (">=", 0.8, 0.0, "supported"),
        (">", 0.8, 0.1, "supported"),
        (">", 0.8, 0.2, "refuted"),  # the whole interval is below 1.0
        (">", 0.9, 0.06, "open"),  # beyond the threshold surely, beyond the margin not
        (">=", 0.95, 0.0, "open"),
        (">=", 1.1, 0.0, "refuted"),
        ("<=", 0.8, 0.0, "refuted"),
        ("<", 1.1, 0.05, "supported"),
        ("inside", [0.8, 1.0], 0.0, "supported"),
        ("inside", [0.8, 0.95], 0.0, "open"),
        ("inside", [0.0, 0.5], 0.0, "refuted"),
    ],
)
def test_a_verdict_is_read_off_the_interval_threshold_and_margin(
    direction: str, threshold: Any, margin: float, word: str
) -> None:
    found = answer(claim(direction=direction, threshold=threshold, margin=margin), *runs())
    assert found.verdict == word, (found.low, found.value, found.high)
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert 0.9 < found.low < 0.95 < found.high < 1
    assert found.blocks == 6 and found.p is not None


def test_a_verdict_says_what_was_wanted_and_why_it_is_what_it_is() -> None:
    assert answer(claim(), *runs()).reason.startswith("the interval is above 0.8, p ")
    refuted = answer(claim(direction=">", threshold=0.8, margin=0.2), *runs())
    assert (refuted.reason, refuted.threshold) == (
        "the whole interval is not above 0.8 by the margin",
        "> 0.8 (margin 0.2)",
    )
    assert "others that are not" in answer(claim(threshold=0.95), *runs()).reason


@pytest.mark.parametrize("blocks", [1, 2])
def test_fewer_than_three_blocks_are_points_and_leave_a_claim_open(blocks: int) -> None:
    found = answer(claim(), *runs(blocks=blocks))
    assert (found.verdict, found.low, found.high, found.p) == ("open", None, None, None)
    assert found.value is not None
    assert found.reason.startswith(f"{blocks} block") and "no interval" in found.reason


@pytest.mark.parametrize("blocks", [3, 5])
@pytest.mark.parametrize("asked", [claim(), claim(threshold=1.5), claim("cost_ratio", "<=", 0.6)])
def test_fewer_than_six_blocks_never_decide_not_even_on_what_is_counted(asked: Claim, blocks: int) -> None:
    found = answer(asked, *runs(blocks=blocks))
    assert (found.verdict, found.reason) == ("open", f"{blocks} blocks: a verdict needs 6")
    assert found.low is not None


@pytest.mark.parametrize(("threshold", "word"), [(0.53, "supported"), (0.5, "refuted"), (0.4, "refuted")])
def test_what_is_counted_has_to_hold_in_every_block(threshold: float, word: str) -> None:
    found = answer(claim("cost_ratio", "<=", threshold), *runs())
    assert (found.verdict, found.low, found.high) == (word, 0.48, 0.52)
    assert "counted" in found.reason and found.p is None
    equal = make_blocks({"full": FULL, PARTIAL: FULL}, {"full": [1000] * 6, PARTIAL: [500] * 6})
    assert answer(claim("cost_ratio", "<=", 0.5), *equal).verdict == "supported"  # no zero variance here
    assert answer(claim("cost_ratio", "<", 0.5), *equal).verdict == "refuted"
    edge = make_blocks({"full": FULL, PARTIAL: FULL}, {"full": [1000] * 6, PARTIAL: [480] * 6})
    assert answer(claim("cost_ratio", "<=", 0.48), *edge).verdict == "supported"  # to the last digit


# --- few values are possible ------------------------------------------------------------------------


def with_ranks(*ranks: int, **asked: Any) -> Verdict:
    """Return the verdict of a claim that six submodules are told by a rank of at most half of them, by block."""
    notes = [{"cross_influence": {"singular_values": [1.0] * rank + [0.0] * (6 - rank)}} for rank in ranks]
    given = {"direction": "<=", "threshold": 0.5, "settings": {"mass": 0.9}} | asked
    return answer(claim("rank_share", **given), *(make_record(block=b, notes=n) for b, n in enumerate(notes)))


def test_that_all_blocks_say_the_same_is_an_answer_where_few_values_are_possible() -> None:
    found = with_ranks(*[2] * 6)
    assert (found.verdict, found.low, found.high, found.p) == ("supported", 1 / 3, 1 / 3, 2 * 0.5**6)
    assert with_ranks(*[4] * 6).verdict == "refuted"
    assert with_ranks(*[2] * 5).verdict == "open"
    assert with_ranks(2, 2, 2, 2, 2, 1).low != with_ranks(2, 2, 2, 2, 2, 1).high


@pytest.mark.parametrize(("direction", "word"), [("<", "refuted"), ("<=", "supported"), (">", "refuted")])
def test_an_interval_that_is_the_threshold_itself_is_not_beyond_it(direction: str, word: str) -> None:
    assert with_ranks(*[3] * 6, direction=direction).verdict == word


def test_a_sign_test_of_six_blocks_shares_its_error_with_other_primary_claims() -> None:
    notes = {"cross_influence": {"singular_values": [1.0, 0.0]}}
    evidence = make_evidence(*(make_record(block=b, notes=notes) for b in range(6)))
    asked = [claim("rank_share", "<=", 0.5, id=f"claim-{i}", primary=True) for i in range(2)]
    assert {(v.verdict, v.p) for v in check(asked, evidence)} == {("open", 4 * 0.5**6)}


CELLS = [(k, q) for k in (0.1, 0.3, 1.0) for q in (0.2, 0.5, 0.9)]


def fit_of(cost: Any, statistic: str = "cost_line_r_squared", **asked: Any) -> Verdict:
    """Return the verdict of a fit over arms whose FLOPs are cost(k, q, block)."""
    records = [
        make_record(
            arm=f"{k} {q}",
            block=b,
            k_reached=k,
            gamma={"flops": round(1e9 * cost(k, q, b))},
            spec={"selection": "influence"},
            notes={"selection": {"q_reached": q}},
        )
        for k, q in CELLS
        for b in range(6)
    ]
    return answer(claim(statistic, arms=[f"{k} {q}" for k, q in CELLS], **asked), *records)


def test_a_fit_of_what_is_counted_has_to_hold_in_every_block() -> None:
    line = fit_of(lambda k, q, b: b + 1 + k, threshold=0.9)
    assert (line.verdict, line.reason) == ("supported", "counted, in every block")
    bent = fit_of(lambda k, q, b: 1 + k if b else 1 + (k == 0.3), threshold=0.8)
    assert bent.value is not None and bent.low is not None and bent.value > 0.8 > bent.low
    assert (bent.verdict, bent.reason.partition(":")[0]) == ("refuted", "counted")
    asked: dict[str, Any] = {"direction": "<=", "threshold": 1e-3, "settings": {"model": "additive"}}
    model = fit_of(lambda k, q, b: 1 + k + q, "cost_model_error", **asked)
    assert (model.verdict, model.reason) == ("supported", "counted, in every block")


# --- Holm -------------------------------------------------------------------------------------------


def test_primary_claims_share_their_error_and_others_do_not() -> None:
    close = claim(id="close", threshold=0.913, primary=True)
    alone = answer(close, *runs())
    assert alone.verdict == "supported" and alone.p is not None and 0.02 < alone.p < 0.05
    others = [claim(id=f"other-{i}", threshold=0.915, primary=True) for i in range(2)]
    evidence = make_evidence(*runs())
    verdicts = check([close, *others], evidence)
    raw = {v.id: v.p for v in (answer(c, *runs()) for c in [close, *others])}
    assert {v.id: v.p for v in verdicts} == holm({name: p or 0.0 for name, p in raw.items()})
    assert verdicts[0].verdict == "open" and "after Holm is not below 0.05" in verdicts[0].reason
    secondary = [other.model_copy(update={"primary": False}) for other in others]
    assert check([close, *secondary], evidence)[0] == alone


def test_a_primary_claim_that_cannot_be_tested_counts_as_p_1() -> None:
    close, absent = claim(id="close", threshold=0.919, primary=True), claim(id="absent", arm="lora", primary=True)
    alone = answer(close, *runs())
    with_absent, told = check([close, absent], make_evidence(*runs()))
    assert with_absent.p == pytest.approx(2 * (alone.p or 0))
    assert with_absent.p is not None and with_absent.p > 0.05 and with_absent.verdict == "open"
    assert (told.verdict, told.p) == ("open", None)
    counted = claim("cost_ratio", "<=", 0.6, id="counted", primary=True)  # has no error to share
    assert [v.verdict for v in check([close, counted], make_evidence(*runs()))] == ["supported", "supported"]
