"""Data sources: the real tasks, where sources are looked for, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.data import Dataset, load_dataset
from cprbench.errors import DataError, OfflineError
from cprbench.schema import parse
from cprbench.spec import TaskSpec
from cprbench.tasks import load_task
from tests.adapt.tiny_task import everything, films, inline, read, read_inline, task

# --- the real tasks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pubmedqa(real_data: Path) -> Dataset:
    return load_dataset(load_task("pubmedqa"), data=real_data)


@pytest.fixture(scope="module")
def banking77(real_data: Path) -> Dataset:
    return load_dataset(load_task("banking77"), data=real_data)


def test_pubmedqa_is_tested_on_the_published_test_ids_with_the_published_answers(
    pubmedqa: Dataset, real_data: Path
) -> None:
    published = json.loads((real_data / "pubmedqa" / "test_ground_truth.json").read_text(encoding="utf-8"))
    assert {example.id: example.reference for example in pubmedqa.test} == published


def test_pubmedqa_has_the_published_sizes_and_labels(pubmedqa: Dataset) -> None:
    assert pubmedqa.counts() == {"train": 450, "validation": 50, "test": 500}
    assert Counter(e.reference for e in pubmedqa.validation) == {"yes": 27, "no": 17, "maybe": 6}
    assert Counter(e.reference for e in pubmedqa.test) == {"yes": 276, "no": 169, "maybe": 55}
    assert len({e.id for e in everything(pubmedqa)}) == 1000


def test_pubmedqa_never_shows_the_conclusion(pubmedqa: Dataset, real_data: Path) -> None:
    published = json.loads((real_data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    for example in everything(pubmedqa):
        row = published[example.id]
        assert row["LONG_ANSWER"].strip()
        assert row["LONG_ANSWER"].strip() not in example.prompt
        assert example.prompt == f"Question: {row['QUESTION']}\nAbstract: " + "\n".join(row["CONTEXTS"]) + "\nAnswer:"


def test_pubmedqa_keeps_the_answer_cue_when_a_prompt_is_cut(pubmedqa: Dataset) -> None:
    assert {example.tail for example in everything(pubmedqa)} == {"\nAnswer:"}


def test_banking77_has_its_published_sizes_and_77_intents(banking77: Dataset, real_data: Path) -> None:
    assert banking77.counts() == {"train": 9002, "validation": 1001, "test": 3080}
    categories = json.loads((real_data / "banking77" / "categories.json").read_text(encoding="utf-8"))
    assert banking77.choices == tuple(sorted(categories))
    assert len(banking77.choices) == 77
    assert {e.choices for e in everything(banking77)} == {banking77.choices}
    assert set(Counter(e.reference for e in banking77.test).values()) == {40}


def test_banking77_is_tested_on_its_test_file_in_order(banking77: Dataset, real_data: Path) -> None:
    with (real_data / "banking77" / "test.csv").open(encoding="utf-8", newline="") as stream:
        rows = [(f"Customer: {row['text']}\nIntent:", row["category"]) for row in csv.DictReader(stream)]
    assert [(e.prompt, e.reference) for e in banking77.test] == rows


def test_a_published_file_with_one_byte_altered_is_refused(real_data: Path, tmp_path: Path) -> None:
    shutil.copytree(real_data / "banking77", tmp_path / "banking77")
    path = tmp_path / "banking77" / "test.csv"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_dataset(load_task("banking77"), data=tmp_path)
    assert str(path) in str(caught.value)
    assert "altered" in str(caught.value)
    assert hashlib.sha256(data).hexdigest() in str(caught.value)


def test_pubmedqa_with_its_rows_in_another_order_is_refused(real_data: Path, tmp_path: Path) -> None:
    rows = json.loads((real_data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    turned = dict(reversed(rows.items()))
    (tmp_path / "turned.json").write_text(json.dumps(turned), encoding="utf-8")
    source = {"kind": "files", "path": "turned.json", "format": "json"}
    spec = load_task("pubmedqa").model_dump() | {"source": [source], "data_sha256": None}
    with pytest.raises(DataError, match=r"test ids hash to .* published are 406e3b89"):
        load_dataset(parse(TaskSpec, spec, "here"), data=tmp_path)


# --- where sources are looked for -------------------------------------------------------------------


def test_absent_files_name_both_ways_to_point_at_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CPRBENCH_DATA", raising=False)
    spec = task({"kind": "files", "path": "films.csv"})
    with pytest.raises(DataError) as caught:
        load_dataset(spec)
    for words in ("'tiny'", "films.csv", "--data", "CPRBENCH_DATA", "../shared/data"):
        assert words in str(caught.value)


def test_files_are_found_under_the_folder_given_and_under_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{row['text']},{row['label']}\n" for row in films(20))
    (tmp_path / "films.csv").write_text("text,label\n" + rows, encoding="utf-8")
    spec = task({"kind": "files", "path": "films.csv"})
    monkeypatch.delenv("CPRBENCH_DATA", raising=False)
    given = load_dataset(spec, data=tmp_path)
    monkeypatch.setenv("CPRBENCH_DATA", str(tmp_path))
    assert load_dataset(spec).sha256 == given.sha256
    with pytest.raises(DataError, match="none of its sources"):
        load_dataset(spec, data=tmp_path / "elsewhere")  # what was asked for is the only place


def test_the_second_source_is_used_where_the_first_is_absent_and_gives_the_same_data(tmp_path: Path) -> None:
    rows = films(20)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "films.jsonl").write_text(lines, encoding="utf-8")
    files = {"kind": "files", "path": "films.jsonl", "format": "jsonl"}
    both = task([files, inline(*rows)])
    first = load_dataset(both, data=tmp_path)
    second = load_dataset(both, data=tmp_path / "nowhere")
    assert (first.source, second.source) == ("files", "inline")
    assert first.sha256 == second.sha256
    assert everything(first) == everything(second)


def test_an_altered_first_source_is_refused_even_where_a_second_one_is_present(tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("text,label\na,good\n", encoding="utf-8")
    files = {"kind": "files", "path": "films.csv", "sha256": "0" * 64}
    with pytest.raises(DataError, match="altered"):
        load_dataset(task([files, inline(*films(20))]), data=tmp_path)


def test_a_hub_source_is_not_touched_offline() -> None:
    hub = {"kind": "hub", "dataset": "org/name", "revision": "0" * 40}
    with pytest.raises(OfflineError, match="org/name"):
        load_dataset(task(hub), offline=True)
    assert load_dataset(task([hub, inline(*films(20))]), offline=True).source == "inline"


def test_one_hash_per_split_is_checked_per_split(tmp_path: Path) -> None:
    hashes = {}
    for split in ("train", "test"):
        text = f"text,label\n{split} a,good\n{split} b,bad\n"
        (tmp_path / f"{split}.csv").write_text(text, encoding="utf-8")
        hashes[split] = hashlib.sha256(text.encode()).hexdigest()
    source = {"kind": "files", "train": "train.csv", "test": "test.csv", "sha256": hashes}
    found = load_dataset(task(source, splits={"by": "published"}), data=tmp_path)
    assert [e.head for e in found.test] == ["test a", "test b"]
    swapped = {**source, "sha256": {"train": hashes["test"], "test": hashes["train"]}}
    with pytest.raises(DataError, match=r"train\.csv: sha256 is"):
        load_dataset(task(swapped, splits={"by": "published"}), data=tmp_path)


# --- readers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "source"),
    [
        ("a.csv", 'text,label\n"one, ""two""",good\nthree,bad\n', {}),
        ("a.csv", '"one, ""two""",good\nthree,bad\n', {"columns": ["text", "label"]}),
        ("a.tsv", 'text\tlabel\none, "two"\tgood\nthree\tbad\n', {"format": "tsv"}),
        ("a.tsv", 'one, "two"\tgood\nthree\tbad\n', {"format": "tsv", "columns": ["text", "label"]}),
        (
            "a.jsonl",
            '{"text": "one, \\"two\\"", "label": "good"}\n\n{"text": "three", "label": "bad"}\n',
            {"format": "jsonl"},
        ),
        (
            "a.json",
            '[{"text": "one, \\"two\\"", "label": "good"}, {"text": "three", "label": "bad"}]',
            {"format": "json"},
        ),
        (
            "a.json",
            '{"7": {"text": "one, \\"two\\"", "label": "good"}, "8": {"text": "three", "label": "bad"}}',
            {"format": "json"},
        ),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, text: str, source: dict[str, Any]) -> None:
    found = read(tmp_path, name, text, **source).test
    assert [(e.head, e.reference) for e in found] == [('one, "two"', "good"), ("three", "bad")]


