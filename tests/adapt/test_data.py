"""Data source -> pinned, hashed examples: the real tasks, and every way in which a source can be wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.adapt.data import Dataset, Example, load_dataset, sample_by_label
from cprbench.errors import DataError, OfflineError, SpecError
from cprbench.schema import parse
from cprbench.spec import TaskSpec
from cprbench.tasks import load_task

FILM = {"kind": "choice", "prompt": "{text}\nSentiment:", "answer": "label", "choices": ["bad", "good"]}
HALVES = {"by": "hash", "test": 0.5}


def task(
    source: dict[str, Any] | list[dict[str, Any]], *, splits: dict[str, Any] | None = None, **overrides: Any
) -> TaskSpec:
    """Return a small task over one source or several."""
    data: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "domain": "general",
        "license": "MIT",
        "citation": "none",
        "chance": 0.5,
        "primary": "accuracy",
        "metrics": ["accuracy"],
        "source": source if isinstance(source, list) else [source],
        "splits": HALVES if splits is None else splits,
        "example": FILM,
    }
    return parse(TaskSpec, data | overrides, "tiny.toml")


def inline(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "rows": list(rows)}


def films(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return rows with texts of their own; every third is bad."""
    return [{"text": f"film {i}", "label": "bad" if i % 3 == 0 else "good", **more} for i in range(count)]


def everything(data: Dataset) -> list[Example]:
    return [*data.train, *data.validation, *data.test]


