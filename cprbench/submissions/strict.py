"""JSON and TOML that strangers wrote: within bounds, strict, and refused in words. No bytes take long or much here.

What the standard parsers let through is refused: NaN, 1e400, duplicate keys, characters that cannot be seen, text that
is not NFC. What they stumble over (depth, digits) is counted before they see it, on the bytes outside of strings.
A parse takes about as long as json.loads of every line, and at most twice as long for one document.
"""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NoReturn

from cprbench.errors import SubmissionError
from cprbench.schema import MOST

MOST_JSON_BYTES, MOST_JSONL_BYTES, MOST_TOML_BYTES = 1_000_000, 16_000_000, 64_000
MOST_LINE_BYTES = 1_000_000
MOST_DEPTH, MOST_KEY = 32, 200
#: Values in a document, in a whole .jsonl, and how many of these are objects or lists, which take 50 times their bytes
#: in memory. An hour of samples at 10 Hz has 36,000 lines of two objects and 5 to 25 values.
MOST_NODES, MOST_JSONL_NODES, MOST_JSONL_OBJECTS = 100_000, 1_000_000, 400_000
#: Dots and opening brackets of a .toml: tomllib takes the square of a dotted key's parts, and a stack frame a bracket.
MOST_TOML_NESTING = 300

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # as judge.submission.shown_line
_PLAIN = re.compile(r"[\n\t -~]+")
#: JSON outside of strings, with one digit, one kind of bracket and one exponent sign: what bytes.count can look at.
_FLAT = bytes.maketrans(b"123456789E{}", b"000000000e[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]"))
_NOT_BRACKETS_OF_LINES = bytes(set(range(256)) - set(b"[]\n"))
#: Numbers that may be beyond MOST.
_LARGE = re.compile(rb"(?<![0-9.])(?:[0-9]++(?:\.[0-9]++)?[eE]\+?[0-9]++|[0-9]{100,}+)")


def shown(value: str) -> str:
    """Return a text of a stranger as a message may quote it: ASCII without control characters, cut at 60."""
    return ascii(value[:60]) + ("…" if len(value) > 60 else "")


