"""JSON and TOML of strangers: honest files are what json makes of them, everything else is refused in words."""

from __future__ import annotations

import json
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cprbench.errors import SubmissionError
from cprbench.schema import MOST
from cprbench.submissions import strict
from cprbench.submissions.strict import parse_json, parse_jsonl, parse_toml, shown, weight
from tests.conftest import ROOT
from tests.hostile.corpus import READ_AS_TEXT, RUN, honest
from tests.hostile.documents import DOCUMENTS
from tests.hostile.payloads import HIDDEN, READABLE, UNPAIRED


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an honest submission by their last name."""
    folder = honest(tmp_path_factory.mktemp("strict") / "honest")
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(name: str, data: bytes) -> Any:
    by_ending = {".json": parse_json, ".jsonl": parse_jsonl, ".toml": parse_toml}
    return by_ending[Path(name).suffix](data, name)


@pytest.mark.parametrize("records", ["quickstart", "methods", "suites"])
def test_real_files_are_what_json_makes_of_them(records: str) -> None:
    with zipfile.ZipFile(ROOT / "tests" / "records" / f"{records}.zip") as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".jsonl"):
                assert parse_jsonl(data, name) == [json.loads(line) for line in data.splitlines()]
            elif name.endswith(".json"):
                assert parse_json(data, name) == json.loads(data)


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - READ_AS_TEXT))
def test_a_hostile_document_is_refused_with_its_file_in_words_that_can_be_shown(
    files: dict[str, bytes], name: str
) -> None:
    _, file, change = DOCUMENTS[name]
    with pytest.raises(SubmissionError) as refused:
        read(file, change(files[file]))
    message = str(refused.value)
    assert message.startswith(file)
    assert message.endswith(".")
    assert len(message) < 500
    assert not [c for c in message if unicodedata.category(c)[0] == "C"], message


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"a": NaN}', "x.json: NaN is no number. What was not measured is null, with a reason."),
        (b'{"a": 1e400}', "x.json: '1e400' is beyond 1e+100. No quantity is so large."),
        (b'{"a": 1, "a": 2}', "x.json: the key 'a' is there twice. Leave one of them out."),
        (b'{"a": {"b": 1, "b": 2}}', "x.json: the key 'b' is there twice."),
        (b"[" * 33 + b"]" * 33, "x.json: brackets are over 32 deep, or not in pairs."),
        (b'["' + b"x" * 1_000_000 + b'"]', "x.json: 1,000,004 bytes, and 1,000,000 are the most."),
        (b"[" + b"0," * 100_000 + b"0]", "x.json: over 100,000 values."),
        ('{\n"a": "b\u202ec"}'.encode(), 'x.json: U+202E cannot be seen; it is in line 2, after \'{\\n"a": "b\'.'),
        (rb'{"a": "b\u202ec"}', "x.json, in the text 'b\\u202ec': U+202E cannot be seen"),
        (rb'{"a\u0000": 1}', "x.json, in the text 'a\\x00': U+0000 cannot be seen"),
        (b'{"a": "b",}', "x.json: no JSON: "),
    ],
)
def test_a_refusal_says_what_is_where(data: bytes, told: str) -> None:
    with pytest.raises(SubmissionError) as refused:
        parse_json(data, "x.json")
    assert str(refused.value).startswith(told), str(refused.value)


@pytest.mark.parametrize(
    ("file", "data", "told"),
    [
        ("x.jsonl", b'{"a": 1}\n{"b"', 'x.jsonl: the last line is cut off, at \'{"a": 1}\\n{"b"\'.'),
        ("x.jsonl", b'{"a":{}}\n' * 210_000, "x.jsonl: over 400,000 values."),
        ("x.jsonl", b'{"a":[1,2,3,4,5,6,7]}\n' * 130_000, "x.jsonl: over 1,000,000 values."),
        ("x.jsonl", b'{"a": "' + b"x" * 1_000_000 + b'"}\n', "x.jsonl, line 1: over 1,000,000 bytes."),
        ("x.toml", b"a = '" + b"." * 301 + b"'", "x.toml: over 300 dots and brackets."),
        ("x.toml", b"#" * 64_001, "x.toml: 64,001 bytes, and 64,000 are the most."),
        ("x.toml", b"a = " + b"[" * 40 + b"]" * 40, "x.toml: brackets are over 32 deep"),
    ],
)
def test_lines_and_toml_have_bounds_of_their_own(file: str, data: bytes, told: str) -> None:
    with pytest.raises(SubmissionError) as refused:
        read(file, data)
    assert str(refused.value).startswith(told), str(refused.value)


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"1", b"", b'{"a": NaN}', b'{"a":1,"a":2}', rb'{"a":"\u0000"}', b"\xff"])
@pytest.mark.parametrize("number", [1, 2, 9_999, 20_000])
def test_the_line_that_is_wrong_is_named(bad: bytes, number: int) -> None:
    lines = [b'{"step": 1, "loss": 0.5}'] * 20_000
    lines[number - 1] = bad
    with pytest.raises(SubmissionError, match=rf"x\.jsonl, line {number}[:,]"):
        parse_jsonl(b"\n".join(lines) + b"\n", "x.jsonl")


def test_what_is_just_within_the_bounds_is_read() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32, "x")
    assert parse_json(b"[" + b"0," * 99_990 + b"0]", "x") == [0] * 99_991
    assert parse_json(b'{"' + b"k" * strict.MOST_KEY + b'": 1}', "x")
    assert parse_json(b'{"k": "' + b"x" * 999_990 + b'"}', "x")
    assert parse_json(b"[1e100, -1e+100, 1E2, 1e-400, 0.1]", "x") == [MOST, -MOST, 100, 0, 0.1]
    assert parse_json(b"[1" + b"0" * 100 + b"]", "x") == [10**100]
    assert parse_json(b"[0." + b"1" * 5000 + b"]", "x")
    assert parse_json(b'["' + b"[" * 99 + b'", "\\"[[", "\\\\"]', "x") == ["[" * 99, '"[[', "\\"]
    assert parse_json(b'"' + b"x" * 2_000_000 + b'"', "x", most_bytes=3_000_000)
    assert parse_jsonl(b"", "x") == []
    assert parse_jsonl((b'{"a": "' + b"x" * 999_980 + b'"}\n') * 2, "x")
    assert len(parse_jsonl(b'{"t":1.5,"values":{"a":1,"b":2,"c":3,"d":4}}\n' * 36_000, "x")) == 36_000
    assert parse_toml(b'a = "x"\r\nb = [1, 2.5, true]\r\n[c]\n"d e" = 1\n', "x")["c"] == {"d e": 1}


@pytest.mark.parametrize("text", [*READABLE, "two\nlines", "a\ttab"])
def test_a_readable_text_comes_back_as_it_is(text: str) -> None:
    row = {text[:200]: [text]}
    for escaped in (True, False):
        data = json.dumps(row, ensure_ascii=escaped).encode()
        assert parse_json(data, "x") == row
        assert parse_jsonl(data + b"\n", "x") == [row]
    assert parse_toml(f"a = {json.dumps(text, ensure_ascii=False)}".encode(), "x") == {"a": text}


@pytest.mark.parametrize("text", [*HIDDEN, *UNPAIRED])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_text_that_cannot_be_seen_is_refused_in_values_and_keys(text: str, escaped: bool) -> None:
    for row in ({"a": ["b", text]}, {"a": {text: 1}}):
        data = json.dumps(row, ensure_ascii=escaped).encode(errors="surrogatepass")
        with pytest.raises(SubmissionError):
            parse_json(data, "x")
        with pytest.raises(SubmissionError, match="line 2"):
            parse_jsonl(b"{}\n" + data + b"\n{}\n", "x")
    with pytest.raises(SubmissionError):
        parse_toml(f"a = {json.dumps(text, ensure_ascii=escaped)}".encode(errors="surrogatepass"), "x")


def test_what_is_quoted_is_ascii_and_short() -> None:
    assert shown("\x1b[2J") == r"'\x1b[2J'"
    assert shown("é" * 99) == ascii("é" * 60) + "…"


@pytest.mark.parametrize(
    "row",
    [
        b'{"":{"":{"":{"":1}}}}',
        b'{"t":56061.820304,"values":{"cpu_busy_seconds":74151.73999999999,"rss_bytes":7372800.0}}',
        b'{"a":[' + b"0.5," * 500 + b"1]}",
        b'{"a":"' + b"x" * 5000 + b'"}',
        b"{" + b",".join(b'"key number %d":%d.5' % (i, i) for i in range(500)) + b"}",
    ],
)
def test_the_weight_of_a_file_is_no_less_than_what_its_rows_take(row: bytes) -> None:
    data = (row + b"\n") * (500_000 // len(row))
    tracemalloc.start()
    try:
        rows = parse_jsonl(data, "x")
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert rows
    assert taken < 1.25 * weight(data)


def test_no_piece_of_a_file_takes_the_whole_of_it(files: dict[str, bytes]) -> None:
    line = files["samples.jsonl"].split(b"\n")[1] + b"\n"
    data = line * (5_000_000 // len(line))
    assert parse_jsonl(data, "x") == [json.loads(line)] * (5_000_000 // len(line))


def test_the_run_of_the_corpus_is_the_one_that_is_read(files: dict[str, bytes]) -> None:
    assert parse_json(files["record.json"], "x")["run_id"] == RUN
