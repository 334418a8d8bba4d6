"""Contract tests over the selection registry, and what each selection chooses, asks and tells of a small pool."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cprbench.adapt.methods import Target, build_method
from cprbench.adapt.selection import (
    SELECTIONS,
    Measured,
    Pool,
    build_selection,
    coreset,
    selection_class,
    selection_label,
    settings_known,
)
from cprbench.adapt.selection.scores import ScoresInfo, Writer
from cprbench.adapt.settings import label, pinned, settings_of, unpinned, without_paths
from cprbench.blueprint.concentration import fit_exponent, mass_curve
from cprbench.errors import MethodError, SpecError
from cprbench.schema import finite, parse

SIZES = {"embed": 400, "attn.0": 100, "ffn.0": 200, "head": 10}
#: What goes beyond the defaults, for every selection that has such settings.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SELECTIONS),
    *((name, {"q": 0.47, "class_guard": True}) for name in SELECTIONS if name != "all"),
    *((name, {"band": "20..70"}) for name in ("influence", "predicted", "cross")),
    *((name, {"band": "35..100", "class_guard": True}) for name in ("influence", "predicted", "cross")),
    ("predicted", {"features": "cheap", "measured": 0.5, "floor": 0.1}),
    ("iterative", {"rounds": 3, "steps": 2}),
    ("coreset", {"objective": "facility-location", "embedding": "input"}),
]


class Lab:
    """A pool of made-up examples that keeps an account of all that is asked of it.

    log J(z) is linear in two of the eight coordinates of the states; T deals J out by random shares.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.states = random.normal(size=(n, 8)).astype(np.float32)
        self.losses = random.gamma(2.0, size=n)
        deal = random.dirichlet(np.ones(len(SIZES)), size=n) ** 0.5
        self.norms = np.exp(2 * self.states[:, :1].astype(np.float64) - self.states[:, 1:2]) * deal
        self.labels = ["a" if i % 10 < 6 else "b" if i % 10 < 9 else "c" for i in range(n)]
        self.texts = [f"word{i} of text{i * i}" for i in range(n)]
        self.lengths = [5 + i * 7 % 40 for i in range(n)]
        self.trained: Sequence[str] = ("attn.0", "head")
        self.affordable = 7
        self.measured: list[tuple[list[int], bool, bool]] = []  # (places, gradients, states)
        self.embedded: list[list[int]] = []
        self.steps: list[tuple[list[int], int]] = []
        self.bills: list[tuple[list[int], float]] = []

    def measure(self, places: Sequence[int], *, gradients: bool = True, states: bool = False) -> Measured:
        rows = list(places)
        self.measured.append((rows, gradients, states))
        return Measured(
            self.losses[rows], self.norms[rows] if gradients else None, self.states[rows] if states else None
        )

    def input_means(self, places: Sequence[int]) -> NDArray[Any]:
        self.embedded.append(list(places))
        return self.states[list(places), :4]

    def train(self, places: Sequence[int], steps: int) -> None:
        self.steps.append((list(places), steps))

    def afford(self, order: Sequence[int], flops: float) -> int:
        self.bills.append((list(order), flops))
        return self.affordable

    def pool(self, seed: int = 1, **changes: Any) -> Pool:
        n = len(self.losses)
        given = Pool(
            ids=[f"x{i}" for i in range(n)],
            labels=self.labels,
            texts=self.texts,
            lengths=self.lengths,
            seed=seed,
            sizes=SIZES,
            trained=self.trained,
            measure=self.measure,
            input_means=self.input_means,
            train=self.train,
            afford=self.afford,
        )
        return dataclasses.replace(given, **changes)

    @property
    def asked(self) -> bool:
        """Whether anything was asked that costs."""
        return bool(self.measured or self.embedded or self.steps or self.bills)


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