def read(folder: Path, name: str, content: str | bytes, **source: Any) -> Dataset:
    """Write a data file and load it as both train and test, so that the rows come back in their order."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    spec = task({"kind": "files", "train": name, "test": name, **source}, splits={"by": "published"})
    return load_dataset(spec, data=folder)


def read_inline(*rows: dict[str, Any], example: dict[str, Any] | None = None, **source: Any) -> Dataset:
    """Load rows that all fall into the test split, in their order."""
    nearly_all = {"by": "hash", "test": 1 - 1e-9}
    return load_dataset(task({**inline(*rows), **source}, splits=nearly_all, example=FILM | (example or {})))


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


@pytest.mark.xfail(strict=True, raises=(UnicodeDecodeError, TypeError), reason="not caught: a stack trace")
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


@pytest.mark.xfail(strict=True, reason="a short row of a file with a header is filled with None")
@pytest.mark.parametrize(("name", "text"), [("a.csv", "label,text\ngood\n"), ("a.tsv", "label\ttext\ngood\n")])
def test_a_row_that_is_too_short_for_its_header_is_named(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match="row 1"):
        read(tmp_path, name, text, format=name[-3:])


@pytest.mark.xfail(strict=True, raises=DataError, reason="lines are cut at marks that JSON texts may hold")
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


@pytest.mark.xfail(strict=True, raises=SpecError, reason="an inline source takes `rename` and does not apply it")
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


# --- splits -----------------------------------------------------------------------------------------


def test_a_split_of_another_size_than_published_is_refused() -> None:
    right = load_dataset(task(inline(*films(50)))).counts()
    spec = {"by": "hash", "test": 0.5, "counts": {"train": right["train"], "test": right["test"]}}
    assert load_dataset(task(inline(*films(50)), splits=spec)).counts() == right
    spec["counts"] = {"test": 7}
    with pytest.raises(DataError, match=f"split 'test' has {right['test']} rows, 7 expected"):
        load_dataset(task(inline(*films(50)), splits=spec))


def test_an_empty_test_split_is_refused() -> None:
    with pytest.raises(DataError, match="the test split is empty"):
        load_dataset(task(inline()))


def test_data_that_changed_is_refused_by_the_hash_of_the_task() -> None:
    found = load_dataset(task(inline(*films(30))))
    assert load_dataset(task(inline(*films(30)), data_sha256=found.sha256)).sha256 == found.sha256
    with pytest.raises(DataError, match=f"data_sha256 is .*, the task file says {found.sha256}.*version"):
        load_dataset(task(inline(*films(31)), data_sha256=found.sha256))


def test_hash_splits_have_about_the_fractions_asked_for() -> None:
    splits = {"by": "hash", "test": 0.2, "validation": 0.1}
    counts = load_dataset(task(inline(*films(4000)), splits=splits)).counts()
    assert sum(counts.values()) == 4000
    assert counts["test"] == pytest.approx(800, abs=4 * 25.3)  # four standard deviations
    assert counts["validation"] == pytest.approx(400, abs=4 * 19)


def test_hash_splits_stay_where_they_are_when_rows_move_or_others_join() -> None:
    rows = films(200)
    splits = {"by": "hash", "test": 0.2, "validation": 0.1}

    def place(given: list[dict[str, Any]]) -> dict[str, str]:
        found = load_dataset(task(inline(*given), splits=splits))
        return {e.head: name for name in ("train", "validation", "test") for e in getattr(found, name)}

    before = place(rows)
    assert place(rows[::-1]) == before
    assert set(before.values()) == {"train", "validation", "test"}
    joined = place([{"text": f"new {i}", "label": "good"} for i in range(50)] + rows)
    assert before.items() <= joined.items()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["bad", "good"])), min_size=20, max_size=40))
def test_equal_prompts_never_straddle_splits(pairs: list[tuple[str, str]]) -> None:
    rows = [{"id": str(i), "text": text, "label": label} for i, (text, label) in enumerate(pairs)]
    splits = {"by": "hash", "test": 0.4, "validation": 0.3}
    try:
        found = load_dataset(task(inline(*rows), splits=splits))
    except DataError:
        return  # every text drawn fell elsewhere: no test split
    shown = [{e.prompt for e in part} for part in (found.train, found.validation, found.test)]
    assert sum(len(part) for part in shown) == len(set.union(*shown))
    assert len(everything(found)) == len(rows)


def test_published_splits_need_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,good\n", encoding="utf-8")
    with pytest.raises(DataError, match="need a train and a test file"):
        load_dataset(task({"kind": "files", "train": "a.csv"}, splits={"by": "published"}), data=tmp_path)
    with pytest.raises(DataError, match="need a source with a single path"):
        load_dataset(task({"kind": "files", "train": "a.csv", "test": "a.csv"}), data=tmp_path)


# --- examples ---------------------------------------------------------------------------------------


def test_only_what_stands_before_the_answer_cue_may_be_cut() -> None:
    (found,) = read_inline({"text": "a", "title": "T", "label": "good"}, example={"prompt": "{title}: {text}\nA:"}).test
    assert (found.head, found.tail, found.prompt) == ("T: a", "\nA:", "T: a\nA:")
    (found,) = read_inline({"text": "a", "label": "good"}, example={"prompt": "Film: {text}"}).test
    assert (found.head, found.tail) == ("Film: a", "")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("good", "good"), ("bad", "bad"), (1, "good"), (0, "bad"), ("1", "good"), (True, "good"), (False, "bad")],
)
def test_an_answer_is_a_choice_by_its_text_its_index_or_a_truth(answer: object, reference: str) -> None:
    (found,) = read_inline({"text": "a", "label": answer}).test
    assert found.reference == reference


@pytest.mark.parametrize("answer", ["Good", "", 2, -1, "2", "-1", 0.5, None])
def test_an_answer_that_is_no_choice_is_refused(answer: object) -> None:
    with pytest.raises(DataError, match="is not among the choices"):
        read_inline({"text": "a", "label": answer})


def test_choices_that_are_numbers_are_taken_by_their_text_first() -> None:
    (found,) = read_inline({"text": "a", "label": "1"}, example={"choices": ["1", "0"]}).test
    assert (found.answer, found.reference) == (0, "1")


def test_choices_may_be_the_answers_of_the_training_split(tmp_path: Path) -> None:
    text = "text,label\na,red\nb,green\nc,blue\nd,red\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    example = {"kind": "choice", "prompt": "{text}", "answer": "label", "choices_from": "answer"}
    source = {"kind": "files", "train": "a.csv", "test": "a.csv"}
    found = load_dataset(task(source, splits={"by": "published"}, example=example), data=tmp_path)
    assert found.choices == ("blue", "green", "red")
    (tmp_path / "b.csv").write_text("text,label\na,pink\n", encoding="utf-8")
    with pytest.raises(DataError, match="'pink' is not among the choices"):
        load_dataset(task({**source, "test": "b.csv"}, splits={"by": "published"}, example=example), data=tmp_path)


@pytest.mark.xfail(strict=True, reason="an answer that is a number counts as an index into the sorted answers")
def test_choices_of_the_training_split_may_be_numbers(tmp_path: Path) -> None:
    example = {"kind": "choice", "prompt": "{text}", "answer": "label", "choices_from": "answer"}
    (tmp_path / "a.json").write_text(json.dumps([{"text": str(i), "label": i} for i in range(12)]), encoding="utf-8")
    source = {"kind": "files", "train": "a.json", "test": "a.json", "format": "json"}
    found = load_dataset(task(source, splits={"by": "published"}, example=example), data=tmp_path)
    assert [e.reference for e in found.test] == [str(i) for i in range(12)]


def test_a_row_may_bring_its_own_choices() -> None:
    example = {"choices": None, "choices_column": "options"}
    rows: list[dict[str, Any]] = [
        {"text": "a", "options": ["x", "y", "z"], "label": 2},
        {"text": "b", "options": ["p", "q"], "label": "p"},
    ]
    found = read_inline(*rows, example=example)
    assert found.choices is None
    assert [(e.choices, e.reference) for e in found.test] == [(("x", "y", "z"), "z"), (("p", "q"), "p")]


@pytest.mark.parametrize("example", [{"prompt": "{txt}"}, {"answer": "lable"}, {"id": "txt"}])
def test_a_column_that_is_not_in_the_data_names_the_nearest_one(example: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"Did you mean '(text|label)'"):
        read_inline({"text": "a", "label": "good"}, example=example)


@pytest.mark.xfail(strict=True, raises=(ValueError, IndexError), reason="not caught: a stack trace")
@pytest.mark.parametrize("prompt", ["{text", "text}", ""])
def test_a_prompt_that_is_no_template_is_refused(prompt: str) -> None:
    with pytest.raises(SpecError, match="prompt"):
        read_inline({"text": "a", "label": "good"}, example={"prompt": prompt})


def test_ids_that_repeat_are_refused() -> None:
    rows = [{"id": 1, "text": "a", "label": "good"}, {"id": 1, "text": "b", "label": "good"}]
    with pytest.raises(DataError, match=r"ids in split 'test' repeat\. Set example\.id"):
        read_inline(*rows)
    twice = {"text": "a", "label": "good"}
    with pytest.raises(DataError, match="repeat"):
        read_inline(twice, twice)  # without a column of ids, equal rows have equal ids


def test_ids_come_from_the_column_named_else_from_id_else_from_the_content() -> None:
    row = {"id": 5, "key": "k", "text": "a", "label": "good"}
    assert read_inline(row, example={"id": "key"}).test[0].id == "k"
    assert read_inline(row).test[0].id == "5"
    plain = {"text": "a", "label": "good"}
    assert read_inline(plain).test[0].id == read_inline({**plain, "more": 1}).test[0].id
    assert read_inline(plain).test[0].id != read_inline({**plain, "label": "bad"}).test[0].id


def test_the_hash_of_a_task_sees_every_part_of_its_examples() -> None:
    row = {"id": "1", "text": "a", "label": "good"}
    hashes = [
        read_inline(row).sha256,
        read_inline({**row, "id": "2"}).sha256,
        read_inline({**row, "text": "b"}).sha256,
        read_inline({**row, "label": "bad"}).sha256,
        read_inline(row, example={"choices": ["bad", "good", "mixed"]}).sha256,
        read_inline(row, example={"prompt": "{text}\nMood:"}).sha256,
        load_dataset(
            task(inline(row, {**row, "id": "2"}), splits={"by": "hash", "test": 1 - 1e-9}),
        ).sha256,
    ]
    assert len(set(hashes)) == len(hashes)
    assert read_inline({**row, "unused": "x"}).sha256 == hashes[0]


# --- samples ----------------------------------------------------------------------------------------


def examples(labels: Sequence[str]) -> list[Example]:
    choices = tuple(sorted({*labels, "a", "b"}))
    return [Example(str(i), f"text {i}", "", choices, choices.index(label)) for i, label in enumerate(labels)]


def test_a_sample_has_every_label_in_its_share() -> None:
    items = examples(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    assert Counter(e.reference for e in sample_by_label(items, 20, "salt")) == {"a": 12, "b": 6, "c": 2}
    assert Counter(e.reference for e in sample_by_label(items, 21, "salt")) == {"a": 13, "b": 6, "c": 2}  # 12.6 6.3 2.1


def test_a_sample_depends_on_the_salt_and_on_nothing_else() -> None:
    items = examples(["a", "b"] * 100)
    chosen = {e.id for e in sample_by_label(items, 20, "one")}
    assert {e.id for e in sample_by_label(items[::-1], 20, "one")} == chosen
    assert {e.id for e in sample_by_label(items, 20, "two")} != chosen


def test_a_larger_sample_holds_the_smaller_one() -> None:
    items = examples(["a", "b"] * 50)
    small, large = (sample_by_label(items, size, "salt") for size in (10, 40))
    assert {e.id for e in small} < {e.id for e in large}


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.none() | st.integers(0, 70))
def test_a_sample_is_part_of_what_was_given_in_its_order_and_has_the_size_asked_for(
    labels: list[str], size: int | None
) -> None:
    items = examples(labels)
    found = sample_by_label(items, size, "salt")
    assert len(found) == (len(items) if size is None else min(size, len(items)))
    positions = [items.index(example) for example in found]
    assert positions == sorted(positions)
    assert len(set(positions)) == len(positions)
    for label, count in Counter(labels).items():
        share = len(found) * count / len(items)
        assert abs(sum(e.reference == label for e in found) - share) < 1
