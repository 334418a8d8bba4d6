"""psi: predictions -> scores by metric name. No torch: a check recomputes a record's psi with this file.

Our own formulas, tested against scikit-learn, so that reading a record needs no more than this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cprbench.adapt.data import Example
from cprbench.errors import SpecError, did_you_mean


@dataclass(frozen=True)
class Prediction:
    """What a model said about one item: the best choice, and every choice's log-likelihood; of a text neither."""

    id: str
    prediction: str
    reference: str
    nll: float  # minus the log-likelihood of the right choice or of the whole text, in nats
    log_likelihoods: dict[str, float]
    bytes: int | None = None  # of a text: how many bytes of UTF-8 were scored

    def row(self) -> dict[str, Any]:
        """Return the line of predictions.jsonl."""
        beside = {"log_likelihoods": self.log_likelihoods} if self.bytes is None else {"bytes": self.bytes}
        scores = {"nll": self.nll, **beside}
        return {"id": self.id, "prediction": self.prediction, "reference": self.reference, "scores": scores}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Prediction:
        """Return a line of predictions.jsonl as a Prediction."""
        scores = row["scores"]
        choices = scores["log_likelihoods"] if "bytes" not in scores else {}
        return cls(row["id"], row["prediction"], row["reference"], scores["nll"], choices, scores.get("bytes"))


def predict(example: Example, log_likelihoods: Sequence[float], bytes_scored: int | None = None) -> Prediction:
    """Return the prediction for an example: the first choice of highest log-likelihood.

    `bytes_scored`: of a text, whose one log-likelihood is that of all of them.
    """
    if bytes_scored is not None:
        return Prediction(example.id, "", "", -round(log_likelihoods[0], 6), {}, bytes_scored)
    best = max(range(len(log_likelihoods)), key=lambda i: log_likelihoods[i])
    by_choice = {c: round(v, 6) for c, v in zip(example.choices, log_likelihoods, strict=True)}
    nll = -by_choice[example.reference]
    return Prediction(example.id, example.choices[best], example.reference, nll, by_choice)


def accuracy(predictions: Sequence[Prediction]) -> float:
    """Return the share of right predictions, in [0, 1]."""
    return sum(p.prediction == p.reference for p in predictions) / len(predictions)


def macro_f1(predictions: Sequence[Prediction]) -> float:
    """Return the unweighted mean F1 of every label that occurs in references or predictions, in [0, 1].

    The rule of PubMedQA's own scorer: F1 = 2 right / (said + true), 0 for a label that is never right.
    """
    said, true = Counter(p.prediction for p in predictions), Counter(p.reference for p in predictions)
    right = Counter(p.reference for p in predictions if p.prediction == p.reference)
    labels = sorted(said | true)
    return math.fsum(2 * right[label] / (said[label] + true[label]) for label in labels) / len(labels)


def mean_nll(predictions: Sequence[Prediction]) -> float:
    """Return the mean negative log-likelihood of the right choice, or of a whole text, in nats; lower is better."""
    return math.fsum(p.nll for p in predictions) / len(predictions)


def bits_per_byte(predictions: Sequence[Prediction]) -> float:
    """Return the negative log-likelihood of all texts together, in bits per byte of UTF-8; lower is better.

    psi of the paper is minus this (NOTES, definitions). Raises SpecError for predictions that are not of texts.
    """
    lengths = [p.bytes for p in predictions if p.bytes is not None]
    if len(lengths) < len(predictions):
        raise SpecError("bits_per_byte is a metric of texts: these predictions are choices, which have no bytes.")
    return math.fsum(p.nll for p in predictions) / math.log(2) / sum(lengths)


METRICS: dict[str, Callable[[Sequence[Prediction]], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "nll": mean_nll,
    "bits_per_byte": bits_per_byte,
}


def psi(predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, float]:
    """Return the scores of `predictions` by metric name. Raises SpecError for none, or an unknown metric."""
    if not predictions:
        raise SpecError("nothing to score: there are no predictions.")
    for name in metrics:
        if name not in METRICS:
            raise SpecError(f"unknown metric {name!r}. {did_you_mean(name, METRICS)}")
    return {name: METRICS[name](predictions) for name in metrics}