def parse_json(data: bytes, where: str, *, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Return a JSON document. `where`: the file, as messages name it.

    Raises SubmissionError for everything that is not plain JSON within the bounds above.
    """
    _refuse_size(data, where, most_bytes)
    return _document(data, where)


def parse_jsonl(data: bytes, where: str) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl: one JSON object per line, each line ended. Raises SubmissionError as parse_json."""
    _refuse_size(data, where, MOST_JSONL_BYTES)
    if data and not data.endswith(b"\n"):
        tail = data[-40:].decode("utf-8", "replace")
        raise SubmissionError(f"{where}: the last line is cut off, at {shown(tail)}. Copy the file again, whole.")
    rows: list[dict[str, Any]] = []
    nodes = objects = start = 0
    while start < len(data):  # a piece of whole lines at a time, so that what is counted on the way stays small
        end = data.rfind(b"\n", start, start + MOST_LINE_BYTES) + 1
        if not end:
            raise SubmissionError(f"{where}, line {len(rows) + 1}: over {MOST_LINE_BYTES:,} bytes. No line is so long.")
        piece = data[start:end]
        objects += piece.count(b"[") + piece.count(b"{")  # those in strings as well, which changes little
        nodes += piece.count(b",")
        if objects > MOST_JSONL_OBJECTS or nodes + objects > MOST_JSONL_NODES:
            _refuse_nodes(where, MOST_JSONL_NODES if objects <= MOST_JSONL_OBJECTS else MOST_JSONL_OBJECTS)
        try:
            rows += _lines(piece, where)
        except SubmissionError:
            _refuse_first_wrong(piece.split(b"\n")[:-1], where, len(rows) + 1)
        start = end
    return rows


def weight(data: bytes) -> int:
    """Return how many bytes of memory the values of a JSON file take, about and rather too many."""
    return len(data) + 200 * (data.count(b"{") + data.count(b"[")) + 90 * data.count(b",")


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """Return a TOML document of what JSON can hold as well: no dates, no NaN. Raises SubmissionError as parse_json."""
    _refuse_size(data, where, MOST_TOML_BYTES)
    text = _decoded(data, where)
    _refuse_hidden(text.replace("\r\n", "\n"), where)
    if sum(map(text.count, "[{.")) > MOST_TOML_NESTING:
        raise SubmissionError(f"{where}: over {MOST_TOML_NESTING} dots and brackets. Write flat keys and few links.")
    try:
        as_json = json.dumps(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SubmissionError(f"{where}: no TOML: {str(error)[:200]}. Correct it there.") from None
    except (ValueError, TypeError, RecursionError) as error:  # digits without end, dates, brackets without end
        raise SubmissionError(f"{where}: holds what no key takes ({str(error)[:100]}). Leave it out.") from None
    parsed: dict[str, Any] = _document(as_json.encode(), where)
    return parsed


def _lines(piece: bytes, where: str) -> list[dict[str, Any]]:
    rows = _document(piece, where, lines=True)
    if len(rows) != piece.count(b"\n") or not all(type(row) is dict for row in rows):
        raise SubmissionError(f"{where}: a line is no JSON object.")
    return rows  # type: ignore[no-any-return]


def _refuse_first_wrong(lines: list[bytes], where: str, number: int) -> NoReturn:
    """Raise SubmissionError for the first line that is wrong; `number`: of the first of `lines`, one of them is."""
    while len(lines) > 1:
        half = len(lines) // 2
        try:
            _lines(b"".join(line + b"\n" for line in lines[:half]), where)
            number, lines = number + half, lines[half:]
        except SubmissionError:
            lines = lines[:half]
    _document(lines[0], f"{where}, line {number}")
    raise SubmissionError(f"{where}, line {number}: {shown(lines[0].decode())} is no object, as every line has to be.")


def _document(data: bytes, where: str, lines: bool = False) -> Any:
    """Return the JSON in `data`; of `lines`, each of which is one document, a list of them."""
    text = _decoded(data, where)
    strings = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"') if b"\\" in data else data.split(b'"')
    outside = b"".join(strings[::2])
    colons = outside.count(b":")
    flat = outside.translate(_FLAT)
    brackets = flat.translate(None, _NOT_BRACKETS_OF_LINES if lines else _NOT_BRACKETS)
    if not lines and flat.count(b",") + brackets.count(b"[") >= MOST_NODES:
        _refuse_nodes(where, MOST_NODES)
    for _ in range(MOST_DEPTH):  # each round takes away the innermost pairs; no pair spans two lines
        brackets = brackets.replace(b"[]", b"")
    if brackets.strip(b"\n"):
        raise SubmissionError(f"{where}: brackets are over {MOST_DEPTH} deep, or not in pairs. Copy it again, whole.")
    if b"e0" in flat or b"e+" in flat or b"0" * 100 in flat:
        for number in _LARGE.findall(outside):
            if float(number) > MOST:
                raise SubmissionError(f"{where}: {shown(number.decode())} is beyond {MOST:g}. No quantity is so large.")
    keys = 0

    def count(found: dict[str, Any]) -> dict[str, Any]:
        nonlocal keys
        keys += len(found)
        return found

    if lines:
        text = f"[{text[:-1]}]".replace("\n", ",\n")  # the newline stays: it would be refused inside a string
    parsed = _loads(text, where, object_hook=count)
    if keys != colons:
        _loads(text, where, object_pairs_hook=lambda pairs: _unique(pairs, where))
    if not text.isascii() or b"\x7f" in data:
        _refuse_hidden(text.replace("\r", ""), where)
    if b"\\" in data or len(max(strings[1::2], key=len, default=b"")) > MOST_KEY:
        _refuse_strings(parsed, where)
    return parsed


def _loads(text: str, where: str, **hooks: Any) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise SubmissionError(f"{where}: {constant} is no number. What was not measured is null, with a reason.")

    try:
        return json.loads(text, parse_constant=refuse, **hooks)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        near = shown(text[error.pos : error.pos + 40]) if error.pos < len(text) else "its end"
        raise SubmissionError(f"{where}: no JSON: {error.msg} at {place}, before {near}. Copy it again.") from None


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SubmissionError(f"{where}: the key {shown(key)} is there twice. Leave one of them out.")
        found[key] = value
    return found


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise SubmissionError(
            f"{where}: byte {error.start} ({byte:#04x}) is no UTF-8. Save the file as UTF-8."
        ) from None


def _refuse_size(data: bytes, where: str, most: int) -> None:
    if len(data) > most:
        raise SubmissionError(f"{where}: {len(data):,} bytes, and {most:,} are the most. Submit fewer or shorter runs.")


def _refuse_nodes(where: str, most: int) -> NoReturn:
    raise SubmissionError(f"{where}: over {most:,} values. Submit fewer or shorter runs.")


def _refuse_hidden(text: str, where: str) -> None:
    """Raise SubmissionError for characters that cannot be seen, newline and tab excepted, and for text not in NFC."""
    hidden = {c for c in set(_PLAIN.sub("", text)) if unicodedata.category(c) in _HIDDEN}
    for at, character in enumerate(text) if hidden else ():
        if character in hidden:
            near = f"line {text.count(chr(10), 0, at) + 1}, after {shown(text[max(0, at - 20) : at])}"
            raise SubmissionError(f"{where}: U+{ord(character):04X} cannot be seen; it is in {near}. Leave it out.")
    if not unicodedata.is_normalized("NFC", text):
        end = bisect_left(range(len(text)), True, key=lambda n: not unicodedata.is_normalized("NFC", text[:n]))
        near = shown(text[max(0, end - 20) : end])
        raise SubmissionError(f"{where}: {near} is not in Unicode's normal form NFC. Write it in that form.")


def _refuse_strings(parsed: Any, where: str) -> None:
    """Raise SubmissionError for strings whose escapes say what no text may hold, and for long keys."""
    odd = []
    for text, is_key in _strings(parsed):
        if is_key and len(text) > MOST_KEY:
            raise SubmissionError(f"{where}: the key {shown(text)} has {len(text)} characters, over {MOST_KEY}.")
        if not _PLAIN.fullmatch(text):
            odd.append(text)
    try:
        _refuse_hidden("\n".join(odd), where)  # no character joins with a newline
    except SubmissionError:
        for text in odd:
            _refuse_hidden(text, f"{where}, in the text {shown(text)}")
        raise


def _strings(parsed: Any) -> Iterator[tuple[str, bool]]:
    """Yield every (string, whether it is a key)."""
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value, False
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            yield from ((key, True) for key in value)
            waiting += value.values()
