"""What pickers rank: a file's norms by domain, shrunken, and blended with local ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.blueprint.schema import Blueprint
from cprbench.blueprint.signals import blend, norms_of
from cprbench.errors import MethodError

norm = st.floats(0, 1e300, allow_subnormal=False)
CELLS = ("attn.0", "ffn.0", "head")


def blueprint(*layers: dict[str, Any], domains: tuple[str, ...] = ()) -> Blueprint:
    listed = [
        {"tag": tag, "task": tag, "version": 1, "data_sha256": "0" * 64, "split": "validation", "examples": 9,
         "max_tokens": 8}
        for tag in domains
    ]  # fmt: skip
    data = {"model_id": "m", "training_checkpoint": 1.0, "layers": list(layers), "domains": listed}
    return Blueprint.model_validate(data)


def measured(norm: float, low: float, high: float, domain: str = "general") -> dict[str, Any]:
    return {domain: {"gradient_norm": norm, "gradient_norm_ci": {"low": low, "high": high}}}


#: The file of the paper's appendix A.1, by its numbers.
PAPER = blueprint(
    {"id": "attn.0", "gradient_norm": 0.052, "domain_tags": {"general": 1.0, "bio": 0.79}},
    {"id": "ffn.0", "gradient_norm": 0.033, "domain_tags": {"general": 1.0, "bio": 0.68}},
)


def test_the_norms_of_a_file_are_those_of_its_reference_domain() -> None:
    assert norms_of(PAPER) == {"attn.0": 0.052, "ffn.0": 0.033}
    assert norms_of(PAPER, domain="general") == norms_of(PAPER)


def test_a_tag_is_a_ratio_of_squared_norms() -> None:
    assert norms_of(PAPER, domain="bio") == pytest.approx(
        {"attn.0": 0.052 * math.sqrt(0.79), "ffn.0": 0.033 * math.sqrt(0.68)}
    )


def test_a_domain_measured_itself_needs_no_tag() -> None:
    both = blueprint(
        {"id": "attn.0", "gradient_norm": 1, "domain_tags": {"bio": 4}, "domains": measured(7, 6, 8, "bio")},
        {"id": "ffn.0", "gradient_norm": 2, "domain_tags": {"bio": 1}, "domains": measured(3, 2, 4, "bio")},
    )
    assert norms_of(both, domain="bio") == {"attn.0": 7, "ffn.0": 3}
    some = blueprint(
        {"id": "attn.0", "gradient_norm": 1, "domain_tags": {"bio": 4}, "domains": measured(7, 6, 8, "bio")},
        {"id": "ffn.0", "gradient_norm": 2, "domain_tags": {"bio": 1}},
    )
    assert norms_of(some, domain="bio") == {"attn.0": 2, "ffn.0": 2}  # never a scale of its own for each


def test_an_unknown_domain_names_the_nearest_one_of_the_file() -> None:
    with pytest.raises(MethodError, match=r"no domain 'bioo'. Did you mean 'bio'\?"):
        norms_of(PAPER, domain="bioo")
    with pytest.raises(MethodError, match="Known: bio, general"):
        norms_of(PAPER, domain="legal-texts")
    legal = blueprint({"id": "attn.0", "gradient_norm": 1}, domains=("legal",))
    assert norms_of(legal, domain="legal") == {"attn.0": 1}
    with pytest.raises(MethodError, match="no domain 'general'"):
        norms_of(legal, domain="general")


def test_a_domain_of_some_submodules_only_is_refused() -> None:
    file = blueprint({"id": "attn.0", "gradient_norm": 1, "domain_tags": {"bio": 1}}, {"id": "f", "gradient_norm": 1})
    with pytest.raises(MethodError, match="for some submodules only; 'f' lacks it"):
        norms_of(file, domain="bio")


def test_shrinking_asks_for_intervals_of_that_domain() -> None:
    for domain in (None, "bio"):
        with pytest.raises(MethodError, match="asks for an interval of every gradient_norm.*uncertainty=ignore"):
            norms_of(PAPER, domain=domain, uncertainty="shrink")
    with pytest.raises(MethodError, match="Did you mean 'shrink'"):
        norms_of(PAPER, uncertainty="shrunk")  # type: ignore[arg-type]


def test_an_uncertain_norm_is_pulled_to_the_mean_and_a_certain_one_stays() -> None:
    file = blueprint(
        {"id": "attn.0", "gradient_norm": 9, "domains": measured(9, 4, 14)},
        {"id": "ffn.0", "gradient_norm": 8, "domains": measured(8, 8, 8)},
        {"id": "attn.1", "gradient_norm": 1, "domains": measured(1, 0.9, 1.1)},
        {"id": "ffn.1", "gradient_norm": 2, "domains": measured(2, 1.5, 2.5)},
    )
    found = norms_of(file, uncertainty="shrink")
    own = (10 / 3.92) ** 2
    between = 50 / 3 - (own + (0.2 / 3.92) ** 2 + (1 / 3.92) ** 2) / 4
    assert found["attn.0"] == pytest.approx(5 + between / (between + own) * 4)
    assert found["ffn.0"] == 8 > found["attn.0"]  # the order turns: 9 was a guess
    assert 1 < found["attn.1"] < 1.01
    assert list(found) == [layer.id for layer in file.layers]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=8))
def test_shrunken_norms_lie_between_the_norm_and_the_mean(rows: list[tuple[float, float, float]]) -> None:
    layers = [
        {"id": f"ffn.{i}", "gradient_norm": n, "domains": measured(n, max(0, n - below), n + above)}
        for i, (n, below, above) in enumerate(rows)
    ]
    mean = sum(n for n, _, _ in rows) / len(rows)
    for (n, _, _), found in zip(rows, norms_of(blueprint(*layers), uncertainty="shrink").values(), strict=True):
        assert min(n, mean) - 1e-9 <= found <= max(n, mean) + 1e-9


def test_where_the_file_cannot_tell_submodules_apart_shrinking_says_so_by_equal_norms() -> None:
    wide = [
        {"id": name, "gradient_norm": n, "domains": measured(n, 0, 40)}
        for name, n in zip(CELLS, (1, 2, 3), strict=True)
    ]
    assert set(norms_of(blueprint(*wide), uncertainty="shrink").values()) == {2.0}


def test_blending_is_algorithm_1_on_norms_of_equal_length() -> None:
    published, local = {"attn.0": 300.0, "ffn.0": 400.0}, {"ffn.0": 0.6, "attn.0": 0.8}
    assert blend(published, local, 1) == pytest.approx({"attn.0": 0.6, "ffn.0": 0.8})
    assert blend(published, local, 0) == pytest.approx({"attn.0": 0.8, "ffn.0": 0.6})
    assert blend(published, local, 0.25) == pytest.approx({"attn.0": 0.75, "ffn.0": 0.65})
    assert list(blend(published, local, 0.5)) == ["ffn.0", "attn.0"]  # the live model's order


@given(st.tuples(norm, norm, norm), st.tuples(norm, norm, norm), st.floats(0, 1), st.floats(1e-5, 1e5))
def test_the_scale_of_a_loss_does_not_change_a_blend(
    first: tuple[float, ...], second: tuple[float, ...], weight: float, scale: float
) -> None:
    published, local = dict(zip(CELLS, first, strict=True)), dict(zip(CELLS, second, strict=True))
    if not any(first) or not any(second):
        with pytest.raises(MethodError, match="norms are all 0"):
            blend(published, local, weight)
        return
    found = blend(published, local, weight)
    scaled = blend(published, {name: value * scale for name, value in local.items()}, weight)
    assert scaled == pytest.approx(found, abs=1e-9)
    assert all(0 <= value <= 1 + 1e-9 for value in found.values())


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(MethodError, match=r"outside \[0, 1\]"):
        blend({"a": 1}, {"a": 1}, weight)


@pytest.mark.parametrize(
    ("published", "local", "words"),
    [
        ({"a": 1}, {"a": 1, "b": 1}, "no submodule b"),
        ({"a": 1, "b": 1}, {"a": 1}, "unknown submodule b"),
        ({"a": math.inf}, {"a": 1}, "norm of 'a' is inf"),
        ({"a": 1}, {"a": math.nan}, "norm of 'a' is nan"),
    ],
)
def test_norms_of_unlike_models_are_not_blended(
    published: dict[str, float], local: dict[str, float], words: str
) -> None:
    with pytest.raises(MethodError, match=words):
        blend(published, local, 0.5)
