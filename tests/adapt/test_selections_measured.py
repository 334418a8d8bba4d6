"""What selections choose by J and T, what they ask and tell: influence, cross, iterative, published scores."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.adapt.methods import Target, build_method
from cprbench.adapt.selection import (
    Measured,
    build_selection,
)
from cprbench.adapt.selection.scores import ScoresInfo, Writer
from cprbench.blueprint.concentration import fit_exponent, mass_curve
from cprbench.errors import MethodError, SpecError
from cprbench.schema import parse
from tests.adapt.test_selections import SIZES, Lab

# --- influence ------------------------------------------------------------------------------------------


def lab_of(norms: Any, **changes: Any) -> Lab:
    """Return a lab whose T is `norms` (examples, submodules), all of class a."""
    lab = Lab(len(norms))
    lab.norms = np.asarray(norms, dtype=np.float64)
    lab.labels = ["a"] * len(norms)
    vars(lab).update(changes)
    return lab


def lab_ranked(order: Sequence[float], **changes: Any) -> Lab:
    """Return a lab whose J is `order`."""
    return lab_of([[0.0, value, 0.0, 0.0] for value in order], **changes)


def test_influence_keeps_the_largest_gradient_norms_measured_once_on_every_example() -> None:
    lab = lab_of([[3, 4, 0, 0], [0, 0, 4.9, 0], [4, 4, 4, 4], [0, 6, 0, 0], [1, 1, 1, 1]])  # J = 5, 4.9, 8, 6, 2
    found = build_selection("influence", {"q": 0.6}).select(lab.pool())
    assert found.places == (0, 2, 3)  # by sums the second would come before the fourth
    assert lab.measured == [([0, 1, 2, 3, 4], True, False)]
    assert not lab.embedded and not lab.steps


def test_a_band_of_influence_leaves_the_largest_and_the_least_out() -> None:
    lab = lab_ranked([9, 0, 8, 1, 7, 2, 6, 3, 5, 4])
    assert build_selection("influence", {"band": "20..80"}).select(lab.pool()).places == (4, 5, 6, 7, 8, 9)
    assert build_selection("influence", {"band": "80..100"}).select(lab.pool()).places == (0, 2)


def test_equal_influence_falls_by_the_hash_of_ids_and_not_by_the_order_of_the_file() -> None:
    ids, lab = ["a", "c", "j", "k"], lab_of(np.zeros((4, 4)))
    made = build_selection("influence", {"q": 0.5})
    assert made.select(lab.pool(ids=ids)).places == (0, 3)  # hashes rank them a k c j (test_ranking)
    assert made.select(lab.pool(ids=ids[::-1])).places == (0, 3)
    notes = made.select(lab.pool(ids=ids)).notes["cross_influence"]  # no gradient anywhere: no exponent
    assert notes["sums"] == notes["selected_sums"] == dict.fromkeys(SIZES, 0.0)
    assert (notes["gamma"], notes["delta"]) == (None, None)


def test_a_class_that_is_lost_is_named_and_equal_texts_are_counted() -> None:
    lab = lab_ranked([5, 4, 3, 2, 1, 0], labels=["b", "b", "b", "c", "a", "b"], texts=["s", "t", "s", "s", "u", "v"])
    notes = build_selection("influence", {"q": 0.5}).select(lab.pool()).notes
    assert (notes["classes_dropped"], notes["duplicate_texts"]) == (["a", "c"], 1)
    guarded = build_selection("influence", {"q": 0.5, "class_guard": True}).select(lab.pool())
    assert guarded.places == (0, 3, 4)
    assert (guarded.notes["classes_dropped"], guarded.notes["duplicate_texts"]) == ([], 1)
    everything = build_selection("influence", {"q": 1}).select(lab.pool())
    assert everything.notes["duplicate_texts"] == 2


# --- T in a record --------------------------------------------------------------------------------------


def test_sums_of_t_and_its_exponents_are_those_computed_by_hand() -> None:
    lab = lab_of([[1.0, 3.0], [0.0, 0.0], [2.0, 0.5]])
    found = build_selection("influence", {"q": 0.34}).select(lab.pool(sizes={"wide": 3, "thin": 1}))
    assert found.places == (0,)
    notes = found.notes["cross_influence"]
    assert notes["examples"] == 3
    assert notes["sums"] == {"wide": 3.0, "thin": 3.5}
    assert notes["squares"] == {"wide": 5.0, "thin": 9.25}
    assert notes["selected_sums"] == {"wide": 1.0, "thin": 3.0}
    assert notes["selected_squares"] == {"wide": 1.0, "thin": 9.0}
    # thin comes first, denser per parameter: a quarter of the parameters holds 3.5/6.5 of the sum
    assert notes["gamma"] == pytest.approx(math.log(3.5 / 6.5) / math.log(0.25), rel=1e-4)
    assert notes["delta"] == pytest.approx(fit_exponent(mass_curve([4.0, 0.0, 2.5]))[0], rel=1e-12)
    assert notes["gamma_r_squared"] is None  # through one point


def test_submodules_stand_in_the_order_of_their_norm_per_root_of_parameters() -> None:
    # wide: norm 4 over 4 parameters, density 2; thin: norm 2.5 over 1. By norm or squared norm wide came first.
    notes = build_selection("influence", {}).select(lab_of([[4.0, 2.5]] * 4).pool(sizes={"wide": 4, "thin": 1})).notes
    assert notes["cross_influence"]["gamma"] == pytest.approx(math.log(2.5 / 6.5) / math.log(0.2), rel=1e-4)


def test_the_density_of_a_submodule_is_its_norm_and_not_its_sum_per_parameter() -> None:
    # wide: sum 4 of norm 4 over 4 parameters, density 2; thin: sum 5 of norm 5/sqrt(10) over 1, density 1.58.
    norms = np.array([[4.0, 0.5], *[[0.0, 0.5]] * 9])
    notes = build_selection("influence", {}).select(lab_of(norms).pool(sizes={"wide": 4, "thin": 1})).notes
    assert notes["cross_influence"]["gamma"] == pytest.approx(math.log(4 / 9) / math.log(0.8), rel=1e-4)


@given(st.sets(st.sampled_from(list(SIZES)), min_size=1), st.floats(0.05, 1), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_share_of_eq_34_can_be_read_off_a_record(cells: set[str], q: float, seed: int) -> None:
    lab = Lab(30, seed)
    found = build_selection("influence", {"q": q}).select(lab.pool())
    notes, rows = found.notes["cross_influence"], [list(SIZES).index(cell) for cell in cells]
    share = sum(notes["selected_sums"][cell] for cell in cells) / sum(notes["sums"].values())
    assert share == pytest.approx(lab.norms[np.ix_(found.places, rows)].sum() / lab.norms.sum(), rel=1e-9)
    assert sum(notes["squares"].values()) == pytest.approx((lab.norms**2).sum())
    assert notes["gamma"] > 0 and 0 < notes["delta"] < 1
    if q == 1:
        assert notes["selected_sums"] == notes["sums"]


def test_all_examples_have_all_of_t() -> None:
    notes = build_selection("cross", {"q": 1}).select(Lab(30).pool()).notes["cross_influence"]
    assert notes["selected_sums"] == notes["sums"]
    assert notes["selected_squares"] == notes["squares"]


# --- published scores -----------------------------------------------------------------------------------


def publish(path: Path, lab: Lab, order: Sequence[int], sizes: dict[str, int] | None = None, **changes: Any) -> str:
    """Write a scores file with these rows of a lab; returns its path."""
    sizes = sizes or SIZES
    model = {"source": "acme/tiny", "label": "tiny", "weights_sha256": "a1" * 32, "kind": "encoder", "revision": None}
    data = {
        "schema": "cprbench.scores/1",
        "task": {"name": "made-up", "version": 1, "data_sha256": "d0" * 32},
        "split": "train",
        "model": {**model, "parameters": sum(sizes.values())},
        "sizes": sizes,
        "head": None,
        "warmup_steps": 0,
        "block": 3,
        "max_tokens": 48,
        "precision": "fp32",
        "examples": len(order),
        "made": {"tool": "cprbench 0.1.0", "seconds": 2.5, "flops": 10**9},
        **changes,
    }
    with Writer(path, list(sizes)) as writer:
        rows = list(order)
        writer.write([f"x{i}" for i in rows], [lab.labels[i] for i in rows], lab.losses[rows], lab.norms[rows])
        writer.close(parse(ScoresInfo, data, "test"))
    return str(path)


def test_published_scores_choose_as_measured_ones_do_and_nothing_is_measured(tmp_path: Path) -> None:
    lab, wide = Lab(30), Lab(50)
    wide.norms[:30], wide.losses[:30] = lab.norms, lab.losses
    path = publish(tmp_path / "s.parquet", wide, range(49, -1, -1))  # more than the pool, in another order
    for chosen in ({"q": 0.3}, {"band": "20..70"}, {"q": 0.2, "class_guard": True}):
        expected = build_selection("influence", chosen).select(lab.pool())
        lab.measured.clear()
        made = build_selection("influence", {**chosen, "scores": path})
        found = made.select(lab.pool())
        assert found.places == expected.places
        scores = found.notes.pop("scores")
        assert found.notes == expected.notes
        assert scores["block"] == 3
        assert {"tool": "cprbench 0.1.0", "seconds": 2.5, "flops": 10**9}.items() <= scores["made"].items()
        assert not lab.asked
        assert not made.warms_head
        json.dumps(scores, allow_nan=False)


def test_published_scores_that_lack_examples_or_are_of_other_submodules_are_refused(tmp_path: Path) -> None:
    lab = Lab(30)
    made = build_selection("influence", {"scores": publish(tmp_path / "few", lab, range(28))})
    with pytest.raises(SpecError, match="has no score of 2 of 30 training examples, the first 'x28'"):
        made.select(lab.pool())
    other = publish(tmp_path / "other", lab, range(30), {"embed": 400, "attn.0": 100, "ffn.1": 200, "head": 10})
    with pytest.raises(SpecError, match=r"has the submodules embed, attn.0, ffn.1, head.*not this model's"):
        build_selection("influence", {"scores": other}).select(lab.pool())
    assert not lab.asked


def test_published_scores_of_other_weights_or_other_data_are_refused_before_the_run(tmp_path: Path) -> None:
    made = build_selection("influence", {"scores": publish(tmp_path / "s", Lab(9), range(9))})
    full = build_method("full", {})
    made.check(full, Target("encoder", SIZES, weights_sha256="a1" * 32, data_sha256="d0" * 32))
    with pytest.raises(SpecError, match="its model has the sha256 a1a1a1a1a1a1…, this run's has b2b2b2b2b2b2…"):
        made.check(full, Target("encoder", SIZES, weights_sha256="b2" * 32, data_sha256="d0" * 32))
    with pytest.raises(SpecError, match="its data has the sha256 d0d0d0d0d0d0…, this run's has e3e3e3e3e3e3…"):
        made.check(full, Target("encoder", SIZES, weights_sha256="a1" * 32, data_sha256="e3" * 32))
    with pytest.raises(SpecError, match="cannot be read"):
        build_selection("influence", {"scores": str(tmp_path / "none")}).check(full, Target("encoder", SIZES))


# --- cross ----------------------------------------------------------------------------------------------


def test_cross_ranks_by_the_submodules_that_train_alone() -> None:
    lab = lab_of([[9, 3, 9, 4], [0, 4.9, 0, 0], [99, 0, 99, 0], [0, 0, 0, 6], [0, 4, 0, 4]])  # 5, 4.9, 0, 6, 5.66
    made = build_selection("cross", {"q": 0.6})
    assert made.select(lab.pool(trained=("head", "attn.0"))).places == (0, 3, 4)
    assert made.select(lab.pool(trained=("embed",))).places[:2] == (0, 2)
    everything = made.select(lab.pool(trained=tuple(SIZES)))
    assert everything.places == build_selection("influence", {"q": 0.6}).select(lab.pool()).places
    assert lab.measured == [([0, 1, 2, 3, 4], True, False)] * 4
    assert everything.notes["cross_influence"]["sums"]["embed"] == 108  # of all submodules, trained or not


def test_cross_takes_a_band_of_what_trains() -> None:
    lab = lab_ranked(range(10))
    assert build_selection("cross", {"band": "20..50"}).select(lab.pool()).places == (2, 3, 4)


def test_cross_is_refused_where_nothing_of_the_model_trains() -> None:
    made = build_selection("cross", {})
    with pytest.raises(MethodError, match="'head' trains none"):
        made.check(build_method("head", {}), Target("encoder", SIZES))
    for name in ("partial", "lora", "bitfit"):
        made.check(build_method(name, {}), Target("encoder", SIZES))
    with pytest.raises(MethodError, match="by the submodules that train, and none does"):
        made.select(Lab(30).pool(trained=()))


# --- iterative ------------------------------------------------------------------------------------------


class Changing(Lab):
    """A lab whose J changes with every round of training: `rounds` holds J after the first, the second…"""

    rounds: Sequence[Sequence[float]]

    def measure(self, places: Sequence[int], *, gradients: bool = True, states: bool = False) -> Measured:
        influence = np.asarray(self.rounds[len(self.steps) - 1], dtype=np.float64)
        self.norms = np.zeros((len(influence), len(SIZES)))
        self.norms[:, 1] = influence
        return super().measure(places, gradients=gradients, states=states)


def test_iterative_trains_and_narrows_down_round_by_round() -> None:
    lab = Changing(100)
    late = [1000.0 if i < 50 else 100 - i for i in range(100)]  # what is left out by then comes first
    lab.rounds = [range(100), late]
    made = build_selection("iterative", {"q": 0.25, "steps": 4})
    found = made.select(lab.pool())
    by_lot = sorted(build_selection("random", {"q": 0.25}).select(Lab(100).pool()).places)
    assert lab.steps == [(by_lot, 4), (list(range(50, 100)), 4)]  # first by lot, then the half of largest J
    assert lab.measured == [(list(range(100)), True, False), (list(range(50, 100)), True, False)]
    assert found.places == tuple(range(50, 75))  # the largest J of the last round among those left
    assert found.notes["measured"] == [100, 50]
    # T is that of the round that measured every example, its selected part that of the final choice
    assert found.notes["cross_influence"]["examples"] == 100
    assert found.notes["cross_influence"]["sums"]["attn.0"] == sum(range(100))
    assert found.notes["cross_influence"]["selected_sums"]["attn.0"] == sum(range(50, 75))


def test_shares_fall_by_equal_factors_to_the_share_asked() -> None:
    lab = Lab(1000)
    made = build_selection("iterative", {"q": 0.1, "rounds": 3, "steps": 2})
    assert made.select(lab.pool()).notes["measured"] == [1000, 464, 215]  # 0.1^(1/3) = 0.4642
    assert [len(places) for places, _ in lab.steps] == [100, 464, 215]
    assert made.trains == 6  # type: ignore[attr-defined]


def test_every_round_keeps_the_share_of_every_class() -> None:
    lab = lab_ranked([100.0 - i for i in range(100)], labels=["a"] * 60 + ["b"] * 40)  # all of b comes last
    found = build_selection("iterative", {"q": 0.25, "class_guard": True}).select(lab.pool())
    assert found.places == (*range(15), *range(60, 70))
    assert Counter(lab.labels[place] for place in lab.steps[1][0]) == {"a": 30, "b": 20}


def test_one_round_trains_once_measures_all_and_takes_the_best() -> None:
    lab = Lab(50)
    found = build_selection("iterative", {"rounds": 1}).select(lab.pool())
    assert [len(places) for places, _ in lab.steps] == [15]
    assert found.places == build_selection("influence", {}).select(lab.pool()).places


@given(st.integers(3, 60), st.floats(0.02, 1), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_last_round_keeps_the_whole_examples_in_q(n: int, q: float, rounds: int, guard: bool) -> None:
    lab, q = Lab(n), max(q, 1.01 / n)
    made = build_selection("iterative", {"q": q, "rounds": rounds, "class_guard": guard})
    found = made.select(lab.pool())
    assert len(found.places) == made.kept(n)
    counts = found.notes["measured"]
    assert counts == sorted(counts, reverse=True) and counts[0] == n and len(counts) == rounds


@pytest.mark.parametrize("given", [{"rounds": 0}, {"steps": 0}, {"rounds": -1}])
def test_no_rounds_and_no_steps_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="both are at least 1"):
        build_selection("iterative", given).check(build_method("full", {}), Target("encoder", SIZES))
