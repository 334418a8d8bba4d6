"""No bytes raise anything but SubmissionError, and what is accepted is what json, tomllib and zipfile make of it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import tomllib
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cprbench.errors import SubmissionError
from cprbench.schema import MOST
from cprbench.submissions.bundle import open_bundle
from cprbench.submissions.strict import parse_json, parse_jsonl, parse_toml
from tests.hostile.archives import Lie, zip_of
from tests.hostile.corpus import RUN, SPEC, honest

fuzz = settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

#: What JSON is made of, and what it is not: joined at random, a scan of quotes and brackets has to keep its place.
TOKENS = [
    *"[]{},:\"\\/ \n\r\t09-.eE+u", "null", "true", "NaN", "Infinity", '"a"', '"b":', '"a":', '{"a":1}', "{}", "[]",
    "1.5", "1e99", "1e101", "12", "9" * 101, '\\"', "\\\\", "\\u0041", "\\u0000", "\\ud83d", "\\ude00", "\\n", "\\r",
    "é", "e\u0301", "\u202e", "\x7f", "\x00", "漢", "🙂", "[" * 31, "]" * 31, '"' + "k" * 201 + '":',
]  # fmt: skip
pieces = st.lists(st.sampled_from(TOKENS), max_size=12).map("".join)
texts = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")), max_size=20).map(
    lambda text: unicodedata.normalize("NFC", text)
)
values = st.recursive(
    st.none() | st.booleans() | texts | st.integers(-(10**99), 10**99) | st.floats(-1e99, 1e99),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
)


class RefusedError(Exception):
    """What the slow and plain way of reading refuses."""


def plainly(data: bytes) -> Any:
    """Return JSON as strict.py should: parsed first, then looked at value by value."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise RefusedError
        return dict(pairs)

    def look(value: Any, depth: int) -> None:
        if isinstance(value, str):
            hidden = [c for c in value if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
            if set(hidden) - {"\n", "\t"} or unicodedata.normalize("NFC", value) != value:
                raise RefusedError
        elif isinstance(value, int | float) and not abs(value) <= MOST:
            raise RefusedError
        elif isinstance(value, list | dict):
            if depth == 32 or any(len(key) > 200 for key in value if isinstance(value, dict)):
                raise RefusedError
            for part in [*value, *value.values()] if isinstance(value, dict) else value:
                look(part, depth + 1)

    try:
        parsed = json.loads(data.decode(), object_pairs_hook=unique)
        look(parsed, 0)
    except (ValueError, RecursionError):
        raise RefusedError from None
    return parsed


def same(first: Any, second: Any) -> bool:
    return json.dumps(first) == json.dumps(second)  # 1 is not 1.0, nor True


def compare(data: bytes) -> None:
    """Hold parse_json and, line by line, parse_jsonl against the slow and plain way."""
    for content in (data, b'{"x":' + data + b"}"):
        try:
            expected: Any = plainly(content)
        except RefusedError:
            with pytest.raises(SubmissionError):
                parse_json(content, "x")
        else:
            assert same(parse_json(content, "x"), expected)
    lines = b'{"before":1}\n' + data + b"\n"
    try:
        rows = [plainly(line) for line in lines.removesuffix(b"\n").split(b"\n")]
        if not all(isinstance(row, dict) for row in rows):
            raise RefusedError
    except RefusedError:
        with pytest.raises(SubmissionError):
            parse_jsonl(lines, "x")
    else:
        assert same(parse_jsonl(lines, "x"), rows)


@fuzz
@given(pieces)
def test_tokens_in_any_order_are_read_as_the_slow_way_reads_them(text: str) -> None:
    compare(text.encode())


@fuzz
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    compare(data)
    with contextlib.suppress(SubmissionError):
        assert parse_toml(data, "x") == tomllib.loads(data.decode())


@fuzz
@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_comes_back(value: Any, escaped: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert same(parse_json(data, "x"), value)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = honest(tmp_path_factory.mktemp("real") / "honest") / "runs" / RUN
    return {name: (run / name).read_bytes()[:4000] for name in ("record.json", "work.jsonl", "samples.jsonl")}


@st.composite
def edits(draw: st.DrawFn, most: int) -> list[tuple[str, int, Any]]:
    """Return edits of at most `most` bytes: (what is done, where, with what)."""
    kinds = st.sampled_from(["flip", "cut", "insert", "copy"])
    token = st.sampled_from(TOKENS).map(str.encode) | st.binary(min_size=1, max_size=4)
    one = st.tuples(kinds, st.integers(0, most), st.tuples(token, st.integers(1, 40)))
    return draw(st.lists(one, min_size=1, max_size=3))


def edited(data: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    for kind, at, (token, length) in changes:
        at = at % (len(data) + 1)
        between = {"flip": token, "cut": b"", "insert": token, "copy": data[at : at + length] * 2}[kind]
        data = data[:at] + between + data[at + {"flip": len(token), "insert": 0}.get(kind, length) :]
    return data


@fuzz
@given(name=st.sampled_from(["record.json", "work.jsonl", "samples.jsonl"]), changes=edits(4000))
def test_an_altered_real_file_is_read_as_the_slow_way_reads_it(
    real: dict[str, bytes], name: str, changes: list[tuple[str, int, Any]]
) -> None:
    data = edited(real[name] if name.endswith("l") else b'{"readings": [{"phase": "train", "value": 1.5}]}', changes)
    compare(data.rpartition(b"\n")[0] if name.endswith("l") else data)


@fuzz
@given(changes=edits(len(SPEC)))
def test_an_altered_submission_toml_is_refused_or_read_as_it_is(changes: list[tuple[str, int, Any]]) -> None:
    data = edited(SPEC, changes)
    with contextlib.suppress(SubmissionError):
        parsed = parse_toml(data, "x")
        assert parsed == tomllib.loads(data.decode())
        assert all(math.isfinite(value) for value in parsed.values() if isinstance(value, float))


_ZIP = zip_of([Lie(b"submission.toml", SPEC), Lie(b"runs/a.json", b"{}", method=0), Lie(b"runs/b.json", b"[1, 2]" * 9)])


@fuzz
@given(changes=edits(len(_ZIP)))
def test_an_altered_zip_is_refused_or_holds_what_zipfile_finds(changes: list[tuple[str, int, Any]]) -> None:
    data = edited(_ZIP, changes)
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        file.write(data)
        file.flush()
        try:
            bundle = open_bundle(Path(file.name))
            content = {name: bundle.read(name) for name in bundle.files}
        except SubmissionError:
            return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == content