def test_a_quote_is_a_letter_of_a_tsv_file(tmp_path: Path) -> None:
    found = read(tmp_path, "a.tsv", 'text\tlabel\n"Tis\tgood\n"Two"\tbad\n', format="tsv").test
    assert [e.head for e in found] == ['"Tis', '"Two"']


def test_a_table_of_rows_by_id_gives_its_ids(tmp_path: Path) -> None:
    text = '{"7": {"text": "a", "label": "good"}, "x": {"text": "b", "label": "bad"}}'
    assert [e.id for e in read(tmp_path, "a.json", text, format="json").test] == ["7", "x"]


@pytest.mark.parametrize(
    ("name", "text", "source"),
    [
        ("a.csv", "text,label\na,good,more\n", {}),
        ("a.csv", 'text,label\n"a,good\n', {}),
        ("a.csv", "a\n", {"columns": ["text", "label"]}),
        ("a.tsv", "a\tgood\tmore\n", {"format": "tsv", "columns": ["text", "label"]}),
        ("a.tsv", "a\n", {"format": "tsv", "columns": ["text", "label"]}),
        ("a.jsonl", '{"text": "a", "label": "good"}\n{"text": ', {"format": "jsonl"}),
        ("a.jsonl", '["a", "good"]\n', {"format": "jsonl"}),
        ("a.jsonl", "3\n", {"format": "jsonl"}),
        ("a.json", "[", {"format": "json"}),
        ("a.json", '["a"]', {"format": "json"}),
        ("a.json", '"a"', {"format": "json"}),
        ("a.json", '{"1": "a"}', {"format": "json"}),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, text: str, source: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path, name, text, **source)


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("a.csv", b"text,label\ncaf\xe9,good\n", {}),
        ("a.json", b"5", {"format": "json"}),
        ("a.json", b"null", {"format": "json"}),
    ],
)
def test_a_file_that_is_no_table_at_all_is_named(
    tmp_path: Path, name: str, content: bytes, source: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path, name, content, **source)


