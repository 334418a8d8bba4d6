"""What all nouns share: nearest-key errors at any depth, canonical JSON and its hash."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from cprbench.errors import SpecError
from cprbench.schema import Frozen, canonical_json, finite, parse, sha256_of


class Wheel(Frozen):
    """A part, found in lists."""

    radius: float


class Motor(Frozen):
    """One kind of drive."""

    kind: Literal["motor"]
    volts: float


class Pedals(Frozen):
    """Another kind of drive."""

    kind: Literal["pedals"]
    length: float


class Bicycle(Frozen):
    """A noun with all that task files have: a list, a nested table and a list of tables of several kinds."""

    name: str
    wheels: list[Wheel] = []
    spare: Wheel | None = None
    drives: list[Annotated[Motor | Pedals, Field(discriminator="kind")]] = []


def test_a_noun_cannot_be_changed() -> None:
    wheel = Wheel(radius=1.0)
    with pytest.raises(ValidationError, match="frozen"):
        wheel.radius = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "path", "nearest"),
    [
        ({"name": "a", "whels": []}, "whels", "wheels"),
        ({"name": "a", "spare": {"radius": 1, "radiuss": 2}}, "spare.radiuss", "radius"),
        ({"name": "a", "wheels": [{"radius": 1}, {"radius": 1, "radus": 2}]}, "wheels.1.radus", "radius"),
        ({"name": "a", "drives": [{"kind": "pedals", "length": 1, "volt": 2}]}, "drives.0.pedals.volt", None),
        ({"name": "a", "drives": [{"kind": "motor", "volts": 1, "volt": 2}]}, "drives.0.motor.volt", "volts"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    data: dict[str, Any], path: str, nearest: str | None
) -> None:
    with pytest.raises(SpecError) as caught:
        parse(Bicycle, data, "bicycle.toml")
    hint = "Known: kind, length." if nearest is None else f"Did you mean {nearest!r}?"
    assert str(caught.value) == f"bicycle.toml: unknown key {path!r}. {hint}"


def test_a_key_like_no_other_lists_all_that_are_known() -> None:
    with pytest.raises(SpecError, match=r"unknown key 'zzz'\. Known: drives, name, spare, wheels\."):
        parse(Bicycle, {"name": "a", "zzz": 1}, "bicycle.toml")


def test_a_missing_key_is_named_with_its_place() -> None:
    with pytest.raises(SpecError, match=r"^b\.toml: wheels\.0\.radius is missing\. Add it\.$"):
        parse(Bicycle, {"name": "a", "wheels": [{}]}, "b.toml")


def test_a_wrong_value_is_named_with_what_was_found() -> None:
    with pytest.raises(SpecError, match=r"^b\.toml: spare\.radius: .*\(found 'wide'\)$"):
        parse(Bicycle, {"name": "a", "spare": {"radius": "wide"}}, "b.toml")


def test_every_wrong_key_gets_a_line_of_its_own() -> None:
    with pytest.raises(SpecError) as caught:
        parse(Bicycle, {"nme": "a", "wheels": [{"radius": 1, "spokes": 32}]}, "b.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("b.toml: ") for line in lines)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused_at_any_depth(value: float) -> None:
    with pytest.raises(SpecError, match=r"wheels\.0\.radius: .*finite"):
        parse(Bicycle, {"name": "a", "wheels": [{"radius": value}]}, "b.toml")


def test_canonical_json_sorts_keys_leaves_no_spaces_and_keeps_letters() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": {"é": "ü"}}) == '{"a":{"é":"ü"},"b":[1,2.5,null,true]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": [value]})


def test_the_hash_is_the_sha256_of_the_canonical_text() -> None:
    printed = "ecf9e98ec0641e23113ff3ce8bdc78d0ddd249886517fd4a7f68cc83d4e65667"  # printf '{"a":1,"b":"x"}' | sha256sum
    assert sha256_of({"b": "x", "a": 1}) == printed


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.booleans() | st.none(), max_size=5))
def test_the_order_of_keys_does_not_move_the_hash(data: dict[str, Any]) -> None:
    assert sha256_of(dict(reversed(data.items()))) == sha256_of(data)


def test_a_whole_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond 1e"):
        finite({"a": [10**400]})
    assert finite({"a": [10**30, True]}) == {"a": [10**30, True]}
