"""psi against computations of our own, and against the numbers that PubMedQA publishes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.adapt.data import Example, load_dataset
from cprbench.adapt.scoring import METRICS, Prediction, accuracy, macro_f1, mean_nll, predict, psi
from cprbench.errors import SpecError
from cprbench.tasks import load_task

CHOICES = ("yes", "no", "maybe")


def said(reference: str, prediction: str, nll: float = 0.5) -> Prediction:
    return Prediction("1", prediction, reference, nll, {})


def pairs(truth: Sequence[str], predicted: Sequence[str]) -> list[Prediction]:
    return [said(t, p) for t, p in zip(truth, predicted, strict=True)]


def f1_by_hand(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean over labels that occur of 2 tp / (2 tp + fp + fn)."""
    scores = []
    for label in sorted({*truth, *predicted}):
        tp = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
        wrong = sum((t == label) != (p == label) for t, p in zip(truth, predicted, strict=True))
        scores.append(2 * tp / (2 * tp + wrong))
    return sum(scores) / len(scores)


def test_scores_of_a_small_case_are_those_of_pencil_and_paper() -> None:
    # yes: 2 of 3 found, one no taken for yes: F1 = 4/6. no: 1 of 2 found, none wrong: 2/3. maybe: never found: 0.
    found = pairs(["yes", "yes", "yes", "no", "no", "maybe"], ["yes", "yes", "maybe", "yes", "no", "no"])
    assert accuracy(found) == pytest.approx(3 / 6)
    assert macro_f1(found) == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)


labels = st.sampled_from(CHOICES)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_scores_are_those_of_our_own_count(items: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*items, strict=True)
    found = pairs(truth, predicted)
    assert accuracy(found) == pytest.approx(sum(t == p for t, p in items) / len(items))
    assert macro_f1(found) == pytest.approx(f1_by_hand(truth, predicted))


@pytest.fixture(scope="module")
def pubmedqa(real_data: Path) -> list[Example]:
    return list(load_dataset(load_task("pubmedqa"), data=real_data).test)


def test_the_majority_of_pubmedqa_scores_what_its_publishers_report(pubmedqa: list[Example]) -> None:
    found = psi([said(example.reference, "yes") for example in pubmedqa], ["accuracy", "macro_f1"])
    assert {name: round(100 * value, 1) for name, value in found.items()} == {"accuracy": 55.2, "macro_f1": 23.7}


def test_the_human_of_pubmedqa_scores_what_its_publishers_report(pubmedqa: list[Example], real_data: Path) -> None:
    rows = json.loads((real_data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    human = [said(example.reference, rows[example.id]["reasoning_required_pred"]) for example in pubmedqa]
    found = psi(human, ["accuracy", "macro_f1"])
    assert {name: round(100 * value, 1) for name, value in found.items()} == {"accuracy": 78.0, "macro_f1": 72.2}


def test_the_negative_log_likelihood_is_that_of_the_right_choice() -> None:
    example = Example("7", "q", "", CHOICES, answer=1)
    found = predict(example, [math.log(0.7), math.log(0.2), math.log(0.1)])
    assert found.prediction == "yes"
    assert found.reference == "no"
    assert found.nll == pytest.approx(-math.log(0.2), abs=1e-6)
    assert found.log_likelihoods == pytest.approx(
        dict(zip(CHOICES, map(math.log, (0.7, 0.2, 0.1)), strict=True)), abs=1e-6
    )
    assert mean_nll([said("a", "a", 0.25), said("a", "b", 0.75)]) == 0.5


def test_a_tie_takes_the_first_choice() -> None:
    example = Example("7", "q", "", CHOICES, answer=2)
    assert predict(example, [-1.0, -1.0, -1.0]).prediction == "yes"
    assert predict(example, [-2.0, -1.0, -1.0]).prediction == "no"


def test_as_many_log_likelihoods_as_choices_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        predict(Example("7", "q", "", CHOICES, answer=0), [-1.0, -2.0])


def test_no_predictions_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(SpecError, match="there are no predictions"):
        psi([], ["accuracy"])
    with pytest.raises(SpecError, match=r"unknown metric 'acuracy'\. Did you mean 'accuracy'\?"):
        psi([said("a", "a")], ["acuracy"])


def test_psi_has_the_metrics_asked_for_and_no_other() -> None:
    assert psi([said("a", "a", 0.5)], ["nll", "accuracy"]) == {"nll": 0.5, "accuracy": 1.0}
    of_choices = set(METRICS) - {"bits_per_byte"}
    assert set(psi([said("a", "a")], sorted(of_choices))) == {"accuracy", "macro_f1", "nll"}


@given(st.lists(st.floats(-50, 0), min_size=3, max_size=3), st.integers(0, 2))
def test_a_prediction_survives_its_line_in_a_file(log_likelihoods: list[float], answer: int) -> None:
    found = predict(Example("id\u2028 1", "q", "", CHOICES, answer), log_likelihoods)
    line = json.dumps(found.row(), allow_nan=False)
    assert Prediction.from_row(json.loads(line)) == found
    assert found.nll == -found.log_likelihoods[found.reference]
