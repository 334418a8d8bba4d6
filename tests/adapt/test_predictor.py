"""Selection `predicted`: what it measures, what its regression is worth, and when it is refused (Algorithm 2)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cprbench.adapt.methods import Target, build_method
from cprbench.adapt.selection import Measured, build_selection, predictor
from cprbench.adapt.selection.predicted import Predicted
from cprbench.adapt.selection.predictor import Regressor, cheap_features, fit, forward_features, within_class
from cprbench.blueprint.drift import spearman
from cprbench.errors import SpecError, TrainingError
from tests.adapt.test_selections import SIZES, Lab


def influence(lab: Lab) -> NDArray[Any]:
    found: NDArray[Any] = Measured(lab.losses, lab.norms).influence
    return found


def with_influence(lab: Lab, values: Any) -> Lab:
    """Give a lab these J, whatever its features."""
    lab.norms = np.zeros((len(lab.losses), len(SIZES)))
    lab.norms[:, 2] = values
    return lab


def noise(lab: Lab, seed: int = 7) -> Lab:
    return with_influence(lab, np.random.default_rng(seed).lognormal(size=len(lab.losses)))


# --- what it asks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "measured", "count"), [(2000, 0.05, 100), (1000, 0.05, 64), (40, 0.05, 40), (90, 1, 90)])
def test_a_share_is_measured_at_least_64_and_at_most_all(n: int, measured: float, count: int) -> None:
    few = Predicted(measured=float(measured)).few(Lab(n).pool())
    assert len(few) == count
    assert few == sorted(set(few)) and few[0] >= 0 and few[-1] < n


def test_the_measured_few_are_a_draw_of_their_own() -> None:
    lab = Lab(640)
    few = Predicted(measured=0.25).few(lab.pool(seed=1))
    assert few == Predicted(measured=0.25, q=0.9).few(lab.pool(seed=1))
    assert few != Predicted(measured=0.25).few(lab.pool(seed=2))
    assert few != list(build_selection("random", {"q": 0.25}).select(lab.pool(seed=1)).places)


def test_gradients_are_asked_of_the_few_alone_and_a_forward_pass_of_the_rest() -> None:
    lab = Lab(300)
    made = Predicted()
    few = made.few(lab.pool())
    made.select(lab.pool())
    rest = [i for i in range(300) if i not in few]
    assert lab.measured == [(few, True, True), (rest, False, True)]
    assert not lab.embedded and not lab.steps and not lab.bills


def test_cheap_features_ask_no_pass_beyond_the_few_and_look_everything_up_once() -> None:
    lab = Lab(300)
    made = Predicted(features="cheap")
    few = made.few(lab.pool())
    made.select(lab.pool())
    assert lab.measured == [(few, True, False)]
    assert sorted(place for places in lab.embedded for place in places) == list(range(300))


@pytest.mark.parametrize("features", ["forward", "cheap"])
def test_nothing_is_left_to_predict_where_everything_was_measured(features: Any) -> None:
    lab = Lab(50)
    found = Predicted(features=features, floor=-1).select(lab.pool())
    assert [len(places) for places, _, _ in lab.measured] == [50]
    assert found.notes["predictor"]["measured"] == 50
    assert len(found.places) == 15


@pytest.mark.parametrize("features", ["forward", "cheap"])
def test_predictions_in_parts_are_those_made_at_once(features: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, notes = Predicted(features=features).scores(Lab(200).pool())
    monkeypatch.setattr(predictor, "PART", 30)
    lab = Lab(200)
    parts, same = Predicted(features=features).scores(lab.pool())
    assert parts == pytest.approx(whole, rel=1e-9)
    assert same == notes
    asked = [places for places, gradients, _ in lab.measured if not gradients] or lab.embedded[1:]
    assert [len(places) for places in asked] == [30, 30, 30, 30, 16]


# --- what it is worth -----------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["forward", "cheap"])
def test_influence_that_follows_from_features_is_predicted_for_all_examples(features: Any) -> None:
    lab = Lab(400)
    made = Predicted(features=features, q=0.25)
    scores, notes = made.scores(lab.pool())
    true = influence(lab)
    assert all(type(score) is float for score in scores)
    assert notes["spearman"] > 0.9
    assert spearman(scores, true.tolist()) == pytest.approx(notes["spearman"], abs=0.06)  # held out, it told the truth
    kept = made.select(lab.pool()).places
    assert len(set(kept) & set(np.argsort(-true)[:100].tolist())) > 80
    few = made.few(lab.pool())
    mine = [scores[i] for i in few]
    assert mine != pytest.approx(np.log(true[few]).tolist(), rel=1e-6)  # predicted too, not put in as measured


def test_scores_are_logarithms_of_j() -> None:
    lab = Lab(200)
    scores, _ = Predicted(measured=0.5).scores(lab.pool())
    assert np.corrcoef(scores, np.log(influence(lab)))[0, 1] > 0.99
    assert np.mean(np.array(scores) - np.log(influence(lab))) == pytest.approx(0, abs=0.05)


def test_a_predictor_below_the_floor_is_refused_with_the_number_and_a_way_out() -> None:
    lab = noise(Lab(400))
    made = Predicted(measured=0.25)
    _, notes = made.scores(lab.pool())
    assert abs(notes["spearman"]) < 0.3
    said = rf"held-out Spearman correlation with J is {notes['spearman']:.3f}, the floor is 0.3 \(100 measured"
    with pytest.raises(TrainingError, match=rf"{said} examples, features=forward\). Raise selection.measured"):
        made.select(lab.pool())
    Predicted(measured=0.25, floor=-1.0).select(lab.pool())
    at = Predicted(measured=0.25, floor=notes["spearman"])
    assert at.select(lab.pool()).notes["predictor"]["spearman"] == notes["spearman"]  # the floor itself is enough


def test_more_features_than_examples_do_not_make_noise_look_predictable() -> None:
    lab = noise(Lab(100))
    lab.states = np.random.default_rng(3).normal(size=(100, 300)).astype(np.float32)
    fitted = fit_of(lab)
    in_sample = spearman(fitted.model.predict(blocks_of(lab)), influence(lab).tolist())
    assert fitted.notes["spearman"] < 0.25 < 0.3 < (in_sample or 0) or fitted.notes["spearman"] < 0.1


def test_a_duplicate_is_not_its_own_answer() -> None:
    lab = Lab(124)
    lab.texts = [f"only{i % 31} words{i % 31} here{i % 31}" for i in range(124)]  # 31 texts, four times each
    lab.states = lab.states[np.arange(124) % 31]
    lab.lengths = [10] * 124
    lab.labels = ["a"] * 124
    with_influence(lab, np.random.default_rng(11).lognormal(size=31)[np.arange(124) % 31])
    places = range(124)
    apart = fit(cheap_features(lab.pool(), places), influence(lab), lab.pool(), places, lab.losses)
    assert apart.notes["spearman"] < 0.3
    lab.texts = [f"{text} {i}" for i, text in enumerate(lab.texts)]  # told apart, twins fall into other folds
    leaking = fit(cheap_features(lab.pool(), places), influence(lab), lab.pool(), places, lab.losses)
    assert leaking.notes["spearman"] > 0.8


def test_equal_texts_share_a_fold_and_every_example_is_held_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(60)
    lab.texts = [f"text {i % 25}" for i in range(60)]
    fitted_on: list[set[int]] = []
    held_out: list[set[int]] = []

    class Spy(Regressor):
        def __init__(self, blocks: Any, target: Any) -> None:
            super().__init__(blocks, target)
            fitted_on.append({int(place) for place in blocks[-1][:, 0]})

        def predict(self, blocks: Any) -> list[float]:
            held_out.append({int(place) for place in blocks[-1][:, 0]})
            return super().predict(blocks)

    monkeypatch.setattr(predictor, "Regressor", Spy)
    fit([np.arange(60.0)[:, None]], influence(lab), lab.pool(), range(60), lab.losses)
    assert sorted(place for fold in held_out for place in fold) == list(range(60))
    for rows, others in zip(fitted_on, held_out, strict=False):
        assert rows | others == set(range(60))
        assert not {i % 25 for i in rows} & {i % 25 for i in others}
    assert fitted_on[5] == set(range(60))  # the last one, which predicts, learns from all


def test_what_a_record_says_of_the_predictor() -> None:
    lab = Lab(300)
    few = Predicted().few(lab.pool())
    lab.losses = influence(lab) ** 2  # in the order of J
    notes = Predicted().select(lab.pool()).notes["predictor"]
    assert set(notes) == {
        "measured",
        "folds",
        "features",
        "spearman",
        "spearman_within_class",
        "spearman_of_loss",
        "spearman_of_loss_within_class",
    }
    assert (notes["measured"], notes["folds"], notes["features"]) == (len(few), 5, "forward")
    assert (notes["spearman_of_loss"], notes["spearman_of_loss_within_class"]) == (1.0, 1.0)
    assert 0.9 < notes["spearman_within_class"] <= 1
    cheap = Predicted(features="cheap").select(lab.pool()).notes["predictor"]
    assert cheap["features"] == "cheap"
    assert cheap["spearman"] < notes["spearman"]  # it has not seen the loss


def test_correlations_within_classes_weigh_by_size_and_leave_small_classes_out() -> None:
    up, down = np.arange(10.0), -np.arange(10.0)
    one, other = np.concatenate([up[:5], up, up[:4]]), np.concatenate([up[:5], down, up[:4]])
    labels = ["a"] * 5 + ["b"] * 10 + ["c"] * 4  # 1, -1, and too few
    assert within_class(one, other, labels) == pytest.approx((5 - 10) / 15)
    assert within_class(one[-4:], other[-4:], labels[-4:]) is None
    level = np.concatenate([np.ones(5), up])  # a class without ranks does not count
    assert within_class(level, np.concatenate([up[:5], up]), labels[:15]) == 1.0


def test_a_correlation_between_classes_alone_is_seen_through() -> None:
    lab = Lab(400)
    gap = np.array([{"a": 0.0, "b": 3.0, "c": 6.0}[label] for label in lab.labels])
    random = np.random.default_rng(2)
    with_influence(lab, np.exp(gap + random.normal(size=400)))
    lab.states[:] = random.normal(size=lab.states.shape)
    notes = Predicted(measured=0.4).select(lab.pool()).notes["predictor"]
    assert notes["spearman"] > 0.6
    assert abs(notes["spearman_within_class"]) < 0.25


# --- hard cases -----------------------------------------------------------------------------------------


def test_examples_without_any_gradient_are_predicted_lowest() -> None:
    lab = Lab(200)
    still = np.arange(200) % 3 == 0
    lab.norms[still] = 0
    lab.states[:, 2] += 4 * still  # and it can be known
    scores, notes = Predicted(measured=0.5).scores(lab.pool())
    assert notes["spearman"] > 0.75
    assert max(np.array(scores)[still]) < np.median(np.array(scores)[~still])
    kept = Predicted(measured=0.5).select(lab.pool()).places
    assert not still[list(kept)].any()


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_influence_that_is_the_same_everywhere_is_refused(value: float) -> None:
    lab = with_influence(Lab(100), value)
    with pytest.raises(TrainingError, match="correlation with J is not defined: all values are equal, the floor is -1"):
        Predicted(floor=-1.0).select(lab.pool())


@pytest.mark.parametrize("features", ["forward", "cheap"])
@pytest.mark.parametrize("n", [4, 5, 12, 63, 64, 65])
def test_few_examples_are_fitted_or_refused_without_a_warning(n: int, features: Any) -> None:
    lab = Lab(n)
    made = Predicted(features=features, floor=-1.0)
    if n < 5:  # fewer texts than folds: nothing is held out
        with pytest.raises(TrainingError, match="not defined"):
            made.select(lab.pool())
        return
    found = made.select(lab.pool())
    assert len(found.places) == math.floor(0.3 * n)
    json.dumps(found.notes, allow_nan=False)


def test_one_class_one_length_and_one_text_over_and_over_are_no_trouble() -> None:
    lab = Lab(200)
    lab.labels, lab.lengths = ["a"] * 200, [48] * 200
    lab.texts = ["the same" if i % 4 else f"text {i}" for i in range(200)]
    for features in ("forward", "cheap"):
        notes = build_selection("predicted", {"features": features}).select(lab.pool()).notes["predictor"]
        assert notes["spearman"] > 0.5
        assert notes["spearman_within_class"] == pytest.approx(notes["spearman"])
        assert notes["spearman_of_loss_within_class"] == pytest.approx(notes["spearman_of_loss"])


def test_free_answers_do_not_make_a_feature_each() -> None:
    lab = Lab(400)
    lab.labels = [f"answer {i}" if i % 4 else "the same" for i in range(400)]
    classes = blocks_of(lab)[3]
    assert classes.shape == (400, 100)  # at most, the most common ones first; here as many as examples were
    assert classes.sum(0).max() == 100 and sorted(set(classes.sum(0))) == [1, 100]
    assert Predicted().select(lab.pool()).notes["predictor"]["spearman"] > 0.9


def test_losses_of_nothing_and_of_very_much_are_no_trouble() -> None:
    lab = Lab(100)
    lab.losses[:40], lab.losses[40:60] = 0.0, 1e4
    assert np.isfinite(np.hstack(blocks_of(lab))).all()
    assert len(Predicted().select(lab.pool()).places) == 30


@pytest.mark.parametrize("given", [{"measured": 0.0}, {"measured": 1.5}, {"floor": -1.1}, {"floor": 1.01}])
def test_shares_and_floors_that_cannot_be_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=r"measured is a share in \(0, 1\], floor a rank correlation in \[-1, 1\]"):
        build_selection("predicted", given).check(build_method("full", {}), Target("encoder", SIZES))


@pytest.mark.parametrize("given", [{"measured": 1.0}, {"floor": -1.0}, {"floor": 1.0}])
def test_shares_and_floors_at_their_ends_are_taken(given: dict[str, float]) -> None:
    build_selection("predicted", given).check(build_method("full", {}), Target("encoder", SIZES))


# --- features and regression ----------------------------------------------------------------------------


def blocks_of(lab: Lab) -> list[NDArray[Any]]:
    return forward_features(lab.pool(), range(len(lab.losses)), Measured(lab.losses, lab.norms, lab.states))


def fit_of(lab: Lab) -> predictor.Fitted:
    return fit(blocks_of(lab), influence(lab), lab.pool(), range(len(lab.losses)), lab.losses)


def test_features_of_a_forward_pass() -> None:
    lab = Lab(10)
    places = [8, 2, 9]  # classes b, a, c
    seen = Measured(np.array([math.log(2), 1.0, 30.0]), None, lab.states[places])
    loss, log_loss, log_missed, classes, states = forward_features(lab.pool(), places, seen)
    assert loss.tolist() == [[math.log(2)], [1.0], [30.0]]
    assert log_loss[:, 0] == pytest.approx([math.log(math.log(2)), 0.0, math.log(30)])
    assert log_missed[:, 0] == pytest.approx([math.log(0.5), math.log(1 - 1 / math.e), 0.0], abs=1e-12)
    assert classes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert np.array_equal(states, lab.states[places])


def test_features_that_ask_no_pass() -> None:
    lab = Lab(10)
    places = [8, 2]
    lab.texts[8], lab.texts[2] = "red red fox", ""
    lengths, classes, words, inputs = cheap_features(lab.pool(), places)
    assert lengths[:, 0] == pytest.approx(np.log([lab.lengths[8], lab.lengths[2]]))
    assert classes.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert words.shape == (2, 1024)
    # red twice, fox, "red red" and "red fox" once each: 2, 1, 1, 1 over the root of 7, signs by hash
    assert sorted(abs(words[0][words[0] != 0])) == pytest.approx([1 / 7**0.5] * 3 + [2 / 7**0.5])
    assert not words[1].any()
    assert np.array_equal(inputs, lab.states[places, :4])


@given(st.floats(1e-3, 1e3), st.floats(-5, 5), st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_the_unit_and_the_origin_of_a_block_decide_nothing(unit: float, origin: float, which: int) -> None:
    lab = Lab(60)
    blocks = [np.asarray(block, dtype=np.float64) for block in blocks_of(lab)]
    target = np.log(influence(lab))
    moved = [unit * block + origin if i == which else block for i, block in enumerate(blocks)]
    assert Regressor(moved, target).predict(moved) == pytest.approx(Regressor(blocks, target).predict(blocks), abs=1e-5)


def test_hundreds_of_coordinates_do_not_drown_the_one_feature_that_tells() -> None:
    random = np.random.default_rng(4)
    telling, many = random.normal(size=(400, 1)), random.normal(size=(400, 384))
    target = telling[:, 0] + 0.1 * random.normal(size=400)
    model = Regressor([telling[:100], many[:100]], target[:100])
    predicted = model.predict([telling[100:], many[100:]])
    assert (spearman(predicted, target[100:].tolist()) or 0) > 0.95


def test_a_feature_without_spread_adds_nothing() -> None:
    lab = Lab(60)
    blocks, target = blocks_of(lab), np.log(influence(lab))
    wider = [*blocks, np.full((60, 2), 7.0)]
    assert Regressor(wider, target).predict(wider) == pytest.approx(Regressor(blocks, target).predict(blocks))
