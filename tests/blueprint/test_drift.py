"""Rank correlations against scipy's, and what follows from them for a blueprint."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cprbench.blueprint import drift
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import MethodError, SpecError
from tests.blueprint.example import NORMS, SIZES, full_blueprint, full_data, paper_example

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30)
ORDER = ["attn.0", "ffn.0", "attn.1", "ffn.1", "attn.2", "ffn.2", "attn.3", "ffn.3"]


@given(PAIRS)
def test_rank_correlations_are_those_of_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert drift.spearman(a, b) is None and drift.kendall(a, b) is None
        return
    assert drift.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert drift.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_numbers_that_have_no_rank_are_refused() -> None:
    for correlation in (drift.spearman, drift.kendall):
        with pytest.raises(ValueError, match="not finite"):
            correlation([1, math.nan], [1, 2])
        with pytest.raises(ValueError, match="cannot be paired"):
            correlation([1], [1, 2])


def test_the_largest_blueprint_correlates_in_a_second() -> None:
    values = [float((i * 7919) % 10_007) for i in range(10_000)]
    start = time.perf_counter()
    drift.kendall(values, values[::-1])
    drift.spearman(values, values[::-1])
    assert time.perf_counter() - start < 1


def test_overlap_is_counted_in_parameters_and_leaves_the_input_tables_out() -> None:
    turned = {**NORMS, "attn.0": 0.1, "ffn.1": 0.8}
    # of 300 parameters: attn.0 + attn.1 (no ffn fits the last 100) against ffn.1 + attn.1
    assert drift.top_overlap(NORMS, turned, SIZES, 0.3) == pytest.approx(100 / 400)
    assert drift.top_overlap(NORMS, turned, SIZES, 0.5) == pytest.approx(300 / 600)  # embed would fit here
    assert drift.top_overlap(NORMS, NORMS, SIZES, 0.3) == 1
    with pytest.raises(MethodError, match="below the smallest"):
        drift.top_overlap(NORMS, NORMS, SIZES, 0.01)


def test_a_file_shows_its_own_pattern_overall_and_in_every_domain() -> None:
    left = full_blueprint()
    same = drift.compare(left, full_blueprint({name: 5 * norm for name, norm in NORMS.items()}), k=0.3)
    assert (same.correlation, same.kendall, same.overlap, same.verdict) == (1, 1, 1, "same pattern")
    assert same.domains == {"general": 1, "bio": 1}


def test_domains_are_compared_apart_and_only_where_both_files_measured_them() -> None:
    left, right = full_blueprint(domains=("general", "bio")), full_blueprint(domains=("general", "law"))
    assert set(drift.compare(left, right).domains) == {"general"}
    data = full_data()
    for layer in data["layers"]:
        layer["domains"]["bio"]["gradient_norm"] = NORMS[layer["id"]]
    bio = drift.compare(left, Blueprint.model_validate(data))
    assert bio.correlation == bio.domains["general"] == 1 and bio.domains["bio"] == pytest.approx(0)
    swapped = full_blueprint({"embed": 0.3, "attn.0": 0.4, "ffn.0": 0.2, "attn.1": 0.5, "ffn.1": 0.9})
    found = drift.compare(left, swapped)
    assert found.correlation == found.domains["general"] == found.domains["bio"] != 1
    assert found.verdict == "drifted" and "measure anew" in found.why


def test_the_verdict_follows_the_correlation() -> None:
    norms = dict(zip(SIZES, (5.0, 4.0, 3.0, 2.0, 1.0), strict=True))
    for values, correlation, verdict in (
        ((5, 4, 3, 1, 2), 0.9, "same pattern"),
        ((4, 5, 3, 1, 2), 0.8, "same pattern"),
        ((5, 4, 1, 2, 3), 0.6, "partly drifted"),
        ((5, 1, 4, 2, 3), 0.3, "drifted"),
    ):
        other = dict(zip(SIZES, map(float, values), strict=True))
        found = drift.compare(full_blueprint(norms), full_blueprint(other))
        assert (found.correlation, found.verdict) == (pytest.approx(correlation), verdict)


def test_files_of_other_submodules_or_sizes_are_refused_and_named() -> None:
    other = {name.replace("attn", "mixer"): norm for name, norm in NORMS.items()}
    sizes = {name.replace("attn", "mixer"): size for name, size in SIZES.items()}
    with pytest.raises(SpecError, match=r"'acme/tiny' has submodules that 'other' has not: attn\.0, attn\.1\."):
        drift.compare(full_blueprint(), full_blueprint(other, sizes=sizes, model_id="other"))
    with pytest.raises(SpecError, match=r"'acme/tiny' has submodules that 'foundation-7b' has not: embed, ffn\.1\."):
        drift.compare(Blueprint.model_validate(paper_example()), full_blueprint())
    with pytest.raises(SpecError, match="embed has 400 parameters in one file and 401"):
        drift.compare(full_blueprint(), full_blueprint(sizes={**SIZES, "embed": 401}))


def test_files_of_the_paper_compare_by_rank_and_say_what_they_cannot() -> None:
    paper = Blueprint.model_validate(paper_example())
    found = drift.compare(paper, paper)
    assert found.correlation == 1 and found.overlap is None and "do not state the parameters" in found.why
    small = drift.compare(full_blueprint(), full_blueprint(), k=0.01)
    assert small.overlap is None and "below the smallest submodule" in small.why
    flat = drift.compare(full_blueprint(dict.fromkeys(SIZES, 1.0)), full_blueprint())
    assert flat.correlation is None and flat.verdict == "not comparable"


def local(*places: int) -> dict[str, float]:
    return {name: float(places[i]) for i, name in enumerate(ORDER)}


@pytest.mark.parametrize(
    ("norms", "correlation", "verdict"),
    [
        (local(1, 2, 3, 4, 5, 6, 8, 7), 0.976, "use"),
        (local(8, 2, 3, 4, 5, 6, 7, 1), -0.167, "local"),
        (local(6, 2, 3, 4, 5, 1, 7, 8), 0.405, "layers"),
        (local(8, 7, 6, 5, 4, 3, 2, 1), -1, "local"),
    ],
)
def test_a_stale_blueprint_falls_back_to_layers_and_then_to_local_norms(
    norms: dict[str, float], correlation: float, verdict: str
) -> None:
    found = drift.check(local(1, 2, 3, 4, 5, 6, 7, 8), norms)
    assert found.correlation == pytest.approx(correlation, abs=1e-3)
    assert found.verdict == verdict
    assert f"{found.correlation:.2f}" in found.why


def test_the_thresholds_are_the_callers_and_belong_to_the_better_side() -> None:
    published, norms = local(1, 2, 3, 4, 5, 6, 7, 8), local(6, 2, 3, 4, 5, 1, 7, 8)
    exact = drift.spearman(list(published.values()), list(norms.values()))
    assert exact is not None
    assert drift.check(published, norms, fallback=exact).verdict == "use"
    assert drift.check(published, norms, fallback=0.9, local_only=exact).verdict == "layers"
    assert drift.check(published, norms, fallback=0.9, local_only=0.8).verdict == "local"


def test_equal_norms_have_no_ranks_and_leave_the_local_ones() -> None:
    flat, ranked = dict.fromkeys(ORDER, 1.0), local(*range(8))
    for pair, owner in (((flat, ranked), "the blueprint"), ((ranked, flat), "the local batch")):
        found = drift.check(*pair)
        assert found.correlation is None and found.verdict == "local" and f"norms of {owner} are equal" in found.why
    with pytest.raises(SpecError, match="the blueprint has submodules that the local batch has not: ffn.3"):
        drift.check(local(*range(8)), {name: 1.0 for name in ORDER[:-1]})
