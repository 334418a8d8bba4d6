"""The small expressions of `label` and `keep`: what they say, and all that they cannot say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.adapt.expressions import compile_expression
from cprbench.errors import SpecError

ROW = {"rating": "-1.5", "votes": 3, "text": "Good film", "tags": ["old", "short"], "flag": True}


def value_of(text: str, row: dict[str, Any] | None = None) -> Any:
    return compile_expression(text, "task 'tiny': label")(ROW if row is None else row)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rating > 0", False),
        ("abs(rating) >= 1", True),
        ("rating", -1.5),  # a cell that looks like a number is one
        ("text", "Good film"),
        ("votes", 3),
        ("rating + votes", 1.5),
        ("votes - 1", 2),
        ("votes * 2", 6),
        ("votes / 2", 1.5),
        ("-votes", -3),
        ("not flag", False),
        ("flag and votes", True),
        ("flag and rating > 0", False),
        ("not flag or rating > 0", False),
        ("rating > 0 or votes > 0", True),
        ("0 < votes < 4", True),
        ("0 < votes < 3", False),
        ("votes == 3 and votes != 4 and votes <= 3", True),
        ("'Good' in text", True),
        ("'Good' not in text", False),
        ("'old' in tags", True),
        ("len(tags) == 2", True),
        ("len(text)", 9),
        ("lower(text)", "good film"),
        ("lower(text) == 'good film'", True),
        ("strip('  a ')", "a"),
        ("int(rating)", -1),
        ("float(votes)", 3.0),
        ("(votes + 1) * 2", 8),
        ("True", True),
    ],
)
def test_an_expression_means_what_it_says(text: str, expected: object) -> None:
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "text.upper()",
        "text.__class__",
        "().__class__.__bases__",
        "__import__('os')",
        "open('/etc/passwd')",
        "eval('1')",
        "exec('1')",
        "getattr(text, 'upper')",
        "len(text, text)",
        "len(*tags)",
        "int(text, base=2)",
        "abs()",
        "(lambda: 1)()",
        "len(lambda: 1)",
        "lambda: 1",
        "[x for x in tags]",
        "{x for x in tags}",
        "{x: 1 for x in tags}",
        "any(x for x in tags)",
        "f'{text}'",
        "2 ** 9",
        "votes ** votes",
        "7 // 2",
        "7 % 2",
        "1 << 9",
        "1 | 2",
        "1 & 2",
        "1 ^ 2",
        "~votes",
        "+votes",
        "votes @ votes",
        "tags[0]",
        "tags[0:1]",
        "(votes := 1)",
        "1 if flag else 2",
        "[1, 2]",
        "(1, 2)",
        "{1, 2}",
        "{}",
        "*tags",
        "votes is 3",
        "votes is not 3",
        "None",
        "...",
        "1j",
        "b'bytes'",
        "await text",
        "yield 1",
        "'a' * 1000",
        "1000 * 'a'",
        "abs(-('a' * 1000))",
    ],
)
def test_everything_outside_the_whitelist_is_refused(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # Python's own advice about `3 is 3`
        with pytest.raises(SpecError, match="task 'tiny': label: "):
            compile_expression(text, "task 'tiny': label")


@pytest.mark.parametrize("text", ["", " ", "votes +", "votes = 1", "import os", "a; b", "a\nb", "((", "\0", "\ud800"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not an expression"):
        compile_expression(text, "here")


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(SpecError, match=r"uses Attribute, which is not allowed\. Use columns, .* and abs, float"):
        compile_expression("text.upper", "here")


def test_a_very_long_expression_is_refused_before_it_is_parsed() -> None:
    assert compile_expression("1" + "+1" * 149, "here")({}) == 150
    with pytest.raises(SpecError, match=r"at most 300 characters, found 100001"):
        compile_expression("1" + "+1" * 50_000, "here")


def test_an_unknown_column_names_the_nearest_one() -> None:
    with pytest.raises(SpecError, match=r"'ratng > 0': no column 'ratng'\. Did you mean 'rating'\?"):
        value_of("ratng > 0")


@pytest.mark.parametrize("name", ["__builtins__", "__class__", "__import__", "len", "print"])
def test_names_of_python_are_columns_like_any_other(name: str) -> None:
    with pytest.raises(SpecError, match=f"no column '{name}'"):
        value_of(name)
    assert value_of(name, {name: "a cell"}) == "a cell"


@pytest.mark.parametrize("text", ["text > 1", "abs(text)", "-text", "text / 2", "votes / 0", "int(text)", "1 in votes"])
def test_a_row_that_an_operation_cannot_take_is_named(text: str) -> None:
    with pytest.raises(SpecError, match=r"fails on row \{'rating'"):
        value_of(text)


@pytest.mark.parametrize("text", ["int(size)", "big / 3"])
def test_a_number_that_is_too_large_is_named_like_any_other(text: str) -> None:
    with pytest.raises(SpecError, match="fails on row"):
        value_of(text, {"size": "inf", "big": 10**400})


@pytest.mark.parametrize("text", ["lower(text) == '1984'", "strip(text) == '1984'", "len(text) == 4"])
def test_a_text_of_digits_stays_text_in_functions_of_text(text: str) -> None:
    assert value_of(text, {"text": "1984"}) is True


@pytest.mark.parametrize("text", ["text * 1000", "lower(text) * 1000", "('a' + text) * 1000"])
def test_a_text_is_never_multiplied(text: str) -> None:
    with pytest.raises(SpecError):
        value_of(text, {"text": "a"})


# Pieces of expressions, so that many of the texts come near to one.
_NAMES = ["rating", "votes", "text", "tags", "flag", "nope", "__a__", "abs(", "len(", "int(", "lower(", "eval("]
_VALUES = ["1", "0", "2.5", "1e9", "'a'", "f'", "'", '"', "None", "True", "b''", "1j"]
_MARKS = [*"()[]{},.:;=<>+-*/%@&|~#", "==", "!=", "<=", ">=", "**", "//", ":=", "\\"]
_WORDS = ["and", "or", "not", "in", "is", "if", "else", "lambda", "for", "await", "yield"]
PIECES = st.lists(st.sampled_from([*_NAMES, *_VALUES, *_MARKS, *_WORDS]), max_size=14).map(" ".join)
DEEP = st.builds(
    lambda piece, times: piece * times, st.sampled_from(["(", "-", "not ", "abs(", "[", "1+"]), st.integers(1, 299)
)


def refused(work: Callable[[], object]) -> bool:
    """Return whether `work` raises SpecError with the place first; every other error goes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning of Python's parser about odd but valid texts
        try:
            work()
        except SpecError as error:
            return str(error).startswith("fuzz: ")
    return False


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=320), PIECES, DEEP))
def test_any_text_either_compiles_or_is_refused(text: str) -> None:
    if not refused(lambda: compile_expression(text, "fuzz")):
        compiled = compile_expression(text, "fuzz")
        if not refused(lambda: compiled(ROW)):
            compiled(ROW)
