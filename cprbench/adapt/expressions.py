"""Small expressions over the columns of a row, for `label` and `keep` in task files.

An expression is parsed and walked by a whitelist of node types; nothing is ever evaluated by Python itself.
Allowed: column names, numbers, strings, comparisons, and/or/not, + - * /, and the functions below.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from cprbench.errors import SpecError, did_you_mean

Row = Mapping[str, Any]
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": lambda value: abs(_number(value)),
    "float": float,
    "int": lambda value: int(_number(value)),
    "len": len,
    "lower": lambda text: str(text).lower(),
    "strip": lambda text: str(text).strip(),
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda item, text: item in text,
    ast.NotIn: lambda item, text: item not in text,
}
_LONGEST = 300
_NUMBER = re.compile(r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$")


def compile_expression(text: str, where: str) -> Callable[[Row], Any]:
    """Return a function of a row.

    Columns that look like numbers are numbers. Raises SpecError for anything outside the whitelist, and the
    returned function raises SpecError for an unknown column or a value that an operation cannot take.
    """
    if len(text) > _LONGEST:
        raise SpecError(f"{where}: an expression has at most {_LONGEST} characters, found {len(text)}.")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: {text!r} is not an expression ({error}).") from None
    _check(tree, text, where)

    def evaluate(row: Row) -> Any:
        try:
            return _walk(tree, row)
        except KeyError as error:
            raise SpecError(f"{where}: {text!r}: no column {error}. {did_you_mean(error.args[0], row)}") from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SpecError(f"{where}: {text!r} fails on row {dict(row)!r:.200} ({error}).") from None

    return evaluate


def _check(node: ast.AST, text: str, where: str) -> None:
    match node:
        case ast.Name():
            parts: list[ast.AST] = []
        case ast.Constant(value=bool() | int() | float() | str()):
            parts = []
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            if isinstance(op, ast.Mult) and any(
                isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (left, right)
            ):
                raise SpecError(f"{where}: {text!r} multiplies a text. Multiply numbers only.")
            parts = [left, right]
        case ast.BoolOp(values=values):
            parts = list(values)
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARE for op in ops):
            parts = [left, *rest]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            parts = [argument]
        case _:
            raise SpecError(
                f"{where}: {text!r} uses {type(node).__name__}, which is not allowed. "
                f"Use columns, numbers, texts, comparisons, and/or/not, + - * / and {', '.join(_FUNCTIONS)}."
            )
    for part in parts:
        _check(part, text, where)


def _walk(node: ast.AST, row: Row) -> Any:
    match node:
        case ast.Name(id=name):
            return _number(row[name])
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return not _walk(operand, row) if isinstance(op, ast.Not) else -_walk(operand, row)
        case ast.BinOp(op=op, left=left, right=right):
            sides = _walk(left, row), _walk(right, row)
            if not isinstance(op, ast.Add) and not all(isinstance(side, int | float) for side in sides):
                raise TypeError(f"{sides!r:.80} are not both numbers")
            return _BINARY[type(op)](*sides)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_walk(value, row) for value in values)
        case ast.BoolOp(values=values):
            return any(_walk(value, row) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=rest):
            values = [_walk(part, row) for part in (left, *rest)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(_COMPARE[type(op)](a, b) for op, a, b in pairs)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            # A column goes to a function as its text: len("1984") is 4.
            return _FUNCTIONS[name](row[argument.id] if isinstance(argument, ast.Name) else _walk(argument, row))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.match(value) else value