# --- the contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_is_a_frozen_dataclass_of_its_settings_named_like_its_file(name: str) -> None:
    assert dataclasses.is_dataclass(selection_class(name))
    kind = selection_class(name)
    assert kind.name == name == kind.__module__.rpartition(".")[2]
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().name = "other"
    assert settings_known(name) == set(settings_of(kind()))
    assert set(kind.label_settings) | set(getattr(kind, "files", ())) <= settings_known(name)
    assert SELECTIONS[name][1]


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_settings_come_back_from_a_record(name: str, given: dict[str, Any]) -> None:
    made = build_selection(name, given)
    stored = json.loads(json.dumps(settings_of(made)))
    assert given.items() <= stored.items()
    assert build_selection(name, stored) == made


@pytest.mark.parametrize("name", SELECTIONS)
def test_an_arms_name_says_the_share_and_nothing_for_all_data(name: str) -> None:
    if name == "all":
        assert selection_label(build_selection(name, {})) == ""
        return
    assert selection_label(build_selection(name, {})).startswith(f"selection={name} q=0.3")
    assert "class_guard=true" in selection_label(build_selection(name, {"class_guard": True}))


@pytest.mark.parametrize("name", SELECTIONS)
def test_settings_that_a_selection_lacks_are_refused(name: str) -> None:
    wanted = "Selection 'all' has no settings" if name == "all" else "Did you mean 'class_guard'"
    with pytest.raises(SpecError, match=rf"unknown setting selection.clas_guard. {wanted}"):
        build_selection(name, {"clas_guard": True})


def test_an_unknown_selection_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="unknown selection 'influense'. Did you mean 'influence'"):
        build_selection("influense", {})


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("random", {"q": "0.3"}, "selection.q = '0.3': it should be a valid number"),
        ("random", {"q": True}, "selection.q = True: it should be a valid number"),
        ("random", {"flops": math.inf}, "selection.flops = inf: it should be a finite number"),
        ("predicted", {"floor": math.nan}, "selection.floor = nan: it should be a finite number"),
        ("predicted", {"features": "deep"}, "selection.features = 'deep': it should be 'cheap' or 'forward'"),
        ("iterative", {"rounds": 1.5}, "selection.rounds = 1.5: it should be a valid integer"),
        ("coreset", {"objective": "cover"}, "it should be 'k-center' or 'facility-location'"),
        ("influence", {"class_guard": 1}, "it should be a valid boolean"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(name: str, given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        build_selection(name, given)


@pytest.mark.parametrize(("name", "given"), VARIANTS)
@pytest.mark.parametrize("n", [70, 97])
def test_as_many_are_kept_as_was_said_and_always_the_same(name: str, given: dict[str, Any], n: int) -> None:
    made = build_selection(name, given)
    selected = made.select(Lab(n).pool())
    places = list(selected.places)
    assert made.kept(n) == len(places) > 0
    assert places == sorted(set(places))
    assert all(type(place) is int and 0 <= place < n for place in places)
    assert made.select(Lab(n).pool()) == selected
    assert selected.flops is None


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_what_a_record_keeps_of_a_choice_is_json_of_finite_numbers(name: str, given: dict[str, Any]) -> None:
    selected = build_selection(name, given).select(Lab(80).pool())
    notes = selected.notes
    assert json.loads(json.dumps(notes, allow_nan=False)) == finite(notes)
    if name != "all":
        assert notes["q_asked"] == (None if "band" in given else given.get("q", 0.3))
        assert notes["q_reached"] == len(selected.places) / 80
        assert notes["pool"] == 80


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name != "all"])
def test_a_share_that_keeps_none_is_refused_before_and_in_the_run_naming_the_least(name: str) -> None:
    made = build_selection(name, {"q": 0.01})
    for refused in (lambda: made.kept(70), lambda: made.select(Lab(70).pool())):
        with pytest.raises(SpecError, match=r"q = 0.01 of 70 examples keeps none. The smallest q here is 0.01429\."):
            refused()
    assert build_selection(name, {"q": 0.01429}).kept(70) == 1
    with pytest.raises(SpecError, match=r"outside \(0, 1\]"):
        build_selection(name, {"q": 1.5}).kept(70)


