"""A verdict on a score needs the error of the test's items: what gives it, what is open without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.claims import check
from cprbench.judge.evidence import gather
from cprbench.judge.regression import regressions
from cprbench.spec import ExternalModel, ExternalSpec, ExternalTask, RunRecord
from tests.judge.claims_factory import FULL, HEAD, KEEPS_MOST, PARTIAL, claim, runs
from tests.records_factory import answers, make_blocks, make_evidence, store_run

SCORES = [
    claim(id="kept"),
    claim("multiple_of_full", ">", 1.2, id="multiple"),
    claim("gain_difference", "<", 0.1, id="psi"),
]
UNKNOWN = "could not be measured: the error of the test's items is not known "


def words(folder: Path, text: Callable[[RunRecord], str] | None) -> dict[str, tuple[str, str]]:
    """Return verdict and reason of SCORES on runs whose predictions are `text` of them."""
    for record in runs(items=1000):
        store_run(folder, record, **({} if text is None else {"predictions": text(record)}))
    return {verdict.id: (verdict.verdict, verdict.reason) for verdict in check(SCORES, gather(folder))}


def test_with_the_answers_of_all_blocks_to_the_same_items_scores_are_judged(tmp_path: Path) -> None:
    assert {word for word, _ in words(tmp_path, answers).values()} == {"supported"}


def of_other_items(record: RunRecord) -> str:
    return answers(record).replace("item-", f"item-{record.block}-")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no predictions are stored"),
        (lambda record: "not json\n", "no predictions are stored"),
        (
            lambda record: "" if (record.arm, record.block) == (PARTIAL, 3) else answers(record),
            "no predictions are stored",
        ),
        (of_other_items, "the runs were not scored on the same items"),
        (lambda record: answers(record).partition("\n")[0] + "\n", "1 predictions are stored, of 1000 items"),
        (lambda record: answers(record).replace('"id"', '"name"'), "the predictions hold no id for accuracy"),
    ],
    ids=["none", "garbage", "one run's", "other items", "fewer", "no ids"],
)
def test_without_them_every_claim_about_a_score_is_open(
    tmp_path: Path, text: Callable[[RunRecord], str] | None, why: str
) -> None:
    assert set(words(tmp_path, text).values()) == {("open", f"{UNKNOWN}({why})")}


def test_what_head_answered_is_part_of_a_gain_and_not_of_a_difference_of_two_scores(tmp_path: Path) -> None:
    found = words(tmp_path, lambda record: "" if record.arm == "head" else answers(record))
    assert {name: word for name, (word, _) in found.items()} == {"kept": "open", "multiple": "open", "psi": "supported"}


def test_a_claim_about_a_cost_asks_for_no_items(tmp_path: Path) -> None:
    asked = [claim("cost_ratio", "<=", 0.6), claim("cost_ratio", "<=", 0.6, id="hours", resource="device_hours")]
    half = [
        r.model_copy(update={"gamma": r.gamma.model_copy(update={"device_hours": 0.5 + 0.01 * r.block})})
        if r.arm == PARTIAL
        else r
        for r in runs()
    ]
    assert [verdict.verdict for verdict in check(asked, make_evidence(*half))] == ["supported", "supported"]


def external(**more: Any) -> list[RunRecord]:
    """Return the same scores by loops that are not ours, which keep no predictions."""
    records = make_blocks({"full": FULL, PARTIAL: KEEPS_MOST}, new_head_parameters=0, selection_sha256=None, **more)
    return [
        record.model_copy(
            update={
                "loop": "external loop",
                "spec": ExternalSpec(
                    task=ExternalTask(name="mine"),
                    model=ExternalModel(source="mine", label="mine"),
                    method=record.spec.method,
                ),
            }
        )
        for record in records
    ]


def test_loops_that_are_not_ours_get_a_verdict_that_says_what_it_is_of() -> None:
    for asked, word in ((claim(), "supported"), (claim(threshold=1.5), "refuted")):
        (found,) = check([asked], make_evidence(*external()))
        assert found.verdict == word
        assert found.reason.endswith("; of blocks alone, for these loops keep no predictions")


def sides(folder: Path, *, answered: bool, drop: float) -> Any:
    """Return the verdict on psi of an arm that fell by about `drop`."""
    for name, fell in (("before", 0.0), ("now", drop)):
        finals = [psi - fell + 1e-3 * (-1) ** i * (fell > 0) for i, psi in enumerate(FULL)]
        for record in make_blocks({"full": finals}, items=1000, seconds={"billed": 1 + fell}):
            record = record.model_copy(update={"run_id": record.run_id[:-1] + str(int(fell > 0))})
            store_run(folder / name, record, **({"predictions": answers(record)} if answered else {}))
    (found,) = regressions(gather(folder / "now"), gather(folder / "before"), axes=["psi"])
    return found


@pytest.mark.parametrize(("drop", "word"), [(0.05, "refuted"), (0.002, "supported")])
def test_a_regression_in_a_score_needs_its_items_too(tmp_path: Path, drop: float, word: str) -> None:
    assert sides(tmp_path / "answered", answered=True, drop=drop).verdict == word
    found = sides(tmp_path / "silent", answered=False, drop=drop)
    assert (found.verdict, found.reason) == ("open", f"{UNKNOWN}(no predictions are stored)")


def test_a_regression_of_loops_that_are_not_ours_is_of_blocks_alone() -> None:
    now = [r.model_copy(update={"run_id": r.run_id[::-1]}) for r in external()]
    lower = [
        r.model_copy(update={"psi": r.psi.model_copy(update={"final": {"accuracy": 0.7 + 0.01 * (r.block % 2)}})})
        for r in now
    ]
    found = regressions(make_evidence(*lower), make_evidence(*external()), axes=["psi"])
    assert {verdict.verdict for verdict in found} == {"refuted"}


def test_items_may_leave_open_what_blocks_alone_would_decide(tmp_path: Path) -> None:
    close = claim("gain_difference", "<", 0.0, reference="head", arm="lora")
    scores = {"head": HEAD, "lora": [h - 0.004 - 1e-4 * (-1) ** i for i, h in enumerate(HEAD)], "full": FULL}
    for record in make_blocks(scores, items=100):
        rows = answers(record.model_copy(update={"block": record.block + 3 * (record.arm == "lora")}))
        store_run(tmp_path, record, predictions=rows)
    (found,) = check([close], gather(tmp_path))
    assert found.verdict == "open" and "the interval holds values" in found.reason
