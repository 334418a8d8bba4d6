"""Splits, examples and samples: what a row becomes, and on which side of the test split it falls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.adapt.data import Example, load_dataset, sample_by_label
from cprbench.errors import DataError, SpecError
from tests.adapt.tiny_task import everything, films, inline, read_inline, task

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