@pytest.mark.parametrize("name", ["influence", "predicted", "cross"])
def test_a_band_that_keeps_none_or_is_none_is_refused_before_the_run(name: str) -> None:
    for guard in (False, True):
        with pytest.raises(SpecError, match="'50..50.1' of 70 examples keeps none"):
            build_selection(name, {"band": "50..50.1", "class_guard": guard}).kept(70)
        with pytest.raises(SpecError, match="write LOW..HIGH"):
            build_selection(name, {"band": "80..20", "class_guard": guard}).kept(70)


@pytest.mark.parametrize(("name", "given"), [v for v in VARIANTS if v[1].get("class_guard")])
def test_the_class_guard_keeps_some_of_every_class(name: str, given: dict[str, Any]) -> None:
    lab = Lab(80)
    selected = build_selection(name, given).select(lab.pool())
    assert {lab.labels[place] for place in selected.places} == {"a", "b", "c"}
    assert selected.notes["classes_dropped"] == []


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_goes_with_full_tuning(name: str) -> None:
    build_selection(name, {}).check(build_method("full", {}), Target("encoder", SIZES))


def test_planning_any_selection_imports_neither_torch_nor_numpy_nor_sklearn() -> None:
    code = (
        "import sys; from cprbench.adapt.selection import SELECTIONS, build_selection, selection_label\n"
        "assert not [m for m in sys.modules if m.startswith('cprbench.adapt.selection.')], 'listing imports'\n"
        "for name in SELECTIONS: made = build_selection(name, {}); made.kept(100); selection_label(made)\n"
        "assert not {'torch', 'numpy', 'sklearn', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pool_without_a_model_says_so() -> None:
    with pytest.raises(MethodError, match="these examples come without a model"):
        build_selection("influence", {}).select(Pool(["x"], ["a"], ["t"], [3], seed=0))
    with pytest.raises(ValueError, match="no gradients were measured"):
        _ = Measured(np.ones(2)).influence


# --- settings and files ---------------------------------------------------------------------------------


def test_labels_show_what_differs_from_the_defaults_and_leave_out_what_is_not_used() -> None:
    def shown(name: str, **given: Any) -> str:
        return label(build_selection(name, given))

    assert shown("influence") == "influence q=0.3"
    assert shown("influence", q=1) == "influence q=1"
    assert shown("influence", band="20..80", q=0.5) == "influence band=20..80"
    assert shown("influence", scores="/a/folder/mine.v1.parquet") == "influence q=0.3 scores=mine.v1"
    assert shown("predicted") == "predicted q=0.3 features=forward"
    assert shown("predicted", features="cheap") == "predicted q=0.3 features=cheap"
    assert shown("random", flops=1.5e12) == "random flops=1.5e+12"
    assert shown("random", flops=123456789.0) == "random flops=123456789.0"  # no digit is lost
    assert shown("random", flops=9.0, flops_of="partial k=0.15") == "random flops_of=partial k=0.15"
    assert shown("coreset", objective="facility-location") == "coreset q=0.3 objective=facility-location"


def test_a_file_is_stored_by_its_name_and_content_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(b"abc")
    stored, paths = pinned(build_selection("influence", {"scores": str(path)}))
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, FIPS 180-2
    assert (stored["scores"], stored["scores_sha256"]) == ("s.parquet", sha)
    assert str(tmp_path) not in json.dumps(stored)
    assert paths == {"scores": str(path)}
    found = build_selection("influence", unpinned("selection", stored, paths))
    assert found == build_selection("influence", {"scores": str(path)})
    moved = path.rename(tmp_path / "t.parquet")
    again, _ = pinned(build_selection("influence", {"scores": str(moved)}))
    assert again != stored
    assert without_paths(again) == without_paths(stored)
    assert without_paths(stored)["scores_sha256"] == sha
    assert without_paths(stored)["q"] == 0.3


def test_settings_without_files_are_stored_as_they_are() -> None:
    made = build_selection("influence", {"q": 0.2})
    assert pinned(made) == (settings_of(made), {})
    assert unpinned("selection", settings_of(made), {}) == settings_of(made)


def test_a_file_that_changed_or_went_since_the_plan_is_refused_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(b"abc")
    stored, paths = pinned(build_selection("influence", {"scores": str(path)}))
    path.write_bytes(b"abd")
    with pytest.raises(SpecError, match=r"selection.scores = s.parquet: has changed since the run was") as caught:
        unpinned("selection", stored, paths)
    path.unlink()
    with pytest.raises(SpecError, match=r"selection.scores = s.parquet: .* cannot be read now") as gone:
        unpinned("selection", stored, paths)
    assert str(tmp_path) not in f"{caught.value}{gone.value}"
    with pytest.raises(SpecError, match="s.parquet"):
        pinned(build_selection("influence", {"scores": str(path)}))


# --- all and random -------------------------------------------------------------------------------------


def test_all_keeps_every_example_and_asks_nothing() -> None:
    lab = Lab(9)
    made = build_selection("all", {})
    assert made.select(lab.pool()).places == tuple(range(9))
    assert made.kept(9) == 9
    assert not made.chooses
    assert not lab.asked


def drawn(n: int = 40, seed: int = 1, *, pool: dict[str, Any] | None = None, **given: Any) -> set[int]:
    lab = Lab(n)
    found = build_selection("random", given).select(lab.pool(seed, **(pool or {})))
    assert not lab.measured and not lab.embedded and not lab.steps
    return set(found.places)


@given(st.floats(0.03, 1), st.floats(0.03, 1), st.integers(0, 2**31))
def test_a_smaller_draw_is_a_part_of_a_larger_one(one: float, other: float, seed: int) -> None:
    assert drawn(seed=seed, q=min(one, other)) <= drawn(seed=seed, q=max(one, other))


def test_a_draw_is_of_its_seed_and_depends_on_nothing_else() -> None:
    draws = [drawn(seed=seed, q=0.5) for seed in range(20)]
    assert len({frozenset(draw) for draw in draws}) == 20
    often = Counter(place for draw in draws for place in draw)
    assert set(often) == set(range(40)) and max(often.values()) < 20  # every place is drawn, none always
    assert drawn(q=0.5, pool={"ids": [f"other{i}" for i in range(40)], "texts": ["t"] * 40}) == drawn(q=0.5)
    assert drawn(q=0.5, pool={"labels": ["one"] * 40}) == drawn(q=0.5)


def test_a_guarded_draw_keeps_the_share_of_every_class_by_the_same_permutation() -> None:
    lab = Lab(40)
    kept = drawn(q=0.3, class_guard=True)
    assert Counter(lab.labels[place] for place in kept) == {"a": 7, "b": 4, "c": 1}  # exactly 7.2, 3.6 and 1.2
    without = drawn(q=0.3)
    for label_ in "abc":
        one, other = ({place for place in some if lab.labels[place] == label_} for some in (kept, without))
        assert one <= other or other <= one


def test_a_draw_costs_nothing_and_warms_no_head() -> None:
    made = build_selection("random", {})
    assert (made.chooses, made.warms_head) == (False, False)
    for name in ("influence", "predicted", "iterative", "coreset", "cross"):
        assert build_selection(name, {}).chooses
        assert build_selection(name, {}).warms_head == (name != "coreset")


def test_a_draw_to_a_bill_takes_what_the_pool_can_afford_of_the_same_permutation() -> None:
    lab = Lab(40)
    made = build_selection("random", {"flops": 1e9, "q": 0.9})
    made.check(build_method("full", {}), Target("encoder", SIZES))
    assert made.kept(40) is None
    found = made.select(lab.pool())
    ((order, flops),) = lab.bills
    assert flops == 1e9
    assert sorted(order) == list(range(40))
    assert found.places == tuple(sorted(order[:7]))
    assert found.flops == 1e9
    assert (found.notes["flops_asked"], found.notes["q_asked"], found.notes["q_reached"]) == (1e9, None, 7 / 40)
    assert set(found.places) == drawn(q=7 / 40)  # a bill and a share draw alike
    assert not lab.measured


def test_a_bill_of_an_arm_that_has_not_run_is_refused_and_one_that_has_is_met() -> None:
    made = build_selection("random", {"flops_of": "full selection=influence q=0.3"})
    assert made.kept(40) is None
    with pytest.raises(SpecError, match="flops_of = 'full selection=influence q=0.3': that arm's bill is not known"):
        made.select(Lab(40).pool())
    known = build_selection("random", {"flops_of": "full selection=influence q=0.3", "flops": 5.0})
    assert known.select(Lab(40).pool()).flops == 5.0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"flops": -1.0}, "selection.flops = -1.0: it is above 0"),
        ({"flops": 1.0, "class_guard": True}, "class_guard goes with a share q"),
        ({"flops_of": "full", "class_guard": True}, "class_guard goes with a share q"),
    ],
)
def test_bills_that_cannot_be_are_refused_before_the_run(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        build_selection("random", given).check(build_method("full", {}), Target("encoder", SIZES))


# --- influence ------------------------------------------------------------------------------------------


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


# --- coreset --------------------------------------------------------------------------------------------


def farthest_first(points: Sequence[tuple[int, ...]], count: int, first: int) -> list[int]:
    """Farthest-first traversal as it is written down, in whole numbers."""
    taken = [first]
    while len(taken) < count:
        rest = [i for i in range(len(points)) if i not in taken]
        taken.append(max(rest, key=lambda i: (min(squared(points[i], points[j]) for j in taken), -i)))
    return taken


def squared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


GRID = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(GRID, st.data())
def test_k_center_is_farthest_first_from_the_middle(points: list[tuple[int, int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    found = coreset.k_center(np.array(points, dtype=float), count, seed=0)
    assert found == farthest_first(points, count, found[0])
    middle = np.mean(points, axis=0)
    assert math.dist(points[found[0]], middle) <= min(math.dist(p, middle) for p in points) + 1e-9
    distinct = {points[i] for i in found}
    assert len(distinct) == min(count, len(set(points)))  # duplicates come last


def radius(points: Sequence[tuple[int, int]], centers: Sequence[int]) -> float:
    return max(min(math.dist(p, points[i]) for i in centers) for p in points)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=8))
@settings(max_examples=40, deadline=None)
def test_k_center_covers_within_twice_the_best_radius(points: list[tuple[int, int]]) -> None:
    found = coreset.k_center(np.array(points, dtype=float), 3, seed=0)
    best = min(radius(points, some) for some in combinations(range(len(points)), 3))
    assert radius(points, found) <= 2 * best + 1e-9  # Gonzalez 1985, theorem 2.2


def similarity(points: NDArray[Any], taken: Any) -> float:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return float((unit @ unit[list(taken)].T).max(1).mean())


def clusters(n: int = 240) -> NDArray[Any]:
    """Return points in 8 directions of unlike sizes."""
    random = np.random.default_rng(5)
    centers = np.eye(8)[np.minimum(random.geometric(0.35, n) - 1, 7)]
    points: NDArray[Any] = (centers + 0.1 * random.normal(size=(n, 8))) * random.lognormal(size=(n, 1))
    return points


def greedy(points: NDArray[Any], count: int) -> list[int]:
    taken: list[int] = []
    for _ in range(count):
        rest = [i for i in range(len(points)) if i not in taken]
        taken.append(max(rest, key=lambda i: similarity(points, [*taken, i])))
    return taken


def test_facility_location_covers_almost_as_well_as_full_greedy_and_better_than_any_lot() -> None:
    points = clusters()
    best = similarity(points, greedy(points, 8))
    random = np.random.default_rng(0)
    by_lot = max(similarity(points, random.choice(240, 8, replace=False)) for _ in range(20))
    for seed in range(5):
        found = coreset.facility_location(points, 8, seed)
        assert len(set(found)) == 8
        assert found == coreset.facility_location(points, 8, seed)
        assert similarity(points, found) > by_lot
        assert similarity(points, found) > 0.97 * best


def test_facility_location_on_a_part_of_the_points_still_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clusters()
    monkeypatch.setattr(coreset, "_COVERED", 80)
    seen = {tuple(coreset.facility_location(points, 8, seed)) for seed in range(5)}
    assert len(seen) > 1
    random = np.random.default_rng(0)
    by_lot = np.mean([similarity(points, random.choice(240, 8, replace=False)) for _ in range(20)])
    assert min(similarity(points, found) for found in seen) > by_lot


@pytest.mark.parametrize("cover", [coreset.k_center, coreset.facility_location])
def test_a_cover_of_all_is_all_of_none_is_none_and_equal_points_are_no_trouble(cover: Any) -> None:
    points = clusters(20)
    assert sorted(cover(points, 20, 0)) == list(range(20))
    assert cover(points, 0, 0) == []
    for same in (np.zeros((6, 3)), np.ones((6, 3))):  # a zero vector has no direction
        assert len(set(cover(same, 4, 0))) == 4


@pytest.mark.parametrize("objective", ["k-center", "facility-location"])
def test_a_coreset_asks_only_for_the_embedding_that_it_covers(objective: str) -> None:
    lab = Lab(60)
    forward = build_selection("coreset", {"objective": objective}).select(lab.pool())
    assert lab.measured == [(list(range(60)), False, True)]  # one forward pass each, no gradients
    assert not lab.embedded
    lab.measured.clear()
    means = build_selection("coreset", {"objective": objective, "embedding": "input"}).select(lab.pool())
    assert lab.embedded == [list(range(60))]
    assert not lab.measured
    assert forward.places != means.places


def test_objectives_cover_what_they_say() -> None:
    lab = Lab(60)
    center = build_selection("coreset", {"q": 0.1}).select(lab.pool())
    assert center.places == tuple(sorted(coreset.k_center(lab.states.astype(np.float64), 6, 0)))
    facility = build_selection("coreset", {"q": 0.1, "objective": "facility-location"}).select(lab.pool())
    other = build_selection("coreset", {"q": 0.1, "objective": "facility-location"}).select(lab.pool(seed=2))
    assert other.places != facility.places  # its candidates are drawn
    assert similarity(lab.states, facility.places) > similarity(lab.states, center.places)


def test_the_guard_of_a_coreset_covers_every_class_by_its_share() -> None:
    lab = Lab(60)
    lab.labels = ["a"] * 40 + ["b"] * 19 + ["c"]
    lab.states[59] = lab.states[0]  # it covers nothing that another does not
    for objective in ("k-center", "facility-location"):
        guarded = {"q": 0.1, "objective": objective, "class_guard": True}
        found = build_selection("coreset", guarded).select(lab.pool())
        assert Counter(lab.labels[i] for i in found.places) == {"a": 4, "b": 1, "c": 1}  # exactly 4, 1.9 and 0.1
        assert found.notes["classes_dropped"] == []
    without = build_selection("coreset", {"q": 0.1}).select(lab.pool())
    assert "c" in without.notes["classes_dropped"]


def test_a_class_without_a_place_is_left_out_of_a_coreset_and_named() -> None:
    lab = lab_ranked([0.0] * 30, labels=["a", "b", "c"] * 10)
    found = build_selection("coreset", {"q": 0.04, "class_guard": True}).select(lab.pool())
    assert (len(found.places), len(found.notes["classes_dropped"])) == (1, 2)
