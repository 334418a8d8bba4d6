"""Contract tests over the selection registry; settings and files; all and random."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cprbench.adapt.methods import Target, build_method
from cprbench.adapt.selection import (
    SELECTIONS,
    Measured,
    Pool,
    build_selection,
    selection_class,
    selection_label,
    settings_known,
)
from cprbench.adapt.settings import label, pinned, settings_of, unpinned, without_paths
from cprbench.errors import MethodError, SpecError
from cprbench.schema import finite

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