@pytest.mark.parametrize(("name", "text"), [("a.csv", "label,text\ngood\n"), ("a.tsv", "label\ttext\ngood\n")])
def test_a_row_that_is_too_short_for_its_header_is_named(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match="row 1"):
        read(tmp_path, name, text, format=name[-3:])


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])
def test_a_json_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path, mark: str) -> None:
    line = json.dumps({"text": f"one{mark}two", "label": "good"}, ensure_ascii=False)
    found = read(tmp_path, "a.jsonl", line + "\n", format="jsonl")
    assert [e.head for e in found.test] == [f"one{mark}two"]


NESTED = {"context": {"words": ["one", "two"]}, "pubid": 5, "label": "good"}


def test_dots_in_a_rename_reach_into_nested_objects(tmp_path: Path) -> None:
    rename = {"text": "context.words", "id": "pubid"}
    (found,) = read(tmp_path, "a.json", json.dumps([NESTED]), format="json", rename=rename).test
    assert (found.id, found.head) == ("5", "one\ntwo")


@pytest.mark.parametrize(("old", "near"), [("context.word", "context.word"), ("labl", "Did you mean 'label'?")])
def test_a_rename_of_a_column_that_is_not_there_names_it(tmp_path: Path, old: str, near: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "a.json", json.dumps([NESTED]), format="json", rename={"text": old})
    assert f"no column {old!r}" in str(caught.value)
    assert near in str(caught.value)


def test_a_rename_also_holds_for_rows_in_the_task_file() -> None:
    (found,) = read_inline({"sentence": "a", "label": "good"}, rename={"text": "sentence"}).test
    assert found.head == "a"


def test_keep_and_label_are_read_from_the_columns() -> None:
    rows = [{"text": f"film {i}", "rating": i} for i in range(-3, 4)]
    found = read_inline(*rows, keep="abs(rating) >= 2", label="rating > 0").test
    assert [(e.head, e.reference) for e in found] == [
        ("film -3", "bad"),
        ("film -2", "bad"),
        ("film 2", "good"),
        ("film 3", "good"),
    ]
